"""Connections that take their time over a request's headers, at a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from mmserve.cli_protocol import patient_for

pytestmark = pytest.mark.anyio

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    body = b""
    while scope["path"] != "/early":  # which is answered before its body is there
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def server(seconds: float, rest: float = 600.0, max_header_bytes: int = 16_384) -> AsyncIterator[int]:
    config = uvicorn.Config(
        echo,
        port=0,
        log_level="critical",
        lifespan="off",
        ws="none",
        http=patient_for(seconds, rest),
        h11_max_incomplete_event_size=max_header_bytes,
    )
    made = uvicorn.Server(config)
    task = asyncio.create_task(made.serve())
    while not made.started:
        await asyncio.sleep(0.001)
    try:
        yield made.servers[0].sockets[0].getsockname()[1]
    finally:
        made.should_exit = True
        await task


async def test_headers_that_trickle_are_ended_with_a_408() -> None:
    async with server(0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD)

        async def trickle() -> None:
            for i in range(1000):
                writer.write(b"X-%d: y\r\n" % i)
                await asyncio.sleep(0.01)

        task = asyncio.create_task(trickle())
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        task.cancel()
        writer.close()


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with server(0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()


async def test_the_second_request_of_a_connection_has_the_same_time() -> None:
    async with server(0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"\r\nbody")
        assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200 ")
        writer.write(HEAD)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_body_is_not_the_headers_business() -> None:
    async with server(0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"\r\n")
        for byte in b"body":
            await asyncio.sleep(0.08)
            writer.write(bytes([byte]))
        assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_body_that_nobody_reads_any_more_is_not_taken_for_ever() -> None:
    async with server(600.0, rest=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")

        async def trickle() -> None:
            for _ in range(1000):
                writer.write(b"x")
                await asyncio.sleep(0.01)

        task = asyncio.create_task(trickle())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        with suppress(ConnectionResetError):
            await reader.read()  # to the end, which is the server's doing
        assert not task.done()
        task.cancel()
        writer.close()


async def test_the_rest_of_a_refused_body_may_come_and_the_connection_goes_on() -> None:
    async with server(5.0, rest=5.0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write(b"dy" + HEAD + b"\r\nbody")
        assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_many_requests_on_one_connection() -> None:
    async with server(5.0) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        for i in range(5):
            assert (await http.post("/", content=b"%d" % i)).content == b"%d" % i


@pytest.mark.parametrize("kind", ["one long header", "many headers", "a long address"])
async def test_headers_over_their_limit_are_refused(kind: str) -> None:
    long = b"y" * 5000
    sent = {
        "one long header": HEAD + b"X: " + long,
        "many headers": HEAD + b"".join(b"X-%d: y\r\n" % i for i in range(1000)),
        "a long address": b"GET /" + long,
    }[kind]
    async with server(5.0, max_header_bytes=4096) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert (await reader.readline()).startswith(b"HTTP/1.1 4")
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"X : y\r\n",
        b"X\r\n",
    ],
)
async def test_what_two_parsers_could_read_differently_is_refused_or_ends_the_connection(head: bytes) -> None:
    """Request smuggling: nothing after such a request is taken for another one."""
    async with server(1.0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        answered = await reader.read()
        assert answered.count(b"HTTP/1.1 200 ") <= 1
        writer.close()
