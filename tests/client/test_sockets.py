"""The clients over real sockets: what the far end sees when a stream is left, and connections that fail."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mmserve import AsyncClient, Client
from mmserve.errors import EngineUnavailable
from tests.client.harness import ENDING, VQA, sse

JPEG = b"\xff\xd8\xff\xe0 jpeg"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def json_reply(body: object) -> bytes:
    import json

    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)


def read_request(connection: socket.socket) -> bytes:
    """One request with a Content-Length, or nothing when the client has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that leaves each connection to ``talk``, one after another, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    failures: list[BaseException] = []

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    talk(connection)
                except BaseException as error:
                    failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
    assert not failures


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def take_one_piece(kind: str, url: str) -> str:
    """The first piece of a stream, left then while the client stays open for a moment."""
    if kind == "sync":
        with Client(url) as client:
            with client.stream(JPEG, "q") as stream:
                piece = next(stream)
            time.sleep(0.2)
            return piece

    async def run() -> str:
        async with AsyncClient(url) as client:
            async with client.stream(JPEG, "q") as stream:
                piece = await anext(stream)
            await asyncio.sleep(0.2)
            return piece

    return asyncio.run(run())


def ask(kind: str, url: str, times: int = 1, **settings: float) -> list[str]:
    if kind == "sync":
        with Client(url, timeout=settings.get("timeout", 10), retries=int(settings.get("retries", 3))) as client:
            return [client.ask(JPEG, "q").text for _ in range(times)]

    async def run() -> list[str]:
        timeout, retries = settings.get("timeout", 10), int(settings.get("retries", 3))
        async with AsyncClient(url, timeout=timeout, retries=retries) as client:
            return [(await client.ask(JPEG, "q")).text for _ in range(times)]

    return asyncio.run(run())


def test_a_server_sees_that_a_stream_was_left(kind: str) -> None:
    ended = threading.Event()

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(STREAM_HEAD + chunk(sse({"delta": "x"})))
        if connection.recv(1) == b"":  # nothing more is due from the client: this is its end
            ended.set()

    with server(talk) as url:
        started = time.monotonic()
        assert take_one_piece(kind, url) == "x"
        assert ended.wait(5)
        assert time.monotonic() - started < 5


def test_a_stream_read_to_its_end_leaves_the_connection_for_the_next(kind: str) -> None:
    requests: list[int] = []

    def talk(connection: socket.socket) -> None:
        while read_request(connection):
            requests.append(connection.fileno())
            connection.sendall(STREAM_HEAD + chunk(sse({"delta": "A cat."})))
            connection.sendall(chunk(sse({**VQA, **ENDING}, "[DONE]")) + chunk(b""))

    def read_twice(url: str) -> list[str]:
        if kind == "sync":
            with Client(url) as client:
                return ["".join(client.stream(JPEG, "q")) for _ in range(2)]

        async def run() -> list[str]:
            async with AsyncClient(url) as client:
                return ["".join([piece async for piece in client.stream(JPEG, "q")]) for _ in range(2)]

        return asyncio.run(run())

    with server(talk) as url:
        assert read_twice(url) == ["A cat.", "A cat."]
    assert len(requests) == 2
    assert len(set(requests)) == 1


def test_a_connection_closed_by_the_server_between_two_questions(kind: str) -> None:
    """Without "Connection: close", as a server does whose patience with an idle connection is over."""

    def talk(connection: socket.socket) -> None:
        assert read_request(connection)
        connection.sendall(json_reply(VQA))

    with server(talk) as url:
        assert ask(kind, url, times=5) == ["A cat."] * 5


def test_a_server_that_hangs_up_on_a_request_is_asked_again(kind: str) -> None:
    seen: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        if len(seen) > 1:
            connection.sendall(json_reply(VQA))

    with server(talk) as url:
        assert ask(kind, url) == ["A cat."]
    assert len(seen) == 2


def test_a_silent_server(kind: str) -> None:
    seen: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.recv(1)

    with server(talk) as url:
        started = time.monotonic()
        with pytest.raises(EngineUnavailable, match="sent nothing for the time allowed"):
            ask(kind, url, timeout=0.2)
        assert time.monotonic() - started < 3
    assert len(seen) == 1


def test_nobody_listens(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineUnavailable, match=r"cannot connect to http://127.0.0.1:\d+ .*mmserve serve"):
        ask(kind, url, retries=0)


def test_a_refusal_before_the_upload_ends_is_heard(kind: str) -> None:
    """A server may answer 413 and close without reading on; the reason must not be lost in a broken pipe."""

    def talk(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo long")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    def big(url: str) -> None:
        if kind == "sync":
            with Client(url, retries=0) as client:
                client.ask(b"x" * (8 << 20), "q")
            return

        async def run() -> None:
            async with AsyncClient(url, retries=0) as client:
                await client.ask(b"x" * (8 << 20), "q")

        asyncio.run(run())

    from mmserve.errors import PictureTooLarge

    with server(talk) as url, pytest.raises(PictureTooLarge, match="too long"):
        big(url)
