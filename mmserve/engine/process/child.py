"""The engine's process: an ``EngineLoop`` between two threads that carry messages.

The reader takes what the parent sends and answers pings, whatever the engine does; when the pair ends, so does the
process, at once. The writer pickles and sends what the engine says, so that a parent that reads slowly never stops a
step. Events of one step are one message.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast

from mmserve.engine.children import ignore_signals
from mmserve.engine.loop import EngineLoop
from mmserve.engine.process.channel import ChannelClosed, encode, receive
from mmserve.engine.process.messages import (
    Abort,
    Close,
    Flush,
    Flushed,
    Forget,
    FromEngine,
    LoadFailed,
    Ping,
    Pong,
    Ready,
    Start,
    Stepped,
    Submit,
    ToEngine,
    pack,
)
from mmserve.engine.process.pictures import Kept
from mmserve.engine.process.recipe import Recipe
from mmserve.errors import MMServeError
from mmserve.trim import trim_often
from mmserve.types import TokenEvent

if TYPE_CHECKING:
    from mmserve.engine.engine import Engine

log = logging.getLogger(__name__)

STATS_SECONDS = 0.1
"""While answers are being written, the counters are sent so often; with every answer's end and before sleep, too."""


def main(descriptor: int) -> None:
    """Serve the parent at the other end of socket ``descriptor``; never returns."""
    ignore_signals()
    os.set_inheritable(descriptor, False)
    status = 1
    try:
        sock = socket.socket(fileno=descriptor)
        start = cast(Start, receive(sock))
        start.recipe.setup()
        trim_often()
        status = EngineServer(sock).run(start.recipe)
    except ChannelClosed:
        pass
    logging.shutdown()
    os._exit(status)  # nothing is left to be tidied up, and libraries' threads are not waited for


class EngineServer:
    """One engine for one parent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._outbox: SimpleQueue[FromEngine | None] = SimpleQueue()
        self._engine: Engine | None = None
        self._loop: EngineLoop | None = None
        self._pictures = Kept()
        self._closing = False
        self._stats_due = 0.0

    def run(self, recipe: Recipe) -> int:
        """Load, serve until the parent says ``Close`` or the loop fails; returns the process's exit status."""
        writer = threading.Thread(target=self._write, name="mmserve-writer", daemon=True)
        writer.start()
        threading.Thread(target=self._read, name="mmserve-reader", daemon=True).start()
        served = self._serve(recipe)
        self._outbox.put(None)
        writer.join()
        return 0 if served and self._closing else 1

    def _serve(self, recipe: Recipe) -> bool:
        try:
            self._engine = recipe.build()
        except MMServeError as error:
            self._outbox.put(LoadFailed(error))
            return False
        except Exception as error:
            log.exception("the engine could not be loaded")
            self._outbox.put(LoadFailed(MMServeError(f"the engine could not be loaded: {type(error).__name__}")))
            return False
        self._loop = EngineLoop(self._engine, self._deliver)
        self._outbox.put(Ready(self._engine.max_model_len, self._engine.stats()))
        self._loop.join()
        return True

    # -- what the engine's thread says --------------------------------------------------------------------------

    def _deliver(self, events: Sequence[TokenEvent]) -> None:
        assert self._engine is not None
        now = time.monotonic()
        stats = None
        if self._engine.idle or now >= self._stats_due or any(event.last for event in events):
            stats = self._engine.stats()
            self._stats_due = now + STATS_SECONDS
        if events or stats is not None:
            self._outbox.put(Stepped(pack(events), stats))

    # -- threads ------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Send until ``None`` comes."""
        while (message := self._outbox.get()) is not None:
            try:
                for piece in encode(message):
                    self._sock.sendall(piece)
            except OSError:
                os._exit(1)  # the parent has gone

    def _read(self) -> None:
        try:
            while True:
                self._take(cast(ToEngine, receive(self._sock)))
        except ChannelClosed:
            pass
        except BaseException:
            log.exception("a message of the server could not be read")
        os._exit(0 if self._closing else 1)  # nobody is there to answer: also in the middle of a step, or of loading

    def _take(self, message: ToEngine) -> None:
        loop = self._loop
        if isinstance(message, Ping):
            self._outbox.put(self._pong())
        elif isinstance(message, Close):
            self._closing = True
            if loop is None:
                os._exit(0)
            loop.stop()
        elif loop is None:
            raise AssertionError(f"{type(message).__name__} came before the engine was loaded")
        elif isinstance(message, Submit):
            loop.submit(self._pictures.complete(message.request))
        elif isinstance(message, Abort):
            loop.abort(message.request_id)
        elif isinstance(message, Forget):
            self._pictures.forget(message.contents)
        elif isinstance(message, Flush):
            self._flush(loop, message.number)

    def _pong(self) -> Pong:
        if self._loop is None or self._engine is None:
            return Pong()
        return Pong(self._loop.turns, self._engine.has_requests, self._engine.warm)

    def _flush(self, loop: EngineLoop, number: int) -> None:
        def done(flushed: Future[int]) -> None:
            if flushed.exception() is None:  # else the loop has ended, of which the parent hears
                self._outbox.put(Flushed(number, flushed.result()))

        with suppress(MMServeError):
            loop.flush().add_done_callback(done)
