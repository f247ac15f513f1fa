"""The operations that make something last, in one place: their order is what recovery relies on, and tests break it."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Protocol

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full disk, a quota, and a limit on the size of a file (``RLIMIT_FSIZE``)."""


class Disk(Protocol):
    """Each raises ``OSError``, and ``commit`` ``sqlite3.Error``; each returns when it is done."""

    def extend(self, path: Path, at: int, data: bytes) -> None:
        """Make ``data`` the bytes of the file from ``at`` on, and its end; not yet lasting. The file is made where
        ``at`` is 0; it must have at least ``at`` bytes. A failure leaves the first ``at`` bytes as they were."""

    def sync(self, path: Path) -> None:
        """The file's bytes last; its name may not."""

    def sync_folder(self, folder: Path) -> None:
        """The folder's names last."""

    def move(self, source: Path, target: Path) -> None:
        """Another name for a file."""

    def remove(self, path: Path) -> None:
        """Remove a file, where there is one."""

    def commit(self, db: sqlite3.Connection) -> None:
        """What was done since the transaction began lasts."""


class RealDisk:
    """The operating system's."""

    def extend(self, path: Path, at: int, data: bytes) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (0 if at else os.O_CREAT), 0o600)
        try:
            if os.fstat(handle).st_size < at:
                raise OSError(errno.EIO, f"the file has fewer than {at} bytes, which were written before", str(path))
            os.ftruncate(handle, at)
            try:
                rest, end = memoryview(data), at
                while rest:
                    written = os.pwrite(handle, rest, end)
                    rest, end = rest[written:], end + written
            except OSError:
                os.ftruncate(handle, at)  # gives the room back to others
                raise
        finally:
            os.close(handle)

    def sync(self, path: Path) -> None:
        _fsync(path, os.O_RDWR)

    def sync_folder(self, folder: Path) -> None:
        _fsync(folder, os.O_RDONLY)

    def move(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            path.unlink()

    def commit(self, db: sqlite3.Connection) -> None:
        db.execute("COMMIT")


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
