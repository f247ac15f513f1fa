"""What the jobs of all batches share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.types import ASGIApp

from mmserve.config import BatchLimits
from mmserve.errors import StorageFull
from web.access.meter import Meter
from web.batches.disk import Disk
from web.batches.ledger import Ledger
from web.batches.store import FileStore
from web.operations.metrics import ServiceMetrics
from web.safety import Safety
from web.visit import Visit

T = TypeVar("T")

logger = logging.getLogger(__name__)

DISK_SECONDS = 5.0
"""Between two tries while the disk is full."""


class Closing(Exception):
    """The server is ending: what waits is left for the next start."""


class Interrupted(Exception):
    """The batch was ended by its owner or its time."""


class Owners:
    """Whose work is done, and how much of it a minute.

    A key's batches have counters of their own, with the key's limits: they leave its requests their room, and a batch
    that runs into a limit waits.
    """

    def __init__(self, safety: Safety) -> None:
        self._safety = safety
        self._meters: dict[str, Meter] = {}

    def visit(self, owner: str) -> Visit | None:
        """A request of ``owner``'s; ``None`` where nobody is let in by that name now."""
        keys, remote = self._safety.keys, self._safety.remote
        if keys is None:
            return None if owner else Visit(admin=True, remote=remote)
        key = keys.holder(owner)
        if key is None:
            return None
        return Visit(key, self._meters.setdefault(owner, Meter()), key.admin, remote)


@dataclass(slots=True, eq=False)
class Shared:
    """``app`` answers the requests; ``sleep`` waits for a number of seconds, and ``clock`` tells the Unix time.

    ``slots`` bounds how many requests run at a time, ``checking`` how many files are being checked.
    """

    app: ASGIApp
    ledger: Ledger
    store: FileStore
    disk: Disk
    limits: BatchLimits
    max_line: int
    owners: Owners
    metrics: ServiceMetrics
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    slots: asyncio.Semaphore = field(init=False)
    checking: asyncio.Semaphore = field(init=False)
    closing: asyncio.Event = field(init=False)
    waiting: int = 0

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.limits.concurrency)
        self.checking = asyncio.Semaphore(1)
        self.closing = asyncio.Event()

    async def pause(self, seconds: float, unless: asyncio.Event | None = None) -> None:
        """Raises ``Closing`` as soon as the server is ending, and ``Interrupted`` as soon as ``unless`` is set."""
        events = [self.closing] if unless is None else [self.closing, unless]
        wait = [asyncio.ensure_future(self.sleep(seconds)), *(asyncio.ensure_future(event.wait()) for event in events)]
        try:
            await asyncio.wait(wait, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in wait:
                each.cancel()
        if self.closing.is_set():
            raise Closing
        if unless is not None and unless.is_set():
            raise Interrupted

    async def patiently(self, work: Callable[[], Awaitable[T]], unless: asyncio.Event | None = None) -> T:
        """``work()``, again and again while the disk fails it or has no room. Raises as :meth:`pause` does.

        The log has a line when the first of all begins to wait, and one when none does any more.
        """
        waited = False
        try:
            while True:
                try:
                    return await work()
                except (StorageFull, OSError) as error:
                    if not waited:
                        waited = True
                        self.waiting += 1
                        if self.waiting == 1:
                            logger.error("batches wait, nothing of them is lost: %s", error.__cause__ or error)
                    await self.pause(DISK_SECONDS, unless)
        finally:
            if waited:
                self.waiting -= 1
                if not self.waiting and not self.closing.is_set():
                    logger.warning("no batch waits for the disk any more")
