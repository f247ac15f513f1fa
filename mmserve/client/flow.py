"""What to do next: when a request is sent, sent again, waited for and given up. No I/O and no clock of its own.

A flow is a generator. It yields steps (:class:`Send`, :class:`Read`, :class:`Sleep`); whoever runs it carries them out
and sends back the result, or throws the ``httpx.RequestError`` that came of it; the generator's return value is the
flow's. The sync and the async client run the same flows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import httpx

from mmserve.client import calls
from mmserve.client.calls import Call
from mmserve.client.kept import Kept
from mmserve.client.pictures import PictureHandle
from mmserve.client.refusals import error_from_response, error_from_transport, retry_after
from mmserve.errors import EngineUnavailable, MMServeError, PictureNotKept, QueueFull

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; the result is the ``httpx.Response``, its body not read yet."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Read:
    """Read a response's body and close it; no result."""

    response: httpx.Response


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait; no result."""

    seconds: float


Step: TypeAlias = Send | Read | Sleep
Flow: TypeAlias = Generator[Step, Any, T]

LONGEST_WAIT = 60.0
"""Seconds; a server that asks by Retry-After for more than this is not waited for."""

_POLL = 0.25


def backoff(attempt: int) -> float:
    """Seconds to wait after failed attempt 0, 1, 2, …: half a second, doubled each time up to 8 s.

    A random part, up to half, is taken off, so that clients that failed together do not come back together.
    """
    return min(8.0, 0.5 * 2.0 ** min(attempt, 10)) * (1.0 - 0.5 * random.random())


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is sent again, and the wait (seconds) after attempt 0, 1, 2, …

    A request is sent again when no connection could be made, when the connection broke before the head of a reply
    had come (asking changes nothing on the server, so the worst is work done twice), and when the reply is 429 or
    503, after the time that its Retry-After names. It is not sent again after a timeout, since the server may still
    be at work on it, nor once a reply has begun.
    """

    limit: int
    wait: Callable[[int], float] = backoff

    def after_error(self, attempt: int, error: httpx.RequestError) -> float | None:
        """Seconds until the next attempt; None to give up."""
        if attempt >= self.limit or not isinstance(error, httpx.ConnectTimeout | httpx.NetworkError | _DISCONNECTED):
            return None
        return self.wait(attempt)

    def after_reply(self, attempt: int, response: httpx.Response) -> float | None:
        """Seconds until the next attempt; None to give up."""
        if attempt >= self.limit or response.status_code not in (429, 503):
            return None
        asked = retry_after(response.headers)
        if asked is None:
            return self.wait(attempt)
        return max(asked, self.wait(attempt)) if asked <= LONGEST_WAIT else None


# A server that closes an idle connection just as it is used again: "disconnected without sending a response".
_DISCONNECTED = httpx.RemoteProtocolError


def exchange(call: Call[T], retries: Retries, base_url: str, kept: Kept | None = None) -> Flow[httpx.Response]:
    """Send ``call`` until it is answered: returns a 2xx reply, read unless the call is streamed.

    Handles in it are sent to be kept first, where they are not in ``kept`` yet, and once more where the server has
    dropped them. Raises the typed error of the last refusal, or EngineUnavailable when there was no whole reply.
    """
    if kept is None or not call.handles:
        return (yield from _exchange(call, retries, base_url))
    yield from _keep(call.handles, retries, base_url, kept)
    try:
        return (yield from _exchange(call.referring(kept.reference), retries, base_url))
    except PictureNotKept:
        kept.forget(call.handles)
    yield from _keep(call.handles, retries, base_url, kept)
    return (yield from _exchange(call.referring(kept.reference), retries, base_url))


def _keep(handles: Iterable[PictureHandle], retries: Retries, base_url: str, kept: Kept) -> Flow[None]:
    for handle in kept.unknown(handles):
        try:
            kept.note(handle, (yield from fetch(calls.keep(handle), retries, base_url)))
        except (QueueFull, EngineUnavailable):
            raise
        except MMServeError:  # a server that keeps nothing, or not this; the bytes go with the question
            kept.note(handle, None)


def _exchange(call: Call[T], retries: Retries, base_url: str) -> Flow[httpx.Response]:
    attempt = 0
    while True:
        try:
            response: httpx.Response = yield Send(call)
        except httpx.RequestError as error:
            delay = retries.after_error(attempt, error)
            if delay is None:
                raise error_from_transport(error, base_url) from error
        else:
            if not (call.streamed and response.is_success):
                yield from _read(response, base_url)
            if response.is_success:
                return response
            delay = retries.after_reply(attempt, response)
            if delay is None:
                raise error_from_response(response)
        yield Sleep(delay)
        attempt += 1


def _read(response: httpx.Response, base_url: str) -> Flow[None]:
    try:
        yield Read(response)
    except httpx.RequestError as error:
        raise error_from_transport(error, base_url) from error


def fetch(call: Call[T], retries: Retries, base_url: str, kept: Kept | None = None) -> Flow[T]:
    """Send ``call`` as :func:`exchange` does, and read its reply."""
    response = yield from exchange(call, retries, base_url, kept)
    return call.read(response)


def wait_ready(timeout: float, clock: Callable[[], float], base_url: str) -> Flow[None]:
    """Ask for the server's health until it is well; raises EngineUnavailable after ``timeout`` seconds."""
    deadline = clock() + timeout
    while True:
        left = max(deadline - clock(), 0.01)
        try:
            yield from fetch(calls.health(timeout=min(left, 5.0)), Retries(0), base_url)
            return
        except EngineUnavailable as error:
            left = deadline - clock()
            if left <= 0:
                raise EngineUnavailable(f"not ready after {timeout:g} s: {error.message}") from error
        yield Sleep(min(_POLL, left))
