"""An answer that comes before its request has been read arrives whole, and a client that sends for ever is not waited
for."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.web.fakes import FakeEngine, serve
from web.service import Service
from web.unread import Unread

pytestmark = pytest.mark.anyio


def exchange(url: str, request: bytes) -> bytes:
    """All of ``request`` is sent before anything is read. Raises ``ConnectionResetError`` where the answer is lost."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer


@pytest.mark.parametrize("path", ["/v1/vqa", "/nowhere"])
def test_a_refusal_arrives_though_the_body_was_not_read(service: Service, engine: FakeEngine, path: str) -> None:
    engine.ready = False
    body = b"x" * (3 << 20)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with serve(service) as url:
        for _ in range(3):
            answer = exchange(url, head.encode() + body)
            assert answer.startswith(b"HTTP/1.1 503" if path == "/v1/vqa" else b"HTTP/1.1 404")
            assert answer.endswith(b"}}")


class Client:
    """Sends ``piece`` for ever, or goes silent after ``pieces``; keeps what it is answered."""

    def __init__(self, piece: bytes, pieces: int | None = None) -> None:
        self.piece, self.pieces, self.sent = piece, pieces, 0
        self.answers: list[Message] = []

    async def receive(self) -> Message:
        if self.pieces is not None and self.sent == self.pieces:
            await asyncio.Event().wait()
        self.sent += 1
        return {"type": "http.request", "body": self.piece, "more_body": True}

    async def send(self, message: Message) -> None:
        self.answers.append(message)

    async def ask(self, app: ASGIApp, **headers: str) -> bytes:
        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        await app({"type": "http", "headers": named, "method": "POST", "path": "/"}, self.receive, self.send)
        assert not self.answers[-1].get("more_body")
        return b"".join(answer.get("body", b"") for answer in self.answers)


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("no")(scope, receive, send)


async def test_no_more_is_taken_than_the_limit() -> None:
    client = Client(b"x" * 100)
    assert await client.ask(Unread(refusing, most_bytes=1_000), **{"transfer-encoding": "chunked"}) == b"no"
    assert client.sent == 10


async def test_a_client_that_goes_silent_is_let_go() -> None:
    client = Client(b"x", pieces=2)
    assert await client.ask(Unread(refusing, seconds=0.01), **{"content-length": "50"}) == b"no"
    assert client.sent == 2


@pytest.mark.parametrize("headers", [{}, {"content-length": "0"}, {"content-length": "9", "expect": "100-continue"}])
async def test_where_no_body_comes_none_is_waited_for(headers: dict[str, str]) -> None:
    client = Client(b"x")
    assert await client.ask(Unread(refusing), **headers) == b"no"
    assert client.sent == 0


async def test_a_body_that_was_read_is_not_asked_for_again() -> None:
    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await refusing(scope, receive, send)

    class Whole(Client):
        async def receive(self) -> Message:
            return {**await super().receive(), "more_body": False}

    client = Whole(b"x")
    assert await client.ask(Unread(reading), **{"content-length": "1"}) == b"no"
    assert client.sent == 1
