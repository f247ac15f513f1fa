"""The near end: HTTP taken, read, given a key, handed to a replica; and its answer passed on.

The choice of a replica needs the picture, and Ray Serve's own proxy chooses before it has read a body: it would send
the request to whichever replica is idle, and streams the body there. So a light deployment stands between, which loads
no torch: it reads the body within the limits, takes the key from it, and calls the engines' deployment, whose router
then sees the key. The body crosses one process more; a picture of 1 MB costs about a millisecond there, and computing
one costs tens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from http import HTTPStatus

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from mmserve.config import Limits
from mmserve.deploy.calls import Call, Piece, Replicas, Whole, portable
from mmserve.deploy.key import name_key, routing_key
from mmserve.deploy.memo import Memo
from mmserve.deploy.merge import merge_metrics
from mmserve.errors import EngineUnavailable, MMServeError
from web.errors import error_body, error_response, install_error_handlers
from web.middleware import Guard
from web.sse import DONE, frame
from web.unread import Unread
from web.uploads import read_body

log = logging.getLogger(__name__)

_MOST_ASKED = 16
"""Replicas that are asked, one after the other, for what one of them keeps."""

_NOT_KEPT = frozenset({"image_not_kept", "response_not_kept"})
_FOR_ALL = frozenset({"/flush_cache", "/abort_request", "/metrics"})
_THREAD_FROM = 256 * 1024
_HEALTH_SECONDS = 5.0


def create_front(replicas: Replicas, limits: Limits, *, idle_seconds: float = 30.0) -> FastAPI:
    """The application before the replicas, over their protocol. It holds nothing but hints about names."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)
    app.add_middleware(Unread)
    install_error_handlers(app)
    app.router.default = Front(replicas, limits, idle_seconds)
    return app


class Front:
    """An ASGI application for every path."""

    def __init__(self, replicas: Replicas, limits: Limits, idle_seconds: float) -> None:
        self._replicas = replicas
        self._limits = limits
        self._idle_seconds = idle_seconds
        self._memo = Memo()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = scope["path"]
        watched = scope["method"] in ("GET", "HEAD")
        if path == "/live" and watched:
            await JSONResponse({"status": "ok"})(scope, receive, send)
            return
        call = await self._call(request)
        if path == "/health" and watched:
            response = await self._health(call)
        elif path in _FOR_ALL:
            response = _joined(path, await self._replicas.ask_all(call))
        else:
            await self._relay(call, receive, send)
            return
        await response(scope, receive, send)

    async def _call(self, request: Request) -> Call:
        """Raises what reading a body raises."""
        body = await read_body(request, self._limits, self._idle_seconds)
        scope = portable(request.scope, request.scope["state"]["shown_id"])
        key = b""
        if body:
            kind = request.headers.get("content-type", "")
            if len(body) < _THREAD_FROM:
                key = routing_key(kind, body, self._memo.get)
            else:
                key = await asyncio.to_thread(routing_key, kind, body, self._memo.get)
        elif (name := scope["path"].rpartition("/")[2]) and (known := self._memo.get(name)) is not None:
            key = known
        return Call(scope, body, key or name_key(secrets.token_hex(8)))

    async def _health(self, call: Call) -> Response:
        """200 where some replica can answer questions. Without one a call would wait until there is."""
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                messages = [m async for piece in self._replicas.answer(call) for m in piece.messages]
        except (TimeoutError, MMServeError):
            return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": "5"})
        healthy = messages[0]["status"] == 200
        return JSONResponse({"status": "ok" if healthy else "unavailable"}, 200 if healthy else 503)

    async def _relay(self, call: Call, receive: Receive, send: Send) -> None:
        """One replica's answer to the client, or nothing once the client has gone."""
        pump = asyncio.create_task(self._pump(call, send))
        watch = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((pump, watch), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            for task in (pump, watch):
                task.cancel()
            await asyncio.gather(pump, watch, return_exceptions=True)

    async def _pump(self, call: Call, send: Send) -> None:
        """Raises a typed error while the client has heard nothing; afterwards it is the stream's last event."""
        started: Message | None = None
        heard = bytearray()
        learns = self._memo.names(call.scope["path"])
        try:
            async with aclosing(self._seek(call)) as pieces:
                async for piece in pieces:
                    for message in piece.messages:
                        if message["type"] == "http.response.start":
                            started = message
                            learns = learns and message["status"] == HTTPStatus.OK and not _is_events(message)
                        elif learns:
                            heard += message.get("body", b"")
                        await send(message)
        except MMServeError as error:
            if started is None or not _is_events(started):
                raise
            log.warning("an answer was cut short: %s", error)
            last = frame(error_body(error)) + DONE
            await send({"type": "http.response.body", "body": last, "more_body": False})
            return
        if learns:
            self._memo.learn(bytes(heard), call.key)

    async def _seek(self, call: Call) -> AsyncGenerator[Piece, None]:
        """The answer of the replica that ``call`` belongs to; where it names what that one does not keep, of the first
        that does."""
        asked: list[str] = []
        while True:
            turn = Call(call.scope, call.body, call.key, tuple(asked))
            async with aclosing(self._replicas.answer(turn)) as pieces:
                first = await anext(pieces, None)
                if first is None:
                    raise EngineUnavailable("the replica gave no answer; ask again")
                if first.messages[0].get("status") != HTTPStatus.NOT_FOUND:
                    yield first
                    async for piece in pieces:
                        yield piece
                    return
                refusal = [first, *[piece async for piece in pieces]]
            if first.replica in asked or len(asked) + 1 >= _MOST_ASKED or not _is_not_kept(refusal):
                for piece in refusal:
                    yield piece
                return
            asked.append(first.replica)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_events(start: Message) -> bool:
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    return any(kind.startswith(b"text/event-stream") for kind in kinds)


def _is_not_kept(pieces: Sequence[Piece]) -> bool:
    body = b"".join(message.get("body", b"") for piece in pieces for message in piece.messages)
    try:
        return json.loads(body)["error"]["code"] in _NOT_KEPT
    except (ValueError, LookupError, TypeError):
        return False


def _joined(path: str, answers: Sequence[Whole]) -> Response:
    """One answer for all replicas': the first refusal; else the sum of their counts, or all their metrics."""
    if not answers:
        return error_response(EngineUnavailable("no replica answered; try again in a moment"))
    refused = next((answer for answer in answers if answer.status != HTTPStatus.OK), None)
    if refused is not None:
        return Response(refused.body, refused.status, dict(_decoded(refused)))
    if path == "/metrics":
        text = merge_metrics({answer.replica: answer.body.decode() for answer in answers})
        return Response(text, headers={"Content-Type": dict(_decoded(answers[0]))["content-type"]})
    total: dict[str, int] = {}
    for answer in answers:
        for name, count in json.loads(answer.body).items():
            total[name] = total.get(name, 0) + count
    return JSONResponse(total)


def _decoded(answer: Whole) -> list[tuple[str, str]]:
    own = (b"content-length", b"x-request-id")
    return [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in answer.headers if n.lower() not in own]
