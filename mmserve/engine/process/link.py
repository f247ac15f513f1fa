"""EngineLink: the server's end of one engine process, from its start to its end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import subprocess
import time
from asyncio import Future
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Self, cast

from mmserve.engine.children import describe_exit, spawn
from mmserve.engine.mailboxes import Mailboxes
from mmserve.engine.process.channel import ChannelClosed, encode, receive_from
from mmserve.engine.process.media import Sent
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
    Stats,
    Stepped,
    Submit,
    ToEngine,
    unpack,
)
from mmserve.engine.process.recipe import Recipe
from mmserve.engine.process.watchdog import Watchdog
from mmserve.errors import EngineUnavailable, MMServeError
from mmserve.types import Request, TokenEvent

log = logging.getLogger(__name__)

LOADING_SECONDS = 120.0
"""While the model is loaded, the process need not answer more often: imports hold it up."""

END_SECONDS = 5.0
"""For the engine to end when it is asked to; then it is killed."""

_MODULE = "mmserve.engine.process"
_REAP_SECONDS = 10.0
_READ_AHEAD = 1 << 20


class EngineLink:
    """One process, for the event loop that started it. ``max_queue`` is as for ``LocalEngineClient``.

    When the process ends, all that is under way on it gets ``EngineUnavailable`` at once. A process that stands still
    for ``watchdog_seconds`` (0: for ever) is killed.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        max_queue: int,
        watchdog_seconds: float,
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._max_queue, self._watchdog_seconds = max_queue, watchdog_seconds
        self._watchdog = Watchdog(max(watchdog_seconds, LOADING_SECONDS), time.monotonic())
        self._loaded: Future[Mailboxes] = asyncio.get_running_loop().create_future()
        self._numbers = itertools.count()
        self._flushes: dict[int, Future[int]] = {}
        self._requests: dict[str, Request] = {}
        self._sent = Sent()
        self._reason: str | None = None
        self.failure: MMServeError | None = None
        self.stats: Stats = {}
        """The last that the engine sent."""
        self._life = asyncio.create_task(self._live())

    @classmethod
    async def start(cls, recipe: Recipe, *, max_queue: int, watchdog_seconds: float) -> Self:
        """A process whose engine is loaded. Raises what ``recipe.build`` raises, and ``EngineUnavailable`` where the
        process ends before it is ready; it is gone then, and when this is cancelled."""
        ours, theirs = socket.socketpair()
        try:
            process = spawn(_MODULE, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=_READ_AHEAD)
        link = cls(process, reader, writer, max_queue=max_queue, watchdog_seconds=watchdog_seconds)
        try:
            link._send(Start(recipe))
            await asyncio.shield(link._loaded)
        except BaseException:
            link._loaded.cancel()
            process.kill()
            await link.ended()
            raise
        return link

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def max_model_len(self) -> int:
        return self._loaded.result().max_model_len

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """What ``EngineClient.generate`` promises."""
        return self._loaded.result().generate(request)

    async def submit(self, request: Request, /) -> None:
        self._requests[request.id] = request
        self._send(Submit(self._sent.lighten(request)))
        try:
            await self._writer.drain()
        except OSError:
            raise self.failure or _ended() from None

    def abort(self, request_id: str, /) -> None:
        self._send(Abort(request_id))
        self._over(request_id)

    async def flush(self) -> int:
        if self.failure is not None:
            raise self.failure
        number = next(self._numbers)
        done: Future[int] = asyncio.get_running_loop().create_future()
        self._flushes[number] = done
        self._send(Flush(number))
        try:
            return await done
        finally:
            self._flushes.pop(number, None)

    def stop(self) -> None:
        """End the process; what is under way gets ``EngineUnavailable``. ``ended`` returns soon after."""
        self._refuse(EngineUnavailable("the engine has stopped"))
        self._send(Close())
        asyncio.get_running_loop().call_later(END_SECONDS, self._process.kill)

    async def ended(self) -> str:
        """Returns once the process is gone: why."""
        return await asyncio.shield(self._life)

    # -- the life of the process --------------------------------------------------------------------------------

    async def _live(self) -> str:
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                self._take(cast(FromEngine, await receive_from(self._reader)))
        except ChannelClosed:
            pass
        except Exception:
            log.exception("a message of the engine could not be read")
        self._refuse(_ended())
        watching.cancel()
        self._process.kill()
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, _REAP_SECONDS)
        reason = self._reason or describe_exit(self._process.returncode)
        if not self._loaded.done():
            self._loaded.set_exception(
                EngineUnavailable(f"the engine's process did not come to load the model: {reason}")
            )
        return reason

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Stepped):
            if message.stats is not None:
                self.stats = message.stats
            events = unpack(message.packed)
            for event in events:
                if event.last:
                    self._over(event.request_id)
            self._loaded.result().deliver(events)
        elif isinstance(message, Pong):
            self._watchdog.heard(message, time.monotonic())
        elif isinstance(message, Flushed):
            if (done := self._flushes.get(message.number)) is not None and not done.done():
                done.set_result(message.tokens)
        elif isinstance(message, Ready) and not self._loaded.done():
            self.stats = message.stats
            self._watchdog = Watchdog(self._watchdog_seconds, time.monotonic())
            self._loaded.set_result(Mailboxes(self, max_model_len=message.max_model_len, max_queue=self._max_queue))
        elif isinstance(message, LoadFailed) and not self._loaded.done():
            self._loaded.set_exception(message.error)

    async def _watch(self) -> None:
        pause = min(5.0, self._watchdog_seconds / 8) or 5.0
        while True:
            before = time.monotonic()
            self._send(Ping())
            await asyncio.sleep(pause)
            now = time.monotonic()
            if now - before > 2 * pause + 1:  # it was this process that stood still
                self._watchdog.pardon(now)
            verdict = self._watchdog.verdict(now) if self._watchdog_seconds else None
            if verdict is not None:
                self._reason = f"{verdict}, so that it was killed"
                self._process.kill()
            if self._process.poll() is not None:  # a process that it started may still hold its end of the pair
                self._writer.transport.abort()

    def _send(self, message: ToEngine) -> None:
        """Never blocks; what does not fit into the pair waits in this process."""
        if not self._writer.is_closing():
            for piece in encode(message):
                self._writer.write(piece)

    def _over(self, request_id: str) -> None:
        request = self._requests.pop(request_id, None)
        if request is not None and (gone := self._sent.ended(request)):
            self._send(Forget(gone))

    def _refuse(self, failure: MMServeError) -> None:
        if self.failure is not None:
            return
        self.failure = failure
        if self._loaded.done() and not self._loaded.cancelled() and self._loaded.exception() is None:
            self._loaded.result().refuse_all(failure)
        for done in self._flushes.values():
            if not done.done():
                done.set_exception(failure)


def _ended() -> EngineUnavailable:
    return EngineUnavailable("the engine has ended and is being started again; ask again in a moment")
