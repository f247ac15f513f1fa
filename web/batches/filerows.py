"""Files as the ledger has them. Functions take its connection; those that write are called in a transaction.

A deleted file is gone for its owner at once. Its bytes stay until no batch reads them any more, and its row for a day
longer, so that a caller who deletes while listing can go on from it.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmserve.errors import FileNotKept, InvalidField

UNFINISHED = "('validating', 'in_progress', 'finalizing', 'cancelling')"

_COLUMNS = "id, owner, purpose, filename, bytes, created_at, expires_at"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file. ``owner`` is a key's identity, or empty; times are Unix times in seconds."""

    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None

    def to_json(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"


def insert_file(db: sqlite3.Connection, file: FileRecord) -> None:
    values = (file.id, file.owner, file.purpose, file.filename, file.bytes, file.created_at, file.expires_at)
    db.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def find_file(db: sqlite3.Connection, owner: str, id_: str, now: float, param: str | None = None) -> FileRecord:
    """Raises ``FileNotKept``, with ``param`` as the field at fault; another owner's file is as none."""
    row = db.execute(
        f"SELECT {_COLUMNS} FROM files WHERE id = ? AND owner = ? AND deleted_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > ?)",
        (id_, owner, now),
    ).fetchone()
    if row is None:
        raise FileNotKept(f"no file called {id_[:64]!r} is kept here, or not any more: upload it", param=param)
    return FileRecord(*row)


def list_files(
    db: sqlite3.Connection,
    owner: str,
    now: float,
    *,
    purpose: str | None,
    after: str | None,
    limit: int,
    newest_first: bool,
) -> tuple[Sequence[FileRecord], bool]:
    """A page of files, and whether there are more. Raises ``InvalidField`` for an ``after`` that is no file's."""
    sign, order = ("<", "DESC") if newest_first else (">", "ASC")
    where, values = ["owner = ?", "deleted_at IS NULL", "(expires_at IS NULL OR expires_at > ?)"], [owner, now]
    if purpose is not None:
        where.append("purpose = ?")
        values.append(purpose)
    if after is not None:
        where.append(f"seq {sign} ?")
        values.append(cursor(db, "files", owner, after))
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM files WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?", (*values, limit + 1)
    ).fetchall()
    return [FileRecord(*row) for row in rows[:limit]], len(rows) > limit


def cursor(db: sqlite3.Connection, table: str, owner: str, after: str) -> int:
    """Where a list goes on from. Raises ``InvalidField``."""
    row = db.execute(f"SELECT seq FROM {table} WHERE id = ? AND owner = ?", (after, owner)).fetchone()
    if row is None:
        raise InvalidField(f"after names {after[:64]!r}, which is not in this list; begin the list anew", param="after")
    return int(row[0])


def hide_file(db: sqlite3.Connection, id_: str, now: float) -> None:
    """Nobody sees the file any more; its bytes are for :func:`unneeded`."""
    db.execute("UPDATE files SET deleted_at = ? WHERE id = ? AND deleted_at IS NULL", (int(now), id_))


def hide_expired(db: sqlite3.Connection, now: float) -> None:
    db.execute("UPDATE files SET deleted_at = ? WHERE deleted_at IS NULL AND expires_at <= ?", (int(now), now))


def unneeded(db: sqlite3.Connection, limit: int = 1000) -> list[str]:
    """Ids of deleted files whose bytes are there still and which no unfinished batch reads."""
    rows = db.execute(
        "SELECT id FROM files WHERE purged = 0 AND deleted_at IS NOT NULL AND NOT EXISTS ("
        f"SELECT 1 FROM batches WHERE input_id = files.id AND status IN {UNFINISHED}) LIMIT ?",
        (limit,),
    )
    return [row[0] for row in rows]


def mark_purged(db: sqlite3.Connection, ids: Sequence[str]) -> None:
    db.executemany("UPDATE files SET purged = 1 WHERE id = ?", [(id_,) for id_ in ids])


def forget_files(db: sqlite3.Connection, before: float) -> None:
    """Drop the rows of files whose bytes are gone and which were deleted before ``before``."""
    db.execute("DELETE FROM files WHERE purged = 1 AND deleted_at < ?", (before,))


def kept_ids(db: sqlite3.Connection) -> set[str]:
    """Ids of all files that have bytes: those of rows, and those that unfinished batches write."""
    found = {row[0] for row in db.execute("SELECT id FROM files WHERE purged = 0")}
    for row in db.execute(f"SELECT output_id, error_id FROM batches WHERE status IN {UNFINISHED}"):
        found |= {row[0], row[1]}
    return found


def bytes_kept(db: sqlite3.Connection) -> int:
    """Bytes of all files, and of the answers of unfinished batches."""
    (files,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM files WHERE purged = 0").fetchone()
    (answers,) = db.execute(
        f"SELECT coalesce(sum(output_bytes + error_bytes), 0) FROM batches WHERE status IN {UNFINISHED}"
    ).fetchone()
    return int(files) + int(answers)
