"""Which pictures a server keeps for a client, and under which ids."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from mmserve.client.pictures import PictureFile, PictureHandle


class Kept:
    """Handles and the ids that the server gave their pictures; a handle that is dropped is forgotten.

    May be shared between threads: two that send the same picture at once leave it there twice, and no harm is done.
    """

    def __init__(self) -> None:
        self._ids: WeakKeyDictionary[PictureHandle, str | None] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def unknown(self, handles: Iterable[PictureHandle]) -> list[PictureHandle]:
        """Those that the server has not been asked to keep, each once."""
        with self._lock:
            return [handle for handle in dict.fromkeys(handles) if handle not in self._ids]

    def note(self, handle: PictureHandle, identity: str | None) -> None:
        """The server keeps it as ``identity``; None where it keeps none, and the bytes go with each request."""
        with self._lock:
            self._ids[handle] = identity

    def forget(self, handles: Iterable[PictureHandle]) -> None:
        """What the server keeps no longer is to be sent again."""
        with self._lock:
            for handle in handles:
                self._ids.pop(handle, None)

    def reference(self, file: PictureFile) -> str | None:
        """What stands for a picture's bytes in a request; None where they have to go themselves."""
        if not isinstance(file, PictureHandle):
            return None
        with self._lock:
            return self._ids.get(file)
