"""The way in: which requests need a key, whose they are, and whether there is room for them."""

from __future__ import annotations

import math
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mmserve.errors import KeyRefused, MMServeError, NotAllowed, RateLimited, RequestError
from mmserve.keys import Key
from web.access.meter import Meter
from web.access.ring import KeyRing
from web.errors import error_response
from web.visit import Fetcher, Visit, acting, require_admin

_OPEN = frozenset({"/", "/health", "/live", "/favicon.ico"})
_OPEN_BELOW = ("/static/", "/examples/")
"""What the page is made of; it asks for a key itself."""

_ADMIN = frozenset({"/flush_cache", "/metrics"})

_LOOKING = ("/v1/models", "/server_info", "/get_server_info", "/model_info", "/get_model_info")
"""What costs nothing to answer and is not counted among a key's requests of the minute, or a page that watches the
server would use them up."""

OWN = "mmserve.visit"
"""Where a request that the server makes of itself, for a caller it let in before, has its visit in the scope. Nothing
that arrives from outside can be there: the scope's entries are made by the server, the caller's are in ``headers``."""

_HOW = "send it as the header Authorization: Bearer KEY, or X-API-Key: KEY"


class Gate:
    """ASGI middleware. Everything but the page and ``/health`` needs a key where there are ``keys``.

    A page of another site may not use the server through its reader's browser, where browsers tell (Sec-Fetch-Site),
    unless its origin is among ``origins``: without keys that would be open to every page on the web.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | None = None,
        remote: Fetcher | None = None,
        origins: Collection[str] = (),
    ) -> None:
        self._app = app
        self._keys = keys
        self._remote = remote
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = _route(scope), Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:
            refusal = error_response(RequestError("send Content-Length or Transfer-Encoding, not both"))
            refusal.headers["Connection"] = "close"  # a proxy before us may have seen the body end elsewhere
            await refusal(scope, receive, send)
            return
        looks = scope["method"] in ("GET", "HEAD")
        # A visit is set for every request, or one of the same connection before it could be seen (CPython 140947).
        if looks and (path in _OPEN or path.startswith(_OPEN_BELOW)):
            with acting(Visit()):
                await self._app(scope, receive, send)
            return
        try:
            self._refuse_other_sites(headers)
            visit = self._visit(scope, headers)
            with acting(visit):
                if path in _ADMIN:
                    require_admin(path)
                counted = not (looks and path.startswith(_LOOKING))
                _enter(visit, counted)
        except MMServeError as error:
            await error_response(error)(scope, receive, send)
            return
        try:
            with acting(visit):
                await self._app(scope, receive, send)
        finally:
            if visit.meter is not None:
                visit.meter.leave()

    def _refuse_other_sites(self, headers: Headers) -> None:
        if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
            return
        if "*" in self._origins or headers.get("origin") in self._origins:
            return
        raise NotAllowed("pages of other origins may not use this server (mmserve serve --cors-origin allows one)")

    def _visit(self, scope: Scope, headers: Headers) -> Visit:
        made = scope.get(OWN)
        if isinstance(made, Visit):
            return made
        if self._keys is None:
            return Visit(admin=True, remote=self._remote)
        key, meter = _known(self._keys, headers)
        return Visit(key, meter, key.admin, self._remote)


def _known(keys: KeyRing, headers: Headers) -> tuple[Key, Meter]:
    presented = {value.strip() for value in headers.getlist("x-api-key")}
    for value in headers.getlist("authorization"):
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() == "bearer":
            presented.add(credentials.strip())
    if not presented:
        raise KeyRefused(f"this server wants an API key: {_HOW}")
    if len(presented) > 1:
        raise KeyRefused("the request has two different API keys: send one")
    found = keys.find(presented.pop())
    if found is None:
        raise KeyRefused(f"this API key is not known here, or not any more: {_HOW}")
    return found


def _enter(visit: Visit, counted: bool) -> None:
    if visit.key is None or visit.meter is None:
        return
    most, per_minute = visit.key.concurrency, visit.key.requests_per_minute
    wait = visit.meter.enter(most, per_minute, counted)
    if wait <= 0:
        return
    if most and visit.meter.running >= most:
        raise RateLimited(f"this API key may have {most} requests at a time: wait for one to end", retry_after=wait)
    raise RateLimited(
        f"this API key may send {per_minute} requests a minute: try again in {math.ceil(wait)} seconds",
        retry_after=wait,
    )


def _route(scope: Scope) -> str:
    """The path as the routes see it."""
    path, root = scope["path"], scope.get("root_path", "")
    assert isinstance(path, str)
    return path[len(root) :] if root and path.startswith(root + "/") else path
