"""Batches as the ledger has them. Functions take its connection; those that write are called in a transaction.

::

    validating ──> in_progress ──> finalizing ──> completed | expired
        │  │           │
        │  └───────────┴─────────> cancelling ──> cancelled
        └─> failed                                              (a batch may also expire while it is validating)
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from mmserve.errors import BatchEnded, BatchNotFound
from web.batches.filerows import UNFINISHED, cursor

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})

Ending: TypeAlias = Literal["completed", "expired", "cancelled"]

_TIMES = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch. Times are Unix times in seconds; ``metadata`` and ``errors`` are JSON.

    ``output_bytes`` and ``error_bytes`` are how much of the two files of answers is promised; ``ending`` is what a
    batch that is being finished will be.
    """

    id: str
    owner: str
    endpoint: str
    input_id: str
    completion_window: str
    metadata: str | None
    output_seconds: int | None
    model: str | None
    created_at: int
    expires_at: int
    output_id: str
    error_id: str
    seq: int = 0
    status: str = "validating"
    ending: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_bytes: int = 0
    error_bytes: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    errors: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in FINAL

    def to_json(self) -> dict[str, Any]:
        """OpenAI's batch object. Its files are named once they are complete."""
        shown = self.status in FINAL
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": None if self.errors is None else {"object": "list", "data": json.loads(self.errors)},
            "input_file_id": self.input_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_id if shown and self.output_bytes else None,
            "error_file_id": self.error_id if shown and self.error_bytes else None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{name: getattr(self, name) for name in _TIMES},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": None if self.metadata is None else json.loads(self.metadata),
            "usage": {
                "input_tokens": self.input_tokens,
                "input_tokens_details": {"cached_tokens": self.cached_tokens},
                "output_tokens": self.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.input_tokens + self.output_tokens,
            },
        }


_FIELDS = tuple(field.name for field in fields(BatchRecord))
_COLUMNS = ", ".join(_FIELDS)


def new_batch_id() -> str:
    return f"batch_{uuid.uuid4().hex}"


def insert_batch(db: sqlite3.Connection, batch: BatchRecord) -> BatchRecord:
    """Returns it with its place in the order."""
    names = [name for name in _FIELDS if name != "seq"]
    marks = ", ".join("?" * len(names))
    db.execute(f"INSERT INTO batches ({', '.join(names)}) VALUES ({marks})", [getattr(batch, name) for name in names])
    return get_batch(db, batch.id)


def get_batch(db: sqlite3.Connection, id_: str) -> BatchRecord:
    """Whoever's it is. Raises ``BatchNotFound``."""
    row = db.execute(f"SELECT {_COLUMNS} FROM batches WHERE id = ?", (id_,)).fetchone()
    if row is None:
        raise BatchNotFound(f"there is no batch called {id_[:64]!r} here")
    return BatchRecord(**dict(row))


def find_batch(db: sqlite3.Connection, owner: str, id_: str) -> BatchRecord:
    """Raises ``BatchNotFound``; another owner's batch is as none."""
    batch = get_batch(db, id_)
    if batch.owner != owner:
        raise BatchNotFound(f"there is no batch called {id_[:64]!r} here")
    return batch


def list_batches(
    db: sqlite3.Connection, owner: str, *, after: str | None, limit: int
) -> tuple[Sequence[BatchRecord], bool]:
    """A page of batches, the newest first, and whether there are more. Raises ``InvalidField`` for ``after``."""
    before = 2**62 if after is None else cursor(db, "batches", owner, after)
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM batches WHERE owner = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
        (owner, before, limit + 1),
    ).fetchall()
    return [BatchRecord(**dict(row)) for row in rows[:limit]], len(rows) > limit


def unfinished(db: sqlite3.Connection) -> list[BatchRecord]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM batches WHERE status IN {UNFINISHED} ORDER BY seq")
    return [BatchRecord(**dict(row)) for row in rows]


def count_unfinished(db: sqlite3.Connection) -> int:
    return int(db.execute(f"SELECT count(*) FROM batches WHERE status IN {UNFINISHED}").fetchone()[0])


def count_by_status(db: sqlite3.Connection) -> dict[str, int]:
    return {row[0]: row[1] for row in db.execute("SELECT status, count(*) FROM batches GROUP BY status")}


def begin_work(db: sqlite3.Connection, batch: BatchRecord, total: int, now: float) -> None:
    """Its lines are complete and right. Nothing, where it was ended meanwhile."""
    db.execute(
        "UPDATE batches SET status = 'in_progress', in_progress_at = ?, total = ?"
        " WHERE id = ? AND status = 'validating'",
        (int(now), total, batch.id),
    )


def fail(db: sqlite3.Connection, batch: BatchRecord, errors: Sequence[Mapping[str, Any]], now: float) -> None:
    """It cannot be done. Nothing, where it was ended meanwhile."""
    changed = db.execute(
        f"UPDATE batches SET status = 'failed', failed_at = ?, errors = ? WHERE id = ? AND status IN {UNFINISHED}",
        (int(now), json.dumps(errors), batch.id),
    )
    if changed.rowcount:
        db.execute("DELETE FROM lines WHERE batch = ?", (batch.seq,))


def begin_end(db: sqlite3.Connection, batch: BatchRecord, now: float) -> None:
    """All its lines are answered. Nothing, where it was ended meanwhile, or some line is not."""
    db.execute(
        "UPDATE batches SET status = 'finalizing', ending = 'completed', finalizing_at = ?"
        " WHERE id = ? AND status = 'in_progress'"
        " AND NOT EXISTS (SELECT 1 FROM lines WHERE batch = ? AND answered = 0)",
        (int(now), batch.id, batch.seq),
    )


def begin_expiry(db: sqlite3.Connection, now: float) -> list[str]:
    """End the batches whose time is over; returns their ids."""
    rows = db.execute(
        "UPDATE batches SET status = 'finalizing', ending = 'expired', finalizing_at = ?"
        " WHERE status IN ('validating', 'in_progress') AND expires_at <= ? RETURNING id",
        (int(now), now),
    ).fetchall()
    return [row[0] for row in rows]


def begin_cancel(db: sqlite3.Connection, owner: str, id_: str, now: float) -> BatchRecord:
    """End a batch for its owner, who may ask again. Raises ``BatchNotFound`` and ``BatchEnded``."""
    batch = find_batch(db, owner, id_)
    if batch.status in ("cancelling", "cancelled"):
        return batch
    if batch.status not in ("validating", "in_progress"):
        raise BatchEnded(f"the batch is {batch.status}, and only one that runs can be cancelled")
    db.execute(
        "UPDATE batches SET status = 'cancelling', ending = 'cancelled', cancelling_at = ? WHERE id = ?",
        (int(now), id_),
    )
    return get_batch(db, id_)


def end(db: sqlite3.Connection, batch: BatchRecord, now: float) -> None:
    """The batch is what its ``ending`` says; its lines are dropped. ``ending`` is one of ``Ending``."""
    assert batch.ending in ("completed", "expired", "cancelled")
    db.execute(f"UPDATE batches SET status = ?, {batch.ending}_at = ? WHERE id = ?", (batch.ending, int(now), batch.id))
    db.execute("DELETE FROM lines WHERE batch = ?", (batch.seq,))


def forget_batches(db: sqlite3.Connection, before: float) -> None:
    """Drop the rows of batches that ended before ``before``."""
    db.execute(
        "DELETE FROM batches WHERE coalesce(completed_at, failed_at, expired_at, cancelled_at) < ?"
        f" AND status NOT IN {UNFINISHED}",
        (before,),
    )
