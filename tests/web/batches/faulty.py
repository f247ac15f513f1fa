"""Disks that break: one that loses power, and one that is full."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from web.batches.disk import RealDisk


class PowerLoss(BaseException):
    """Nothing catches it; after it nothing reaches the disk."""


@dataclass
class DyingDisk:
    """Loses power before the ``dies_at``-th operation (from 0), or in the middle of it where it can be cut.

    What was written and not synced is lost from the byte on that ``torn`` says (a part of it, 0 to 1); names that were
    not synced are lost where ``lose_names``.
    """

    dies_at: int | None = None
    torn: float = 0.0
    lose_names: bool = True
    operations: list[str] = field(default_factory=list)
    dead: bool = False
    _real: RealDisk = field(default_factory=RealDisk)
    _synced: dict[Path, int] = field(default_factory=dict)
    _new_names: dict[Path, Path | None] = field(default_factory=dict)

    def _step(self, name: str) -> None:
        if self.dead:
            raise PowerLoss
        if len(self.operations) == self.dies_at:
            self._die()
        self.operations.append(name)

    def _die(self) -> None:
        self.dead = True
        for path, synced in self._synced.items():
            if path.exists():
                size = path.stat().st_size
                with path.open("r+b") as file:
                    file.truncate(min(size, synced + int((size - synced) * self.torn)))
        if self.lose_names:
            for name, before in self._new_names.items():
                if before is None:
                    name.unlink(missing_ok=True)
                elif name.exists():
                    name.replace(before)
        raise PowerLoss

    def extend(self, path: Path, at: int, data: bytes) -> None:
        self._step("extend")
        if not path.exists():
            self._new_names.setdefault(path, None)
        self._synced[path] = min(at, self._synced.get(path, at))
        self._real.extend(path, at, data)

    def sync(self, path: Path) -> None:
        self._step("sync")
        self._real.sync(path)
        self._synced[path] = path.stat().st_size

    def sync_folder(self, folder: Path) -> None:
        self._step("sync_folder")
        self._real.sync_folder(folder)
        self._new_names = {name: old for name, old in self._new_names.items() if name.parent != folder}

    def move(self, source: Path, target: Path) -> None:
        self._step("move")
        self._real.move(source, target)
        self._new_names.pop(source, None)
        self._new_names[target] = source
        self._synced[target] = self._synced.pop(source, 0)

    def remove(self, path: Path) -> None:
        self._step("remove")
        self._real.remove(path)

    def commit(self, db: sqlite3.Connection) -> None:
        self._step("commit")
        self._real.commit(db)


@dataclass
class FullDisk:
    """Has no room while ``full(operation)`` says so; half of what is written gets there before it fails."""

    full: Callable[[str], bool] = lambda _: False
    refused: int = 0
    _real: RealDisk = field(default_factory=RealDisk)

    def _refuse(self, operation: str) -> bool:
        if self.full(operation):
            self.refused += 1
            return True
        return False

    def extend(self, path: Path, at: int, data: bytes) -> None:
        if self._refuse("extend"):
            self._real.extend(path, at, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        self._real.extend(path, at, data)

    def sync(self, path: Path) -> None:
        if self._refuse("sync"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        self._real.sync(path)

    def sync_folder(self, folder: Path) -> None:
        self._real.sync_folder(folder)

    def move(self, source: Path, target: Path) -> None:
        if self._refuse("move"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        self._real.move(source, target)

    def remove(self, path: Path) -> None:
        self._real.remove(path)

    def commit(self, db: sqlite3.Connection) -> None:
        if self._refuse("commit"):
            raise _full()
        self._real.commit(db)


def _full() -> sqlite3.OperationalError:
    """As SQLite raises it; made by a database that may have no more pages."""
    with sqlite3.connect(":memory:") as db:
        db.execute("CREATE TABLE a (b)")
        db.execute("PRAGMA max_page_count = 1")
        try:
            db.execute("INSERT INTO a VALUES (zeroblob(100000))")
        except sqlite3.OperationalError as error:
            return error
    raise AssertionError("there was room")
