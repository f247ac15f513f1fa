"""EngineLoop: the engine in a thread, for callers in other threads or in another process. Loads no torch itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from mmserve.errors import EngineUnavailable, MMServeError
from mmserve.types import Request, TokenEvent

if TYPE_CHECKING:
    from mmserve.engine.engine import Engine
    from mmserve.grammar.compiler import CompiledGrammar

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Expect:
    """A request that comes once its constraint is compiled, unless it is aborted before."""

    request_id: str


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request
    grammar: Future[CompiledGrammar] | None = None


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


_Message: TypeAlias = _Expect | _Add | _Abort | _Flush | _Wake | _Stop


class EngineLoop:
    """Steps ``engine`` in a thread of its own, which starts at once and ends with ``stop``; it then closes the engine.

    ``deliver`` is called in that thread after every step with its events, often none; where it finds the engine idle,
    the loop is about to sleep. Every request that was taken ends with a last event or is aborted. When a step raises,
    the loop ends, ``failure`` says so and those that are left get it as theirs. All methods are thread safe.
    """

    def __init__(self, engine: Engine, deliver: Callable[[Sequence[TokenEvent]], None]) -> None:
        self._engine = engine
        self._deliver = deliver
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._taken: set[str] = set()
        self.failure: MMServeError | None = None
        self.turns = 0
        """How often the engine was stepped, whether it computed or not: what a watchdog looks at."""
        engine.on_wake = lambda: self._inbox.put(_Wake())
        self._thread = threading.Thread(target=self._run, name="mmserve-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self.failure is None and self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Take a resolved request; its constraint is compiled before, in a thread of the engine's."""
        if request.constraint is None:
            self._inbox.put(_Add(request))
            return
        self._inbox.put(_Expect(request.id))
        try:
            # Shared by all who ask for it, so it goes on when this caller leaves.
            grammar = self._engine.compile(request.constraint, request.sampling.max_tokens)
        except MMServeError as error:
            grammar = Future()
            grammar.set_exception(error)
        grammar.add_done_callback(lambda compiled: self._inbox.put(_Add(request, compiled)))

    def abort(self, request_id: str) -> None:
        self._inbox.put(_Abort(request_id))

    def flush(self) -> Future[int]:
        """What ``Engine.flush`` returns, once it is done; the future raises ``EngineUnavailable``."""
        message = _Flush(Future())
        self._inbox.put(message)
        if self.failure is not None:
            message.done.cancel()
            raise self.failure
        return message.done

    def stop(self) -> None:
        self._inbox.put(_Stop())

    def join(self) -> None:
        """Returns when the loop has ended and the engine is closed."""
        self._thread.join()

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failure = EngineUnavailable("the engine has stopped")
        try:
            while self._take_messages():
                events = self._engine.step()
                self.turns += 1
                self._hand_over(events)
        except Exception as error:
            log.exception("the engine's loop failed")
            failure = EngineUnavailable(f"the engine has failed: {type(error).__name__}")
            if isinstance(error, EngineUnavailable):
                failure = error
        finally:
            self.failure = failure
            self._refuse_all(failure)  # before the engine is closed, which may take its time
            self._engine.close()
            self._refuse_all(failure)  # what came meanwhile

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
            if isinstance(message, _Expect):
                self._taken.add(message.request_id)
            elif isinstance(message, _Add):
                self._add(message)
            elif isinstance(message, _Flush):
                if message.done.set_running_or_notify_cancel():
                    message.done.set_result(self._engine.flush())
            elif isinstance(message, _Abort):
                self._taken.discard(message.request_id)
                self._engine.abort(message.request_id)

    def _add(self, message: _Add) -> None:
        request_id = message.request.id
        if message.grammar is not None and request_id not in self._taken:
            return  # aborted while its constraint was compiled
        self._taken.add(request_id)
        try:
            self._engine.add(message.request, None if message.grammar is None else message.grammar.result())
        except MMServeError as error:
            self._hand_over([TokenEvent(request_id, error=error)])
        except Exception as error:
            log.exception("a request could not be added")
            failure = MMServeError(f"the engine could not take the request: {type(error).__name__}")
            self._hand_over([TokenEvent(request_id, error=failure)])

    def _hand_over(self, events: Sequence[TokenEvent]) -> None:
        self._taken.difference_update(event.request_id for event in events if event.last)
        self._deliver(events)

    def _refuse_all(self, failure: MMServeError) -> None:
        while True:
            try:
                message = self._inbox.get(block=False)
            except Empty:
                break
            if isinstance(message, _Add):
                self._taken.add(message.request.id)
            elif isinstance(message, _Abort):
                self._taken.discard(message.request_id)
            elif isinstance(message, _Flush) and message.done.set_running_or_notify_cancel():
                message.done.set_exception(failure)
        self._hand_over([TokenEvent(request_id, error=failure) for request_id in self._taken])
