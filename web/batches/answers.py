"""A batch's answers on their way to the disk: each exists once, whatever happens in between.

The bytes are appended and synced first, then the ledger says in one transaction that the lines are answered and how
long the files are. What a crash leaves behind that length is cut off, and those lines are waiting still.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from web.batches.batchrows import BatchRecord, get_batch
from web.batches.disk import Disk
from web.batches.dispatch import Outcome
from web.batches.ledger import Ledger
from web.batches.linerows import is_waiting, mark_answered


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of line ``number``."""

    number: int
    outcome: Outcome


def keep(
    db: sqlite3.Connection, disk: Disk, path: Callable[[str], Path], batch_id: str, answers: Sequence[Answer]
) -> int:
    """Write those of ``answers`` whose lines are waiting, within a transaction; returns how many these were."""
    batch = get_batch(db, batch_id)
    fresh = list({answer.number: answer for answer in answers if is_waiting(db, batch.seq, answer.number)}.values())
    if not fresh:
        return 0
    done = [answer.outcome for answer in fresh if answer.outcome.ok]
    failed = [answer.outcome for answer in fresh if not answer.outcome.ok]
    output = _append(disk, path(batch.output_id), batch.output_bytes, done)
    errors = _append(disk, path(batch.error_id), batch.error_bytes, failed)
    mark_answered(db, batch.seq, [answer.number for answer in fresh])
    _count(db, batch, output, errors, done, failed)
    return len(fresh)


def _append(disk: Disk, path: Path, at: int, outcomes: Sequence[Outcome]) -> int:
    """Returns where the file ends now."""
    if not outcomes:
        return at
    data = b"".join(outcome.data for outcome in outcomes)
    disk.extend(path, at, data)
    disk.sync(path)
    if at == 0:
        disk.sync_folder(path.parent)
    return at + len(data)


def _count(
    db: sqlite3.Connection,
    batch: BatchRecord,
    output: int,
    errors: int,
    done: Sequence[Outcome],
    failed: Sequence[Outcome],
) -> None:
    db.execute(
        "UPDATE batches SET output_bytes = ?, error_bytes = ?, completed = completed + ?, failed = failed + ?,"
        " input_tokens = input_tokens + ?, cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ?"
        " WHERE id = ?",
        (
            output,
            errors,
            len(done),
            len(failed),
            sum(outcome.input_tokens for outcome in done),
            sum(outcome.cached_tokens for outcome in done),
            sum(outcome.output_tokens for outcome in done),
            batch.id,
        ),
    )


class Recorder:
    """One batch's answers; those that come while others are being written are written together."""

    def __init__(self, ledger: Ledger, disk: Disk, path: Callable[[str], Path], batch_id: str) -> None:
        self._ledger = ledger
        self._write: Callable[[sqlite3.Connection, Sequence[Answer]], int] = lambda db, answers: keep(
            db, disk, path, batch_id, answers
        )
        self._waiting: list[tuple[Answer, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def record(self, answer: Answer) -> None:
        """Returns once the answer lasts; it is written also where the caller is cancelled meanwhile. Raises
        ``StorageFull`` and ``OSError``, and then nothing was written."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._run())
        await done

    async def settle(self) -> None:
        """Returns once nothing is being written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _run(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            error: Exception | None = None
            try:
                await self._ledger.write(lambda db, taken=taken: self._write(db, [answer for answer, _ in taken]))  # type: ignore[misc]
            except Exception as raised:
                error = raised
            for _, done in taken:
                if done.done():  # its caller was cancelled
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)
