"""Files and batches of a server, over one folder: what the routes ask for, and the work that goes on behind them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import shutil
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from starlette.types import ASGIApp

from mmserve.config import BatchLimits
from mmserve.errors import ConfigError, QueueFull, StorageFull
from web.batches.batchrows import (
    BatchRecord,
    begin_cancel,
    begin_expiry,
    count_by_status,
    count_unfinished,
    find_batch,
    forget_batches,
    insert_batch,
    list_batches,
    unfinished,
)
from web.batches.disk import Disk, RealDisk
from web.batches.filerows import find_file
from web.batches.job import Job
from web.batches.ledger import Ledger
from web.batches.shared import DISK_SECONDS, Closing, Owners, Shared
from web.batches.store import FileStore
from web.service import Service

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
AGAIN_SECONDS = 30.0
"""After a fault of ours in a job, before it is taken up again."""

_LINE_ROOM = 16 * 1024
"""What a line of an input file may have beside the request's body."""


class BatchService:
    """Owns ``folder`` until :meth:`close`; a second one on it is refused (``ConfigError``).

    Made outside of the event loop, since opening reads the disk; :meth:`start` begins the work that was left.
    """

    def __init__(
        self,
        folder: Path,
        limits: BatchLimits | None = None,
        *,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        temporary: bool = False,
    ) -> None:
        self.limits = limits or BatchLimits()
        self.clock = clock
        self._sleep = sleep
        self._disk = disk or RealDisk()
        self._folder = folder
        self._temporary = temporary
        self._jobs: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._shared: Shared | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(folder)
        except OSError as error:
            raise ConfigError(f"the data folder {folder} cannot be used: {error.strerror}") from error
        try:
            self._ledger = Ledger(folder / "ledger.sqlite3", self._disk)
            try:
                self.files = FileStore(folder, self._ledger, self._disk, self.limits, clock)
            except BaseException as error:
                self._ledger.close()
                if isinstance(error, OSError | sqlite3.Error):
                    raise ConfigError(f"the data folder {folder} cannot be used: {error}") from error
                raise
        except BaseException:
            self._lock.close()
            raise

    async def start(self, service: Service, app: ASGIApp) -> None:
        """Go on with what is unfinished. Each request of a batch is put to ``app``."""
        self._shared = Shared(
            app,
            self._ledger,
            self.files,
            self._disk,
            self.limits,
            service.limits.max_body_bytes + _LINE_ROOM,
            Owners(service.safety),
            service.metrics,
            self.clock,
            self._sleep,
        )
        left = await self._ledger.read(unfinished)
        if left:
            logger.info("%d batches are taken up again", len(left))
        for batch in left:
            self._begin(batch.id)
        await self._count()
        self._sweeper = _apart(self._sweep_often)

    async def close(self, seconds: float = 5.0) -> None:
        """End the work: what runs has ``seconds`` to come to its end and be written, and the rest is for the next
        start. May be called again."""
        if self._shared is not None:
            self._shared.closing.set()
        tasks = [task for _, task in self._jobs.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._ledger.close)
        self._lock.close()
        if self._temporary:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)

    # -- what routes ask for ----------------------------------------------------------------------------------------

    async def create(self, batch: BatchRecord) -> BatchRecord:
        """Take a batch on. Raises ``FileNotKept`` for its input file, ``QueueFull`` and ``StorageFull``."""

        def enter(db: sqlite3.Connection) -> BatchRecord:
            find_file(db, batch.owner, batch.input_id, self.clock(), "input_file_id")
            if count_unfinished(db) >= self.limits.max_batches:
                raise QueueFull(f"{self.limits.max_batches} batches are unfinished here: wait for one to end")
            return insert_batch(db, batch)

        entered = await self._ledger.write(enter)
        if self._shared is not None and not self._shared.closing.is_set():
            self._begin(entered.id)
        await self._count()
        return entered

    async def get(self, owner: str, id_: str) -> BatchRecord:
        """Raises ``BatchNotFound``."""
        return await self._ledger.read(lambda db: find_batch(db, owner, id_))

    async def page(self, owner: str, *, after: str | None, limit: int) -> tuple[Sequence[BatchRecord], bool]:
        """Batches, the newest first, and whether there are more. Raises ``InvalidField``."""
        return await self._ledger.read(lambda db: list_batches(db, owner, after=after, limit=limit))

    async def cancel(self, owner: str, id_: str) -> BatchRecord:
        """Raises ``BatchNotFound`` and ``BatchEnded``."""
        batch = await self._ledger.write(lambda db: begin_cancel(db, owner, id_, self.clock()))
        self._interrupt([id_])
        await self._count()
        return batch

    # -- behind them ------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """End what has expired, remove what is not needed. Raises ``StorageFull`` and ``OSError``."""
        now = self.clock()
        self._interrupt(await self._ledger.write(lambda db: begin_expiry(db, now)))
        await self.files.expire()
        await self._ledger.write(lambda db: forget_batches(db, now - self.limits.ended_seconds))
        await self._ledger.read(lambda db: db.execute("PRAGMA incremental_vacuum(1000)").fetchall())
        await self._count()

    async def settled(self) -> None:
        """Returns once no batch is under way."""
        while self._jobs:
            await asyncio.wait([task for _, task in self._jobs.values()])

    def _begin(self, id_: str) -> None:
        assert self._shared is not None
        job = Job(self._shared, id_)
        task = _apart(partial(self._carry, job, id_))
        self._jobs[id_] = (job, task)

    async def _carry(self, job: Job, id_: str) -> None:
        assert self._shared is not None
        try:
            while True:
                try:
                    await job.run()
                    break
                except Closing:
                    raise
                except Exception:
                    logger.exception("batch %s met a fault and is taken up again", id_)
                    await self._shared.pause(AGAIN_SECONDS)
            await self.files.purge()
            await self._count()
        except Closing:
            pass
        except (StorageFull, OSError):  # the sweeper purges too
            logger.info("batch %s has ended; what it leaves is removed later", id_)
        finally:
            self._jobs.pop(id_, None)

    def _interrupt(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            if id_ in self._jobs:
                self._jobs[id_][0].interrupt()

    async def _sweep_often(self) -> None:
        assert self._shared is not None
        complained = False
        with contextlib.suppress(Closing):
            while True:
                try:
                    await self.sweep()
                    complained = False
                except Exception as error:
                    if not complained:
                        logger.error("files and batches that have expired stay for now: %s", error)
                    complained = True
                await self._shared.pause(DISK_SECONDS if complained else SWEEP_SECONDS)

    async def _count(self) -> None:
        if self._shared is not None:
            counts: Mapping[str, int] = await self._ledger.read(count_by_status)
            self._shared.metrics.batches.set(counts)


def _apart(work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """A task that knows nothing of the request that led to it: it works for whom the ledger says.

    It makes its coroutine itself, so that none is left over where it is cancelled before it began."""

    async def run() -> None:
        await work()

    return asyncio.get_running_loop().create_task(run(), context=contextvars.Context())


def _lock(folder: Path) -> IO[bytes]:
    """Held as long as the file is open, also where the process is killed. Raises ``ConfigError``."""
    file = open(folder / "lock", "ab")  # noqa: SIM115
    if sys.platform == "win32":  # no flock there; two servers on one folder are then not noticed
        return file
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(
            f"another server uses the data folder {folder}: give each one of its own (--data-folder)"
        ) from error
    except OSError:  # a file system without locks
        pass
    return file
