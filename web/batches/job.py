"""One batch from its first state to its last. Whatever ends a job in between, another goes on from the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections import deque
from pathlib import Path
from typing import Any

from mmserve.errors import InvalidField
from web.batches.answers import Answer, Recorder, keep
from web.batches.batchrows import BatchRecord, begin_end, begin_work, end, fail, get_batch
from web.batches.dispatch import Outcome, Reply, body_of, not_done, outcome_of, post, refused
from web.batches.filerows import FileRecord, insert_file
from web.batches.linerows import Line, add_lines, drop_lines, waiting_lines
from web.batches.shared import Closing, Interrupted, Shared
from web.batches.validation import MAX_ERRORS, Chunk, Fault, read_chunk, twice
from web.visit import Visit

logger = logging.getLogger(__name__)

FEED = 64
"""Lines that are taken from the ledger at a time."""

FILL = 256
"""Lines that are written off at a time."""

LONGEST_WAIT = 30.0
NOBODY_SECONDS = 30.0

_WRITTEN_OFF = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed before the batch was cancelled."),
}


class Job:
    """``interrupt`` tells it that the ledger has ended its batch."""

    def __init__(self, shared: Shared, batch_id: str) -> None:
        self._shared = shared
        self._id = batch_id
        self._interrupted = asyncio.Event()
        self._recorder = Recorder(shared.ledger, shared.disk, shared.store.path, batch_id)

    def interrupt(self) -> None:
        self._interrupted.set()

    async def run(self) -> None:
        """Returns when the batch has ended. Raises ``Closing`` when the server does."""
        while True:
            batch = await self._batch()
            if batch.ended:
                return
            if self._shared.closing.is_set():
                raise Closing
            if batch.status == "validating":
                with contextlib.suppress(Interrupted):
                    await self._validate(batch)
            elif batch.status == "in_progress":
                await self._work(batch)
            else:
                await self._finish(batch)

    async def _batch(self) -> BatchRecord:
        return await self._shared.patiently(lambda: self._shared.ledger.read(lambda db: get_batch(db, self._id)))

    # -- validating -------------------------------------------------------------------------------------------------

    async def _validate(self, batch: BatchRecord) -> None:
        shared = self._shared
        path = shared.store.path(batch.input_id)
        async with shared.checking:
            await shared.patiently(lambda: shared.ledger.write(lambda db: drop_lines(db, batch.seq)))
            faults: list[Fault] = []
            total = 0
            begin: tuple[int, int] | None = (0, 1)
            while begin is not None and len(faults) < MAX_ERRORS and not self._interrupted.is_set():
                if shared.closing.is_set():
                    raise Closing
                chunk, again = await self._take_in(batch, path, begin)
                faults += sorted((*chunk.faults, *map(twice, again)), key=lambda fault: fault.line or 0)
                total += len(chunk.lines)
                begin = chunk.end
                if total > shared.limits.max_batch_requests:
                    most = shared.limits.max_batch_requests
                    faults.append(Fault("too_many_tasks", f"A batch may have at most {most} requests; split the file."))
                    break
        if self._interrupted.is_set():
            return
        if not total and not faults:
            faults.append(Fault("empty_file", "The file has no requests."))
        await shared.patiently(lambda: shared.ledger.write(lambda db: self._judge(db, batch, total, faults)))

    async def _take_in(self, batch: BatchRecord, path: Path, begin: tuple[int, int]) -> tuple[Chunk, list[Line]]:
        """The lines from ``begin`` on, in the ledger now, and those whose ``custom_id`` was there before."""
        shared = self._shared
        chunk = await shared.patiently(
            lambda: asyncio.to_thread(read_chunk, path, begin, batch.endpoint, shared.max_line), self._interrupted
        )
        again = await shared.patiently(
            lambda: shared.ledger.write(lambda db: add_lines(db, batch.seq, chunk.lines)), self._interrupted
        )
        return chunk, again

    def _judge(self, db: sqlite3.Connection, batch: BatchRecord, total: int, faults: list[Fault]) -> None:
        now = self._shared.clock()
        if faults:
            fail(db, batch, [fault.to_json() for fault in faults[:MAX_ERRORS]], now)
        else:
            begin_work(db, batch, total, now)

    # -- in progress ------------------------------------------------------------------------------------------------

    async def _work(self, batch: BatchRecord) -> None:
        feed = _Feed(self._shared, batch)
        count = min(self._shared.limits.concurrency, batch.total)
        workers = [asyncio.create_task(self._worker(batch, feed)) for _ in range(count)]
        over = asyncio.create_task(self._interrupted.wait())
        everything = asyncio.gather(*workers)
        first: set[asyncio.Future[Any]] = {everything, over}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if self._interrupted.is_set():
                return
            await everything
        finally:
            for task in (*workers, over):
                task.cancel()
            await asyncio.gather(*workers, over, everything, return_exceptions=True)
            await self._recorder.settle()
        shared = self._shared
        await shared.patiently(lambda: shared.ledger.write(lambda db: begin_end(db, batch, shared.clock())))

    async def _worker(self, batch: BatchRecord, feed: _Feed) -> None:
        # When the server ends, what the other workers have under way may come to its end.
        with contextlib.suppress(Closing):
            while (line := await feed.next()) is not None:
                outcome = await self._ask(batch, line)
                await self._record(Answer(line.number, outcome))

    async def _record(self, answer: Answer) -> None:
        await self._shared.patiently(lambda: self._recorder.record(answer))
        self._shared.metrics.batch_requests.add("completed" if answer.outcome.ok else "failed")

    async def _ask(self, batch: BatchRecord, line: Line) -> Outcome:
        """Until there is an answer. Raises ``Closing`` between two tries."""
        shared, tries = self._shared, 0
        while True:
            visit = shared.owners.visit(batch.owner)
            if visit is None:
                await shared.pause(NOBODY_SECONDS)
                continue
            try:
                reply = await shared.patiently(lambda visit=visit: self._try(batch, line, visit))  # type: ignore[misc]
            except InvalidField as error:
                return refused(line.custom_id, error)
            if not reply.worth_another_try:
                return await asyncio.to_thread(outcome_of, line.custom_id, reply)
            tries += 1
            await shared.pause(max(reply.retry_after or 1.0, min(2.0 ** min(tries - 1, 10), LONGEST_WAIT)))

    async def _try(self, batch: BatchRecord, line: Line, visit: Visit) -> Reply:
        """Once. Raises ``InvalidField`` and ``OSError``."""
        shared = self._shared
        path = shared.store.path(batch.input_id)
        async with shared.slots:
            if shared.closing.is_set():
                raise Closing
            body = await asyncio.to_thread(lambda: body_of(_read(path, line)))
            return await post(shared.app, batch.endpoint, body, visit, f"{batch.id}/{line.number}")

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self, batch: BatchRecord) -> None:
        shared = self._shared
        # Of a file that was not checked to its end no request was begun, and which there are is not known.
        while batch.in_progress_at is not None:
            lines = await shared.patiently(lambda: shared.ledger.read(lambda db: waiting_lines(db, batch.seq, 0, FILL)))
            if not lines:
                break
            await self._write_off(batch, lines)
        await shared.patiently(lambda: shared.ledger.write(lambda db: _close(db, batch.id, shared.clock())))

    async def _write_off(self, batch: BatchRecord, lines: list[Line]) -> None:
        shared, ending = self._shared, batch.ending or ""
        answers = [Answer(line.number, not_done(line.custom_id, *_WRITTEN_OFF[ending])) for line in lines]
        written = await shared.patiently(
            lambda: shared.ledger.write(lambda db: keep(db, shared.disk, shared.store.path, batch.id, answers))
        )
        shared.metrics.batch_requests.add(ending, amount=written)


class _Feed:
    """The lines that wait, each to one worker. Raises ``Closing`` when the server ends."""

    def __init__(self, shared: Shared, batch: BatchRecord) -> None:
        self._shared = shared
        self._batch = batch
        self._ready: deque[Line] = deque()
        self._last = 0
        self._lock = asyncio.Lock()

    async def next(self) -> Line | None:
        async with self._lock:
            if self._shared.closing.is_set():
                raise Closing
            if not self._ready:
                shared, seq, last = self._shared, self._batch.seq, self._last
                found = await shared.patiently(
                    lambda: shared.ledger.read(lambda db: waiting_lines(db, seq, last, FEED))
                )
                self._ready.extend(found)
            if not self._ready:
                return None
            line = self._ready.popleft()
            self._last = line.number
            return line


def _read(path: os.PathLike[str], line: Line) -> bytes:
    with open(path, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), line.length, line.at)
    if len(data) != line.length:
        raise OSError(f"{path} has lost what line {line.number} of it was")
    return data


def _close(db: sqlite3.Connection, batch_id: str, now: float) -> None:
    """The files of answers appear, in the same transaction in which the batch ends."""
    batch = get_batch(db, batch_id)
    expires_at = None if batch.output_seconds is None else int(now) + batch.output_seconds
    for id_, size, what in (
        (batch.output_id, batch.output_bytes, "output"),
        (batch.error_id, batch.error_bytes, "error"),
    ):
        if size:
            name = f"{batch.id}_{what}.jsonl"
            insert_file(db, FileRecord(id_, batch.owner, "batch_output", name, size, int(now), expires_at))
    end(db, batch, now)
