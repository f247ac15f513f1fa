"""What every response gets: a request id, security headers, and an answer even where the code has a fault."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.errors import error_response, internal_error

logger = logging.getLogger(__name__)

_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "X-Frame-Options": "DENY",
    # An answer is one caller's: no cache between may keep it, as one may where the key comes as X-API-Key.
    "Cache-Control": "no-store",
}


_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id(request: Request) -> str:
    """The id that :class:`Guard` gave this request: 32 hexadecimal digits, never a caller's."""
    value = request.scope["state"]["request_id"]
    assert isinstance(value, str)
    return value


def _shown_id(scope: Scope, identity: str) -> str:
    """What the response and the log call the request: the id that came with it, where it is one and harmless."""
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"]
    return sent[0] if len(sent) == 1 and _SANE_ID.fullmatch(sent[0]) else identity


class Guard:
    """ASGI middleware. An exception that no handler took becomes a 500 that hides it; the log has it under the id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = uuid.uuid4().hex
        shown = _shown_id(scope, identity)
        scope["state"] = {**scope.get("state", {}), "request_id": identity, "shown_id": shown}
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = shown
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s (%s) failed: %s %s", shown, identity, scope["method"], scope["path"])
            if started:
                raise  # the status is gone; the server closes the connection so that the break is seen
            await error_response(internal_error(shown))(scope, receive, send_with_headers)
