"""A batch's requests as the ledger has them: where each stands in the input file, and whether it has its answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """A request: line number ``number`` (from 1) of the input file, its ``length`` bytes from ``at`` on."""

    number: int
    at: int
    length: int
    custom_id: str


def add_lines(db: sqlite3.Connection, batch: int, lines: Sequence[Line]) -> list[Line]:
    """Add lines to the batch with this ``seq``; returns those whose ``custom_id`` an earlier one has."""
    twice = []
    for line in lines:
        added = db.execute(
            "INSERT OR IGNORE INTO lines (batch, line, at, length, custom_id) VALUES (?, ?, ?, ?, ?)",
            (batch, line.number, line.at, line.length, line.custom_id),
        )
        if not added.rowcount:
            twice.append(line)
    return twice


def waiting_lines(db: sqlite3.Connection, batch: int, after: int, limit: int) -> list[Line]:
    """Lines without an answer behind line ``after``, in order."""
    rows = db.execute(
        "SELECT line, at, length, custom_id FROM lines WHERE batch = ? AND answered = 0 AND line > ?"
        " ORDER BY line LIMIT ?",
        (batch, after, limit),
    )
    return [Line(*row) for row in rows]


def is_waiting(db: sqlite3.Connection, batch: int, number: int) -> bool:
    row = db.execute("SELECT 1 FROM lines WHERE batch = ? AND line = ? AND answered = 0", (batch, number)).fetchone()
    return row is not None


def mark_answered(db: sqlite3.Connection, batch: int, numbers: Sequence[int]) -> None:
    db.executemany("UPDATE lines SET answered = 1 WHERE batch = ? AND line = ?", [(batch, n) for n in numbers])


def drop_lines(db: sqlite3.Connection, batch: int) -> None:
    db.execute("DELETE FROM lines WHERE batch = ?", (batch,))
