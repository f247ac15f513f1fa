"""The keys of a running server: its file, read again when it changes, and a meter for each key."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from mmserve.errors import ConfigError
from mmserve.keys import Key, find_key, load_keys
from web.access.meter import Meter

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0


class KeyRing:
    """The keys in the file at ``path``. Raises ``ConfigError`` at first where that cannot be read.

    A change is seen within a second. A file that is damaged or gone later changes nothing: the keys stay as they were,
    and the log says so once. Used on one event loop.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._signature = self._look()
        self._keys = load_keys(path)
        self._looked = clock()
        self._meters: dict[str, Meter] = {}

    def find(self, secret: str) -> tuple[Key, Meter] | None:
        self._renew()
        key = find_key(self._keys, secret)
        return None if key is None else (key, self._meters.setdefault(key.identity, Meter(self._clock)))

    def holder(self, identity: str) -> Key | None:
        """The key of this identity; ``None`` where it is not known, or not any more."""
        self._renew()
        return next((key for key in self._keys if key.identity == identity), None)

    def _renew(self) -> None:
        now = self._clock()
        if now - self._looked < _EVERY_SECONDS:
            return
        self._looked = now
        signature = self._look()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = load_keys(self._path)
        except ConfigError as error:
            logger.error("the API keys stay as they were: %s", error)
            return
        known = {key.identity for key in self._keys}
        self._meters = {identity: meter for identity, meter in self._meters.items() if identity in known}

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
