"""ASGI middleware: a line in the log, a count and a span for each HTTP request. Never anything of its content."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.operations.metrics import ServiceMetrics
from web.operations.story import Story, current

if TYPE_CHECKING:
    from web.operations.tracing import Tracing

logger = logging.getLogger("mmserve.access")

QUIET = frozenset({"/health", "/live", "/metrics", "/favicon.ico"})
"""Asked every few seconds by machines, or for nothing; these are logged for debugging only, and have no span."""


class Access:
    """Measures from the request's arrival to the last byte of its response.

    The log record's ``fields`` is a mapping for a formatter that writes JSON; its message says the same as text. The
    path is logged without its query.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServiceMetrics,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = self._clock()
        quiet = scope["path"] in QUIET
        story = Story(scope["path"])
        if self._tracing is not None and not quiet:
            story.span = self._tracing.begin(scope["method"], _headers(scope))
        status = 500  # what Guard answers for an exception that comes through here

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = current.set(story)
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            current.reset(token)
            handler = getattr(scope.get("route"), "path", None) or "other"
            self._metrics.http.add(handler, scope["method"], str(status))
            if story.span is not None and self._tracing is not None:
                self._tracing.end(story.span, scope["method"], handler, status)
            self._log(logging.DEBUG if quiet else logging.INFO, scope, status, self._clock() - start, story)

    def _log(self, level: int, scope: Scope, status: int, seconds: float, story: Story) -> None:
        if not logger.isEnabledFor(level):
            return
        fields = {
            "request_id": scope["state"]["shown_id"],
            "id": scope["state"]["request_id"],
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "duration_s": round(seconds, 6),
            **_told(story),
        }
        if story.span is not None:
            fields["trace_id"] = f"{story.span.get_span_context().trace_id:032x}"
        text = " ".join(f"{name}={value}" for name, value in fields.items() if name not in ("method", "path", "status"))
        extra = {"fields": fields}
        logger.log(level, "%s %s %d %s", scope["method"], repr(fields["path"])[1:-1], status, text, extra=extra)


def _told(story: Story) -> dict[str, Any]:
    if not story.requests:
        return {}
    said: Mapping[str, Any] = {
        "requests": story.requests,
        "outcome": story.outcome,
        "error": story.error,
        "pictures": story.pictures,
        "prompt_tokens": story.prompt_tokens,
        "cached_tokens": story.cached_tokens,
        "image_tokens": story.image_tokens,
        "completion_tokens": story.completion_tokens,
        "queue_s": None if story.queue_seconds is None else round(story.queue_seconds, 6),
        "first_token_s": (
            None if story.first_token is None or story.started is None else round(story.first_token - story.started, 6)
        ),
    }
    return {name: value for name, value in said.items() if value is not None}


def _headers(scope: Scope) -> Mapping[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
