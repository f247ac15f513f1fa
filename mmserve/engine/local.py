"""LocalEngineClient: the engine in a thread of this process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from mmserve.engine.engine import Engine
from mmserve.engine.limits import check_budget
from mmserve.errors import EngineUnavailable, MMServeError, QueueFull
from mmserve.grammar.compiler import CompiledGrammar
from mmserve.types import Request, TokenEvent

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Mailbox:
    """Where a request's events go: a queue of the event loop that waits for them."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[TokenEvent]


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request
    mailbox: _Mailbox
    grammar: CompiledGrammar | None


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Flush:
    done: Future[int]


class _Wake:
    """Nothing to do but look again."""


class _Stop:
    """End the loop."""


class LocalEngineClient:
    """An ``EngineClient`` whose engine runs in a thread, which starts at once and ends with ``close``.

    At most ``max_queue`` requests are in the engine at a time; one more raises ``QueueFull``.
    """

    def __init__(self, engine: Engine, *, max_queue: int = 4096) -> None:
        self._engine = engine
        self._max_queue = max_queue
        self._inbox: SimpleQueue[_Add | _Abort | _Flush | _Wake | _Stop] = SimpleQueue()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._open = 0
        self._failure: MMServeError | None = None
        engine.on_wake = lambda: self._inbox.put(_Wake())
        self._thread = threading.Thread(target=self._loop, name="mmserve-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._failure is None and self._thread.is_alive()

    def stats(self) -> Mapping[str, float]:
        return self._engine.stats()

    async def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        if self._failure is not None:
            raise self._failure
        if self._open >= self._max_queue:
            raise QueueFull(f"{self._open} requests wait already, the most this server queues; try again later")
        request = self._engine.resolve(_with_seed(request))
        mailbox = _Mailbox(asyncio.get_running_loop(), asyncio.Queue())
        self._open += 1
        ended = True
        try:
            grammar = await self._compiled(request)
            self._inbox.put(_Add(request, mailbox, grammar))
            ended = False
            if self._failure is not None:  # the loop ended while this was sent, perhaps before it could be refused
                raise self._failure
            while not ended:
                event = await mailbox.events.get()
                ended = event.last
                if event.error is not None:
                    raise event.error
                yield event
        finally:
            self._open -= 1
            if not ended:
                self._inbox.put(_Abort(request.id))

    async def _compiled(self, request: Request) -> CompiledGrammar | None:
        if request.constraint is None:
            return None
        # Shielded: the compile is shared, and goes on for others when this caller leaves.
        grammar = await asyncio.shield(
            asyncio.wrap_future(self._engine.compile(request.constraint, request.sampling.max_tokens))
        )
        check_budget(request, len(grammar.completion))
        return grammar

    async def flush(self) -> int:
        message = _Flush(Future())
        self._inbox.put(message)
        if self._failure is not None:
            raise self._failure
        return await asyncio.wrap_future(message.done)

    async def close(self) -> None:
        self._inbox.put(_Stop())
        await asyncio.to_thread(self._thread.join)

    # -- the engine's thread ------------------------------------------------------------------------------------

    def _loop(self) -> None:
        failure = EngineUnavailable("the engine has stopped")
        try:
            while self._take_messages():
                self._deliver(self._engine.step())
        except Exception as error:
            log.exception("the engine's loop failed")
            failure = EngineUnavailable(f"the engine has failed: {type(error).__name__}")
            if isinstance(error, EngineUnavailable):
                failure = error
        finally:
            self._failure = failure
            self._engine.close()
            self._refuse_all(failure)

    def _take_messages(self) -> bool:
        """Handle what callers sent, waiting for something while the engine can do nothing; False to stop."""
        block = self._engine.idle
        while True:
            try:
                message = self._inbox.get(block=block)
            except Empty:
                return True
            block = False
            self._engine.idle = False
            if isinstance(message, _Stop):
                return False
            if isinstance(message, _Add):
                self._add(message)
            elif isinstance(message, _Flush):
                message.done.set_result(self._engine.flush())
            elif isinstance(message, _Abort):
                self._mailboxes.pop(message.request_id, None)
                self._engine.abort(message.request_id)

    def _add(self, message: _Add) -> None:
        self._mailboxes[message.request.id] = message.mailbox
        try:
            self._engine.add(message.request, message.grammar)
        except Exception as error:
            log.exception("a request could not be added")
            failure = MMServeError(f"the engine could not take the request: {type(error).__name__}")
            self._deliver([TokenEvent(message.request.id, error=failure)])

    def _deliver(self, events: list[TokenEvent]) -> None:
        """Hand a step's events over, with one wake-up for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Mailbox, TokenEvent]]] = {}
        for event in events:
            mailbox = self._mailboxes.get(event.request_id)
            if mailbox is None:
                continue
            if event.last:
                del self._mailboxes[event.request_id]
            by_loop.setdefault(mailbox.loop, []).append((mailbox, event))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # the caller's event loop is closed: nobody waits for these any more
                for _, event in batch:
                    self._mailboxes.pop(event.request_id, None)
                    self._engine.abort(event.request_id)

    def _refuse_all(self, failure: MMServeError) -> None:
        while True:
            try:
                message = self._inbox.get(block=False)
            except Empty:
                break
            if isinstance(message, _Add):
                self._mailboxes[message.request.id] = message.mailbox
            elif isinstance(message, _Flush):
                message.done.set_exception(failure)
        self._deliver([TokenEvent(request_id, error=failure) for request_id in list(self._mailboxes)])


def _put_all(batch: list[tuple[_Mailbox, TokenEvent]]) -> None:
    for mailbox, event in batch:
        mailbox.events.put_nowait(event)


def _with_seed(request: Request) -> Request:
    if request.sampling.seed is not None:
        return request
    return dataclasses.replace(request, sampling=request.sampling.replace(seed=random.getrandbits(63)))
