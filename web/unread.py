"""Bodies that nobody reads: an answer that comes before its request has been read must still arrive."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Unread:
    """ASGI middleware that takes the rest of a request's body, and drops it, before its response ends.

    A refusal often comes before the body has been read. The HTTP server then closes the connection, and closing one
    that has unread bytes resets it: a client that is still sending loses the answer and sees a broken connection. The
    response is sent whole first, so that a client which looks can stop; what it sends on is taken up to ``most_bytes``
    and for at most ``seconds``.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int = 16 << 20, seconds: float = 5.0) -> None:
        self._app, self._most_bytes, self._seconds = app, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        over = False

        async def noticing() -> Message:
            nonlocal over
            message = await receive()
            over = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def patient(message: Message) -> None:
            if over or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            await send({**message, "more_body": True})
            taken = 0
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    while not over and taken < self._most_bytes:
                        taken += len((await noticing()).get("body", b""))
            await send({"type": "http.response.body", "body": b""})

        await self._app(scope, noticing, patient)


def _has_body(scope: Scope) -> bool:
    """A client that waits for a 100 (Continue) is told the final status instead, and sends nothing."""
    headers = dict(scope["headers"])
    return b"expect" not in headers and (
        headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
    )
