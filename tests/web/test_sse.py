from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from mmserve.errors import QueueFull, RequestCancelled
from web.sse import frame, start_stream, until_disconnect

pytestmark = pytest.mark.anyio


class Line:
    """An ASGI connection: what was sent over it, and a client that can hang up."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.full = asyncio.Event()
        self.full.set()
        scope = {"type": "http", "state": {"request_id": "r1"}}
        self.request = Request(scope, self.receive)

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.full.wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Source:
    """Frames that tell whether they were closed."""

    def __init__(self, *steps: bytes | float | Exception) -> None:
        self.steps = steps
        self.closed = False

    async def frames(self) -> AsyncGenerator[bytes, None]:
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            await asyncio.sleep(0)  # closing may have to wait, as an engine's does
            self.closed = True


def test_frame_is_one_line_of_json() -> None:
    made = frame({"text": "a\nb\r\n\u2028 é 🐈"})
    assert made.startswith(b"data: ")
    assert made.endswith(b"\n\n")
    assert made.count(b"\n") == 2
    assert b"\r" not in made
    assert json.loads(made[6:])["text"] == "a\nb\r\n\u2028 é 🐈"


async def test_frames_go_out_in_order_and_the_source_is_closed() -> None:
    line, source = Line(), Source(b"a", b"b", b"c")
    response = await start_stream(line.request, source.frames())
    await response(line.request.scope, line.receive, line.send)
    assert line.body == b"abc"
    assert line.sent[0]["status"] == 200
    assert "content-length" not in dict(line.sent[0]["headers"])
    assert line.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert source.closed


async def test_error_before_the_first_frame_is_raised() -> None:
    source = Source(QueueFull("full"))
    with pytest.raises(QueueFull):
        await start_stream(Line().request, source.frames())
    assert source.closed


async def test_error_later_is_the_last_frame() -> None:
    line, source = Line(), Source(b"a", QueueFull("full"))
    response = await start_stream(line.request, source.frames())
    await response(line.request.scope, line.receive, line.send)
    assert b'"code":"queue_full"' in line.body
    assert line.sent[-1]["more_body"] is False
    assert source.closed


async def test_client_gone_before_the_first_frame() -> None:
    line, source = Line(), Source(3600.0)
    asyncio.get_running_loop().call_later(0.02, line.gone.set)
    with pytest.raises(RequestCancelled):
        await start_stream(line.request, source.frames())
    assert source.closed


async def test_client_gone_while_the_source_waits() -> None:
    line, source = Line(), Source(b"a", 3600.0)
    response = await start_stream(line.request, source.frames())
    asyncio.get_running_loop().call_later(0.02, line.gone.set)
    await response(line.request.scope, line.receive, line.send)
    assert source.closed


async def test_client_gone_while_a_write_waits() -> None:
    line, source = Line(), Source(b"a", b"b", b"c")
    response = await start_stream(line.request, source.frames())
    line.full.clear()
    asyncio.get_running_loop().call_later(0.02, line.gone.set)
    await response(line.request.scope, line.receive, line.send)
    assert source.closed


async def test_client_gone_before_the_response_begins() -> None:
    line, source = Line(), Source(b"a", 3600.0)
    response = await start_stream(line.request, source.frames())
    line.gone.set()
    await response(line.request.scope, line.receive, line.send)
    assert source.closed


async def test_server_that_stops_closes_the_source() -> None:
    line, source = Line(), Source(b"a", 3600.0)
    response = await start_stream(line.request, source.frames())
    task = asyncio.create_task(_call(response, line))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed


async def _call(response: Any, line: Line) -> None:
    await response(line.request.scope, line.receive, line.send)


async def test_work_is_cancelled_when_the_client_goes() -> None:
    line = Line()
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    asyncio.get_running_loop().call_later(0.02, line.gone.set)
    with pytest.raises(RequestCancelled):
        await until_disconnect(line.request, work())
    assert ended


async def test_result_and_error_of_work_pass_through() -> None:
    async def work(fail: bool) -> int:
        if fail:
            raise QueueFull("full")
        return 7

    assert await until_disconnect(Line().request, work(False)) == 7
    with pytest.raises(QueueFull):
        await until_disconnect(Line().request, work(True))
