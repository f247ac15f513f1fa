"""The ledger: what files and batches there are, and which of a batch's requests have their answer. SQLite.

All access is in one thread of its own, a transaction at a time, so that no two decisions are taken on the same state.
``synchronous=FULL``: what a transaction says has survived a loss of power once :meth:`Ledger.write` returns.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mmserve.errors import ConfigError, StorageFull
from web.batches.disk import NO_ROOM, Disk

T = TypeVar("T")

VERSION = 1

_SCHEMA = (
    """CREATE TABLE files (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        purpose TEXT NOT NULL,
        filename TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        deleted_at INTEGER,
        purged INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX files_by_owner ON files (owner, seq)",
    "CREATE INDEX files_by_end ON files (purged, deleted_at, expires_at)",
    """CREATE TABLE batches (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        input_id TEXT NOT NULL,
        completion_window TEXT NOT NULL,
        metadata TEXT,
        output_seconds INTEGER,
        model TEXT,
        status TEXT NOT NULL DEFAULT 'validating',
        ending TEXT,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        in_progress_at INTEGER,
        finalizing_at INTEGER,
        completed_at INTEGER,
        failed_at INTEGER,
        expired_at INTEGER,
        cancelling_at INTEGER,
        cancelled_at INTEGER,
        total INTEGER NOT NULL DEFAULT 0,
        completed INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0,
        output_id TEXT NOT NULL,
        output_bytes INTEGER NOT NULL DEFAULT 0,
        error_id TEXT NOT NULL,
        error_bytes INTEGER NOT NULL DEFAULT 0,
        input_tokens INTEGER NOT NULL DEFAULT 0,
        cached_tokens INTEGER NOT NULL DEFAULT 0,
        output_tokens INTEGER NOT NULL DEFAULT 0,
        errors TEXT
    )""",
    "CREATE INDEX batches_by_owner ON batches (owner, seq)",
    "CREATE INDEX batches_by_status ON batches (status)",
    "CREATE INDEX batches_by_input ON batches (input_id)",
    """CREATE TABLE lines (
        batch INTEGER NOT NULL,
        line INTEGER NOT NULL,
        at INTEGER NOT NULL,
        length INTEGER NOT NULL,
        custom_id TEXT NOT NULL,
        answered INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (batch, line),
        UNIQUE (batch, custom_id)
    ) WITHOUT ROWID""",
    "CREATE INDEX lines_waiting ON lines (batch, line) WHERE answered = 0",
)


class Ledger:
    """Owns the database at ``path`` and the thread that reads and writes it. Raises ``ConfigError`` where the database
    cannot be opened or is not one of ours."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "ledger")
        try:
            self._db = self._thread.submit(self._open).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise ConfigError(f"the ledger {path} cannot be used: {error}") from error
        except BaseException:
            self._thread.shutdown()
            raise

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # means something to a new database only
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._transaction(db, _create)
            elif version != VERSION:
                raise ConfigError(f"the ledger {self._path} is of version {version}, and this server knows {VERSION}")
        except BaseException:
            db.close()
            raise
        return db

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work(db)`` in the ledger's thread, for a query. Raises ``StorageFull`` where the disk fails it."""
        return await self._run(lambda: work(self._db))

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work(db)`` in a transaction, which lasts when this returns. Where it raises, nothing was done.

        Raises ``StorageFull`` where there is no room. It is done also where the caller is cancelled meanwhile.
        """
        return await self._run(lambda: self._transaction(self._db, work))

    def write_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``write``, before there is an event loop."""
        return self._thread.submit(lambda: self._transaction(self._db, work)).result()

    def close(self) -> None:
        """After what was begun. May be called again."""
        if not self._closed:
            self._closed = True
            self._thread.submit(self._db.close).result()
            self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _typed, work)

    def _transaction(self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        db.execute("BEGIN IMMEDIATE")
        try:
            result = work(db)
            self._disk.commit(db)
        except BaseException:
            if db.in_transaction:  # SQLite has ended it by itself after some failures
                db.execute("ROLLBACK")
            raise
        return result


def _create(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")


def _typed(work: Callable[[], T]) -> T:
    try:
        return work()
    except sqlite3.OperationalError as error:
        # SQLite says of EFBIG and failing devices alike that there was an I/O error.
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            raise no_room() from error
        raise
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room() from error
        raise


def no_room() -> StorageFull:
    """What a caller is told whose file does not fit on the disk."""
    return StorageFull("the server's disk is full: try again when there is room on it")
