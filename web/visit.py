"""What holds for one HTTP request wherever its work is done: whose it is, and what it has fetched.

It is a context variable, and not an argument of every route, so that no route can forget it: what is a key's own
(cached work, kept pictures, names to abort by) is kept apart below the routes. Tasks and threads that a request starts
inherit it. Work of the server itself has none and shares nothing with any key; work that goes on for a key after its
request has ended takes it up again with :func:`acting`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from mmserve.errors import InvalidField, NotAllowed, PictureTooLarge, RateLimited
from mmserve.keys import Key
from web.access.meter import Entry, Meter

T = TypeVar("T")


class Fetcher(Protocol):
    """``web.remote.RemotePictures``."""

    @property
    def max_request_bytes(self) -> int: ...

    async def fetch(self, address: str, where: str) -> bytes: ...


class PictureWanted(Exception):
    """The picture at ``address`` must be fetched before the work can be done; see :func:`fetching`."""

    def __init__(self, address: str, where: str) -> None:
        super().__init__(address)
        self.address = address
        self.where = where


@dataclass(slots=True, eq=False)
class Visit:
    """One request. ``key`` is ``None`` where the server has no keys, and for what needs none."""

    key: Key | None = None
    meter: Meter | None = None
    admin: bool = False
    remote: Fetcher | None = None
    _charged: list[Entry] = field(default_factory=list)
    _fetched: dict[str, bytes] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Names whose things are whose; empty where there are no keys."""
        return "" if self.key is None else self.key.identity

    @property
    def cache_root(self) -> str:
        """What stands before the caller's own cache salt: no two keys of different groups have the same."""
        if self.key is None:
            return ""
        group = self.key.cache_group
        return f"group/{group}/" if group else f"key/{self.key.identity}/"

    def charge_picture(self) -> None:
        """Count a picture. Raises ``RateLimited`` where it is one too many, and then none of this request's count."""
        if self.key is None or self.meter is None:
            return
        limit = self.key.pictures_per_minute
        wait = self.meter.take_picture(self._charged, limit)
        if wait == math.inf:
            raise RateLimited(
                f"this API key may send {limit} pictures a minute, and this request has more: send fewer at a time",
                retry_after=60.0,
                hopeless=True,
            )
        if wait > 0:
            raise RateLimited(
                f"this API key may send {limit} pictures a minute: try again in {math.ceil(wait)} seconds",
                retry_after=wait,
            )

    def remote_picture(self, address: str, where: str) -> bytes:
        """What :func:`fetching` has brought from ``address``. Raises ``PictureWanted`` where it has not yet."""
        if self.remote is None:
            raise InvalidField(
                "pictures at remote addresses are off on this server; send the picture itself as a data URI, "
                '"data:image/jpeg;base64,..."',
                param=where,
            )
        if address not in self._fetched:
            raise PictureWanted(address, where)
        return self._fetched[address]

    async def fetching(self, work: Callable[[], Awaitable[T]]) -> T:
        """``work()``, begun anew after each remote picture that it turns out to want.

        Raises as ``RemotePictures.fetch`` does, and ``PictureTooLarge`` where a request's pictures are too much.
        """
        while True:
            mark = len(self._charged)
            try:
                return await work()
            except PictureWanted as wanted:
                if self.meter is not None:
                    self.meter.give_back(self._charged[mark:])
                del self._charged[mark:]
                assert self.remote is not None
                data = await self.remote.fetch(wanted.address, wanted.where)
                most = self.remote.max_request_bytes
                if sum(map(len, self._fetched.values())) + len(data) > most:
                    raise PictureTooLarge(
                        f"the remote pictures of a request may have at most {most} bytes together: name fewer",
                        param=wanted.where,
                    ) from None
                self._fetched[wanted.address] = data


_NOBODY = Visit()
_current: ContextVar[Visit] = ContextVar("visit", default=_NOBODY)


def visit() -> Visit:
    """The request at hand; outside of one, a visit that owns nothing and may fetch nothing."""
    return _current.get()


@contextmanager
def acting(visit: Visit) -> Iterator[None]:
    """Within this, work is done for ``visit``."""
    token = _current.set(visit)
    try:
        yield
    finally:
        _current.reset(token)


def require_admin(what: str) -> None:
    """Raises ``NotAllowed`` where the request at hand came with a key that is no admin's."""
    if not visit().admin:
        raise NotAllowed(f"{what} needs an admin's API key (mmserve keys add --admin)")
