"""The far end: a call answered by the HTTP application of this process, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import ASGIApp, Message

from mmserve.deploy.calls import Call, Piece, Whole

_LEAVING_SECONDS = 5.0
"""For the application to end a request whose caller has gone, before it is cancelled."""


class Answering:
    """An ASGI application as answers to :class:`Call`\\ s, under the name of this replica."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._name = name

    async def answer(self, call: Call) -> AsyncGenerator[Piece, None]:
        """The messages as they come; those that come together travel together. Closing it is a client that leaves.

        Raises what the application raises.
        """
        outbox: asyncio.Queue[Message | None] = asyncio.Queue()
        left = asyncio.Event()
        task = asyncio.create_task(self._run(call, outbox, left))
        try:
            while (message := await outbox.get()) is not None:
                messages = [message]
                while not outbox.empty() and (more := outbox.get_nowait()) is not None:
                    messages.append(more)
                yield Piece(self._name, tuple(messages))
                if _is_last(messages[-1]):
                    break
            await task
        finally:
            left.set()
            if not task.done():
                await asyncio.wait({task}, timeout=_LEAVING_SECONDS)
                task.cancel()

    async def whole(self, call: Call) -> Whole:
        messages = [message async for piece in self.answer(call) for message in piece.messages]
        start, *rest = messages
        body = b"".join(message.get("body", b"") for message in rest)
        return Whole(self._name, start["status"], tuple(map(tuple, start["headers"])), body)

    async def _run(self, call: Call, outbox: asyncio.Queue[Message | None], left: asyncio.Event) -> None:
        unread = [call.body]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            outbox.put_nowait(_plain(message))

        try:
            await self._app(dict(call.scope), receive, send)
        finally:
            outbox.put_nowait(None)


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _plain(message: Message) -> dict[str, Any]:
    """``message`` with values that can be sent: an application may use any buffer and any pair of bytes."""
    plain = dict(message)
    if "headers" in plain:
        plain["headers"] = [(bytes(name), bytes(value)) for name, value in plain["headers"]]
    if "body" in plain:
        plain["body"] = bytes(plain["body"])
    return plain
