"""The callers' side of an engine: who may ask, and where each request's events go. No torch."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mmserve.engine.limits import resolve_limits
from mmserve.errors import MMServeError, QueueFull
from mmserve.types import Request, TokenEvent


class Backend(Protocol):
    """What computes requests, and hands their events to ``Mailboxes.deliver``."""

    @property
    def failure(self) -> MMServeError | None:
        """Why nothing is answered any more. Set before the mailboxes are told to ``refuse_all``."""

    async def submit(self, request: Request, /) -> None:
        """Take a request whose limits are resolved and whose seed is set. Its errors may also come as its event."""

    def abort(self, request_id: str, /) -> None:
        """Forget a request; thread safe."""


@dataclass(slots=True, eq=False)
class _Mailbox:
    """Where a request's events go: a queue of the event loop that waits for them."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[TokenEvent] = field(default_factory=asyncio.Queue)


class Mailboxes:
    """At most ``max_queue`` requests are under way at a time; one more raises ``QueueFull``."""

    def __init__(self, backend: Backend, *, max_model_len: int, max_queue: int) -> None:
        self._backend = backend
        self.max_model_len = max_model_len
        self._max_queue = max_queue
        self._mailboxes: dict[str, _Mailbox] = {}
        self._open = 0

    async def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """What ``EngineClient.generate`` promises."""
        if self._backend.failure is not None:
            raise self._backend.failure
        if self._open >= self._max_queue:
            raise QueueFull(f"{self._open} requests wait already, the most this server queues; try again later")
        request = resolve_limits(_with_seed(request), self.max_model_len)
        if request.id in self._mailboxes:
            raise ValueError(f"a request with id {request.id!r} is under way already")
        mailbox = _Mailbox(asyncio.get_running_loop())
        self._open += 1
        ended = False
        self._mailboxes[request.id] = mailbox
        try:
            await self._backend.submit(request)
            if self._backend.failure is not None:  # it ended while this was sent, perhaps before it could be refused
                raise self._backend.failure
            while not ended:
                event = await mailbox.events.get()
                ended = event.last
                if event.error is not None:
                    raise event.error
                yield event
        finally:
            self._open -= 1
            self._mailboxes.pop(request.id, None)
            if not ended:
                self._backend.abort(request.id)

    def deliver(self, events: Sequence[TokenEvent]) -> None:
        """Hand a step's events over, with one wake-up for each event loop. Thread safe."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Mailbox, TokenEvent]]] = {}
        for event in events:
            mailbox = self._mailboxes.get(event.request_id)
            if mailbox is not None:
                by_loop.setdefault(mailbox.loop, []).append((mailbox, event))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # the caller's event loop is closed: nobody waits for these any more
                for _, event in batch:
                    self._mailboxes.pop(event.request_id, None)
                    self._backend.abort(event.request_id)

    def refuse_all(self, failure: MMServeError) -> None:
        """End every request that is under way with ``failure``. Thread safe."""
        self.deliver([TokenEvent(request_id, error=failure) for request_id in list(self._mailboxes)])


def _put_all(batch: Sequence[tuple[_Mailbox, TokenEvent]]) -> None:
    for mailbox, event in batch:
        mailbox.events.put_nowait(event)


def _with_seed(request: Request) -> Request:
    if request.sampling.seed is not None:
        return request
    return dataclasses.replace(request, sampling=request.sampling.replace(seed=random.getrandbits(63)))
