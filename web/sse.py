"""Server-sent events, and noticing that a client went away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mmserve.errors import MMServeError, RequestCancelled
from web.errors import error_body, internal_error
from web.middleware import request_id

T = TypeVar("T")

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def frame(value: Mapping[str, Any]) -> bytes:
    """One event: ``data: {json}`` and an empty line. JSON has no raw line ends, so one line is enough."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away first (raises ``RequestCancelled``).

    The request's body must have been read to its end.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestCancelled("the client went away before the answer was ready")
    finally:
        await _end(task, watch)


class EventStream(Response):
    """A streamed answer whose first frame is known already.

    Owns ``frames`` and closes it, on every way out. An error after the first frame becomes the last frame.
    """

    media_type = "text/event-stream"

    def __init__(self, identity: str, first: bytes, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._identity = identity
        self._first = first
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        pump = asyncio.create_task(self._pump(send))
        watch = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((pump, watch), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            await _end(pump, watch)
            await self._frames.aclose()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for piece in self._frames:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except MMServeError as error:
            await send({"type": "http.response.body", "body": frame(error_body(error)), "more_body": True})
        except Exception:
            logger.exception("request %s failed while its answer was streamed", self._identity)
            failure = frame(error_body(internal_error(self._identity)))
            await send({"type": "http.response.body", "body": failure, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def start_stream(request: Request, frames: AsyncGenerator[bytes, None]) -> Response:
    """The response for ``frames``, once the first exists: what fails before it is an ordinary error with a status."""
    try:
        first = await until_disconnect(request, _first(frames))
    except BaseException:
        await frames.aclose()
        raise
    return EventStream(request_id(request), first, frames)


async def _first(frames: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(frames)
