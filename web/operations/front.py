"""Front: the ASGI application that listens from start to end, whatever state the one behind it is in."""

from __future__ import annotations

import asyncio
from enum import Enum

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mmserve.errors import EngineUnavailable
from web.errors import error_response
from web.middleware import Guard
from web.unread import Unread

RETRY_SECONDS = "5"

WATCHERS = frozenset({"/health", "/live", "/metrics"})
"""Asked by machines that watch the server; these are answered while it drains, and nothing waits for them to end."""


class Phase(Enum):
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Front:
    """Hands requests to the application that ``serve`` names; before that, and after ``drain``, it answers itself.

    ``/live`` is 200 as long as this process answers at all. ``/health`` is 200 only while questions can be answered.
    Everything else is a typed 503 with ``Retry-After`` while loading; while draining too, but for requests that came
    before, ``/metrics``, and ``/abort_request``, which ends some of them.
    """

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self._app: ASGIApp | None = None
        self._refuse = Unread(Guard(self._answer))
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open_requests(self) -> int:
        """How many requests are under way, those of ``WATCHERS`` not counted."""
        return self._open

    def serve(self, app: ASGIApp) -> None:
        """The model is loaded: ``app`` answers from now on."""
        self._app = app
        self.phase = Phase.SERVING

    def drain(self) -> None:
        """Take nothing new; what is under way goes on."""
        self.phase = Phase.DRAINING

    async def idle(self) -> None:
        """Returns once nothing is under way."""
        await self._idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, path = self._app, scope.get("path", "")
        if app is None or (self.phase is Phase.DRAINING and path not in ("/live", "/metrics", "/abort_request")):
            app = self._refuse
        if path in WATCHERS:
            await app(scope, receive, send)
            return
        self._open += 1
        self._idle.clear()
        try:
            await app(scope, receive, send)
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response
        if scope["path"] == "/live":
            response = JSONResponse({"status": "ok"})
        elif scope["path"] == "/health":
            response = JSONResponse({"status": self.phase.value}, 503)
        elif self.phase is Phase.LOADING:
            response = error_response(EngineUnavailable("the model is still loading; try again in a moment"))
        else:
            response = error_response(
                EngineUnavailable("this server is shutting down; ask another, or it when it is back")
            )
        if response.status_code == 503:
            response.headers["Retry-After"] = RETRY_SECONDS
        if self.phase is Phase.DRAINING:
            response.headers["Connection"] = "close"
        await response(scope, receive, send)
