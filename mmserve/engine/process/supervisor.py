"""Supervisor: there is an engine process, and when it ends there is another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, TypeAlias

from mmserve.engine.metrics import TOTALS, unfinished
from mmserve.engine.process.link import EngineLink
from mmserve.errors import MMServeError

log = logging.getLogger(__name__)


Starter: TypeAlias = Callable[[], Awaitable[EngineLink]]
"""Starts a process, and returns when its engine is loaded."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long to wait before the next start, in seconds: ``first``, doubled each time up to ``most``. An engine that
    lived for ``steady`` is started again at once, and makes the count begin anew."""

    first: float = 0.5
    most: float = 30.0
    steady: float = 60.0

    def delay(self, failures: int) -> float:
        """After so many short lives in a row."""
        return min(self.most, self.first * 2.0 ** min(failures - 1, 32)) if failures else 0.0


class Supervisor:
    """Owns the process. ``link`` is the one that answers now, ``None`` while there is none."""

    def __init__(self, starter: Starter, first: EngineLink, back_off: BackOff) -> None:
        self._starter = starter
        self._back_off = back_off
        self.link: EngineLink | None = first
        self.max_model_len = first.max_model_len
        """In tokens: what the engine's memory holds, or the last engine's held."""
        self.restarts = 0
        self._closing = False
        self._totals: dict[str, float] = {}
        self._task = asyncio.create_task(self._keep(first))

    @classmethod
    async def start(cls, starter: Starter, back_off: BackOff | None = None) -> Self:
        """Raises what the first start raises: an engine that cannot be loaded is no engine to wait for."""
        return cls(starter, await starter(), back_off or BackOff())

    def stats(self) -> Mapping[str, float]:
        """The engine's last, and ``engine_restarts``. Totals go on from those of the engines before, and never fall;
        what was in an engine that ended counts as failed. While there is no engine there are no gauges."""
        now = {} if self.link is None else self.link.stats
        return {**now, **self._with_totals(now), "engine_restarts": float(self.restarts)}

    async def close(self) -> None:
        """End the process and start none. May be called again."""
        self._closing = True
        if self.link is not None:
            self.link.stop()
        else:
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.shield(self._task)

    def _with_totals(self, now: Mapping[str, float]) -> dict[str, float]:
        known = TOTALS & (self._totals.keys() | now.keys())
        return {name: self._totals.get(name, 0.0) + now.get(name, 0.0) for name in known}

    async def _keep(self, link: EngineLink) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            reason = await link.ended()
            self._totals = self._with_totals(link.stats)
            if lost := unfinished(link.stats):
                self._totals["requests_failed"] = self._totals.get("requests_failed", 0.0) + lost
            self.link = None
            if self._closing:
                return
            ended = time.monotonic()
            failures = 0 if ended - began >= self._back_off.steady else failures + 1
            log.error("the engine's process has ended: %s. Its requests got an error; it is started again", reason)
            link = await self._again(failures)
            log.warning("the engine answers again, %.1f s after its process ended", time.monotonic() - ended)

    async def _again(self, failures: int) -> EngineLink:
        """Another process, however often that takes."""
        while True:
            await asyncio.sleep(self._back_off.delay(failures))
            self.restarts += 1
            try:
                self.link = link = await self._starter()
                self.max_model_len = link.max_model_len
                return link
            except MMServeError as error:
                log.error("the engine could not be started, which is tried for ever: %s", error)
            except Exception:  # no memory for a process, for instance
                log.exception("the engine could not be started, which is tried for ever")
            failures += 1
