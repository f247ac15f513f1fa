"""Files: bytes in a folder, rows in the ledger."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mmserve.config import BatchLimits
from mmserve.errors import FileNotKept, FileTooLarge, StorageFull
from web.batches.batchrows import unfinished
from web.batches.disk import NO_ROOM, Disk
from web.batches.filerows import (
    FileRecord,
    bytes_kept,
    find_file,
    forget_files,
    hide_expired,
    hide_file,
    insert_file,
    kept_ids,
    list_files,
    mark_purged,
    new_file_id,
    unneeded,
)
from web.batches.ledger import Ledger, no_room

_PIECE = 1 << 20
_DAY = 86_400


class FileStore:
    """The files below ``folder``: whole ones in ``files/``, uploads on their way in ``incoming/``.

    Opening it removes what a crash left: uploads that did not end, bytes of files that are not in the ledger, and
    behind the promised end of a batch's answers.
    """

    def __init__(
        self, folder: Path, ledger: Ledger, disk: Disk, limits: BatchLimits, clock: Callable[[], float] = time.time
    ) -> None:
        self._files = folder / "files"
        self._incoming = folder / "incoming"
        self._ledger = ledger
        self._disk = disk
        self._limits = limits
        self.clock = clock
        self._arriving: dict[str, int] = {}
        for each in (self._files, self._incoming):
            each.mkdir(mode=0o700, exist_ok=True)
        ledger.write_now(self._recover)

    def path(self, id_: str) -> Path:
        """Where the bytes of a file are; ``id_`` is one that was made here."""
        return self._files / id_

    def _recover(self, db: sqlite3.Connection) -> None:
        for path in self._incoming.iterdir():
            self._disk.remove(path)
        known = kept_ids(db)
        for path in self._files.iterdir():
            if path.name not in known:
                self._disk.remove(path)
        for batch in unfinished(db):
            for id_, size in ((batch.output_id, batch.output_bytes), (batch.error_id, batch.error_bytes)):
                path = self.path(id_)
                if path.exists() and path.stat().st_size > size:
                    self._disk.extend(path, size, b"")

    @asynccontextmanager
    async def upload(self) -> AsyncIterator[Upload]:
        """A file on its way in. Unless it was finished within the block, nothing of it stays."""
        kept = await self._ledger.read(bytes_kept)
        name = uuid.uuid4().hex
        self._arriving[name] = 0
        upload = Upload(self, self._incoming / name, name, kept)
        try:
            yield upload
        finally:
            del self._arriving[name]
            await upload.abandon()

    async def find(self, owner: str, id_: str, param: str | None = None) -> FileRecord:
        """Raises ``FileNotKept``."""
        now = self.clock()
        return await self._ledger.read(lambda db: find_file(db, owner, id_, now, param))

    async def page(
        self, owner: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[FileRecord], bool]:
        """Files of ``owner``, and whether there are more. Raises ``InvalidField``."""
        now = self.clock()
        return await self._ledger.read(
            lambda db: list_files(db, owner, now, purpose=purpose, after=after, limit=limit, newest_first=newest_first)
        )

    async def delete(self, owner: str, id_: str) -> None:
        """Raises ``FileNotKept``. A batch that reads the file goes on; so does who is downloading it."""
        now = self.clock()

        def hide(db: sqlite3.Connection) -> None:
            find_file(db, owner, id_, now)
            hide_file(db, id_, now)

        await self._ledger.write(hide)
        await self.purge()

    async def content(self, file: FileRecord) -> AsyncGenerator[bytes, None]:
        """Its bytes, in pieces. Raises ``FileNotKept`` where they have gone meanwhile."""
        try:
            opened = await asyncio.to_thread(open, self.path(file.id), "rb")
        except FileNotFoundError:
            raise FileNotKept(f"the file {file.id} is not kept any more") from None
        return _pieces(opened)

    async def expire(self) -> None:
        """What is to be done from time to time."""
        now = self.clock()

        def expire(db: sqlite3.Connection) -> None:
            hide_expired(db, now)
            forget_files(db, now - _DAY)

        await self._ledger.write(expire)
        await self.purge()

    async def purge(self) -> None:
        """Remove the bytes of files that were deleted and are read by no batch."""
        while ids := await self._ledger.read(unneeded):
            await asyncio.to_thread(self._remove, ids)
            await self._ledger.write(partial(mark_purged, ids=ids))

    def _remove(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            self._disk.remove(self.path(id_))

    # -- for Upload -------------------------------------------------------------------------------------------------

    async def _append(self, upload: Upload, data: bytes) -> None:
        size = upload.size + len(data)
        if size > self._limits.max_file_bytes:
            most = self._limits.max_file_bytes
            raise FileTooLarge(f"a file may have at most {most} bytes; split it", param="file")
        self._arriving[upload.name] = size
        if upload.kept + sum(self._arriving.values()) > self._limits.max_data_bytes:
            raise self._no_space()
        try:
            await upload.busy(lambda: self._disk.extend(upload.path, upload.size, data))
        except OSError as error:
            raise _typed(error) from error

    async def _adopt(self, upload: Upload, file: FileRecord) -> None:
        target = self.path(file.id)

        def settle() -> None:
            if not upload.size:
                self._disk.extend(upload.path, 0, b"")
            self._disk.sync(upload.path)
            self._disk.move(upload.path, target)
            self._disk.sync_folder(target.parent)

        def enter(db: sqlite3.Connection) -> None:
            if bytes_kept(db) + file.bytes > self._limits.max_data_bytes:
                raise self._no_space()
            insert_file(db, file)

        try:
            await upload.busy(settle)
            await self._ledger.write(enter)
        except OSError as error:
            await asyncio.to_thread(self._disk.remove, target)
            raise _typed(error) from error
        except Exception:
            await asyncio.to_thread(self._disk.remove, target)
            raise

    def _no_space(self) -> StorageFull:
        return StorageFull(
            f"the files kept here may have {self._limits.max_data_bytes} bytes together: delete some first"
        )


class Upload:
    """A file on its way in; its owner is the block of :meth:`FileStore.upload`."""

    def __init__(self, store: FileStore, path: Path, name: str, kept: int) -> None:
        self._store = store
        self._running: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[None] | None = None
        self.path = path
        self.name = name
        self.kept = kept
        self.size = 0

    async def write(self, data: bytes) -> None:
        """Raises ``FileTooLarge`` and ``StorageFull``."""
        await self._store._append(self, data)
        self.size += len(data)

    async def finish(self, owner: str, purpose: str, filename: str, now: float, expires_at: int | None) -> FileRecord:
        """The file exists once this returns. Raises ``StorageFull``."""
        file = FileRecord(new_file_id(), owner, purpose, filename, self.size, int(now), expires_at)
        # To its end whatever becomes of the caller: half of it would be a file that nobody knows of.
        self._finishing = asyncio.create_task(self._store._adopt(self, file))
        await asyncio.shield(self._finishing)
        return file

    async def busy(self, work: Callable[[], None]) -> None:
        """``work()`` in a thread; the file is not touched otherwise until it is done."""
        self._running = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.shield(self._running)

    async def abandon(self) -> None:
        """Remove what was not finished."""
        for task in (self._finishing, self._running):
            if task is not None:
                await asyncio.wait([task])
                with suppress(asyncio.CancelledError):
                    task.exception()  # was raised where it was awaited
        await asyncio.to_thread(self._store._disk.remove, self.path)


def _typed(error: OSError) -> Exception:
    return no_room() if error.errno in NO_ROOM else error


async def _pieces(opened: BinaryIO) -> AsyncGenerator[bytes, None]:
    try:
        while piece := await asyncio.to_thread(opened.read, _PIECE):
            yield piece
    finally:
        opened.close()
