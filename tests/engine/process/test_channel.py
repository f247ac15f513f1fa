"""Messages over a pair of sockets: whole or not at all, whatever their size and however they are cut."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.engine.process.channel import ChannelClosed, encode, receive, receive_from

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def whole(message: object) -> bytes:
    return b"".join(encode(message))


async def read_all(data: bytes, cuts: list[int]) -> list[object]:
    """What an event loop reads from ``data`` that comes in pieces."""
    reader = asyncio.StreamReader()

    async def feed() -> None:
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for start, stop in itertools.pairwise(edges):
            reader.feed_data(data[start:stop])
            await asyncio.sleep(0)
        reader.feed_eof()

    feeding = asyncio.create_task(feed())
    found: list[object] = []
    while not (feeding.done() and reader.at_eof()):
        with suppress(ChannelClosed):
            found.append(await receive_from(reader))
    return found


@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.integers(0, 2000), max_size=8))
def test_messages_come_whole_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    assert asyncio.run(read_all(b"".join(map(whole, messages)), cuts)) == messages


def test_a_thread_reads_them_byte_by_byte_too(pair: Pair) -> None:
    data = whole({"a": 1}) + whole([2, 3])

    def send() -> None:
        for i in range(len(data)):
            pair[0].sendall(data[i : i + 1])

    thread = threading.Thread(target=send)
    thread.start()
    assert [receive(pair[1]), receive(pair[1])] == [{"a": 1}, [2, 3]]
    thread.join()


def test_a_huge_message_is_sent_in_two_pieces_and_arrives(pair: Pair) -> None:
    message = b"0123456789abcdef" * (2 * 1024 * 1024)
    pieces = encode(message)
    assert len(pieces) == 2
    assert len(pieces[1]) == len(pickle.dumps(message, 5))

    def send() -> None:
        for piece in pieces:
            pair[0].sendall(piece)

    thread = threading.Thread(target=send)
    thread.start()
    assert receive(pair[1]) == message
    thread.join()


@pytest.mark.parametrize("kept", [0, 3, 8, 12])
def test_an_end_in_the_middle_is_told_from_one_between(pair: Pair, kept: int) -> None:
    pair[0].sendall(whole("first"))
    pair[0].sendall(whole("second")[:kept])
    pair[0].close()
    assert receive(pair[1]) == "first"
    with pytest.raises(ChannelClosed) as caught:
        receive(pair[1])
    assert caught.value.torn == (kept > 0)


@pytest.mark.parametrize("kept", [0, 3, 8, 12])
def test_an_event_loop_tells_them_apart_too(kept: int) -> None:
    async def read() -> bool:
        reader = asyncio.StreamReader()
        reader.feed_data(whole("second")[:kept])
        reader.feed_eof()
        with pytest.raises(ChannelClosed) as caught:
            await receive_from(reader)
        return caught.value.torn

    assert asyncio.run(read()) == (kept > 0)


def test_a_reset_connection_is_an_end() -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.set_exception(ConnectionResetError())
        with pytest.raises(ChannelClosed):
            await receive_from(reader)

    asyncio.run(read())
