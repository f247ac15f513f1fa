"""The event parser against a plain reading of the standard, for any bytes cut anywhere."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmserve.client.sse import SSEParser


def oracle(stream: bytes) -> list[str]:
    """The events of a whole stream, step by step as WHATWG HTML 9.2.6 has it."""
    text = stream.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    events: list[str] = []
    data: str | None = None
    *lines, _unfinished = re.split("\r\n|\n|\r", text)
    for line in lines:
        if line == "":
            if data is not None:
                events.append(data.removesuffix("\n"))
            data = None
        elif line.startswith(":"):
            continue
        else:
            field, colon, value = line.partition(":")
            if colon and value.startswith(" "):
                value = value[1:]
            if field == "data":
                data = (data or "") + value + "\n"
    return events


def parse(chunks: list[bytes]) -> list[str]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


lines = st.one_of(
    st.sampled_from(
        ["", "", "", "data", "data:", "data: ", "data:  x", ": ping", "event: x", "id:", "retry: 1", "Data: y"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map("data: {}".format),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
ends = st.sampled_from(["\n", "\r", "\r\n"])
streams = st.lists(st.tuples(lines, ends).map("".join), max_size=20).map(lambda parts: "".join(parts).encode())
noise = st.lists(
    st.sampled_from([b"data", b":", b" ", b"\r", b"\n", b"\xef\xbb\xbf", b"\xe7\x8c", b"\xab", b"\xff", b"x"])
)


@st.composite
def cut(draw: st.DrawFn) -> list[bytes]:
    stream = draw(st.one_of(streams, noise.map(b"".join), st.binary(max_size=60)))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    edges = [0, *cuts, len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@given(cut())
@example([b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n"])
@example([b"data: a\r", b"", b"\n\r\n"])
@example([b"\xef", b"\xbb\xbf", b"data: a\n\n"])
@example([b"data: \xe7", b"\x8c", b"\xab\n\n"])
@example([b"data: a\n\r\n\n"])
def test_any_stream_cut_anywhere(chunks: list[bytes]) -> None:
    assert parse(chunks) == oracle(b"".join(chunks))


@given(cut())
def test_where_it_is_cut_does_not_matter(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    assert parse([bytes([byte]) for byte in whole]) == parse([whole]) == parse(chunks)


@pytest.mark.parametrize(
    ("stream", "events"),
    [  # the examples of the standard (9.2.6), as far as data goes
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
            ["first event", "second event"],
        ),
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
        (b"data:test\n\ndata: test\n\n", ["test", "test"]),
        (b"data:  third event\n\n", [" third event"]),
    ],
)
def test_the_standards_examples(stream: bytes, events: list[str]) -> None:
    assert oracle(stream) == events
    assert parse([stream]) == events


def test_an_event_is_out_with_the_byte_that_ends_it() -> None:
    parser = SSEParser()
    assert [parser.feed(bytes([byte])) for byte in b"data: a\n\n"][-1] == ["a"]
    parser = SSEParser()
    assert [parser.feed(bytes([byte])) for byte in b"data: a\r\r"][-1] == ["a"]


def test_a_unicode_line_separator_does_not_end_a_line() -> None:
    assert parse(["data: a\u2028b\x0bc\x85d\n\n".encode()]) == ["a\u2028b\x0bc\x85d"]
