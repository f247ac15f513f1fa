"""Where the second tier's keys and values lie: pinned host memory beside a GPU, a file beside a CPU."""

from __future__ import annotations

import logging
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from mmserve.cache.kv import KVCache
from mmserve.types import IntArray

log = logging.getLogger(__name__)


class HostStore(Protocol):
    """Copies whole slots, all layers at once, between the device's cache and slower memory."""

    def save(self, kv: KVCache, source: IntArray, target: IntArray) -> None:
        """Device slots ``source`` to the store's ``target``. A failure is logged and makes a later ``load`` fail."""

    def load(self, kv: KVCache, source: IntArray, target: IntArray) -> bool:
        """The store's ``source`` to device slots ``target``; False, with the target undefined, if any is damaged."""

    def close(self) -> None: ...


class PinnedStore:
    """``slots`` tokens in page-locked host memory, laid out ``(slots, layers, 2, kv_heads, head_dim)``."""

    def __init__(self, kv: KVCache, slots: int) -> None:
        self._memory = torch.empty(
            (slots, *kv.slot_shape), dtype=kv.keys[0].dtype, pin_memory=torch.cuda.is_available()
        )

    def save(self, kv: KVCache, source: IntArray, target: IntArray) -> None:
        self._memory[torch.from_numpy(target)] = kv.read(source).cpu()

    def load(self, kv: KVCache, source: IntArray, target: IntArray) -> bool:
        kv.write(target, self._memory[torch.from_numpy(source)])
        return True

    def close(self) -> None:
        del self._memory


class FileStore:
    """Slots in an unnamed temporary file in ``folder``: gone with the process, so that no run reads another's.

    A CRC-32 of each slot stays in memory: a slot that was damaged on the disk, or could not be written to it, reads as
    a miss and never as keys and values.
    """

    def __init__(self, kv: KVCache, slots: int, folder: Path | None = None) -> None:
        self._shape, self._dtype = kv.slot_shape, kv.keys[0].dtype
        self._slot_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        self._sums = np.zeros(slots, dtype=np.uint32)
        self._written = np.zeros(slots, dtype=np.bool_)
        self.file = tempfile.TemporaryFile(prefix="mmserve-kv-", dir=folder)  # noqa: SIM115 (ours until close)

    def save(self, kv: KVCache, source: IntArray, target: IntArray) -> None:
        data = kv.read(source).cpu().contiguous().view(torch.uint8).reshape(len(source), -1).numpy()
        self._written[target] = False
        try:
            for start, stop in _runs(target):
                _write_all(self.file.fileno(), data[start:stop].tobytes(), int(target[start]) * self._slot_bytes)
        except OSError as error:
            log.warning("the second cache tier could not be written: %s", error)
            return
        self._sums[target] = [zlib.crc32(row) for row in data]
        self._written[target] = True

    def load(self, kv: KVCache, source: IntArray, target: IntArray) -> bool:
        if not self._written[source].all():
            return False
        pieces = []
        try:
            for start, stop in _runs(source):
                pieces.append(
                    os.pread(
                        self.file.fileno(), (stop - start) * self._slot_bytes, int(source[start]) * self._slot_bytes
                    )
                )
        except OSError as error:
            log.warning("the second cache tier could not be read: %s", error)
            return False
        data = bytearray(b"".join(pieces))
        if len(data) != len(source) * self._slot_bytes:
            return False
        rows = memoryview(data)
        sums = [zlib.crc32(rows[i : i + self._slot_bytes]) for i in range(0, len(data), self._slot_bytes)]
        if not np.array_equal(np.array(sums, dtype=np.uint32), self._sums[source]):
            log.warning("the second cache tier's file is damaged; its entries are dropped")
            return False
        kv.write(target, torch.frombuffer(data, dtype=torch.uint8).view(self._dtype).view(len(source), *self._shape))
        return True

    def close(self) -> None:
        self.file.close()


def _runs(slots: IntArray) -> Iterator[tuple[int, int]]:
    """Index ranges of consecutive slot numbers."""
    cuts: Sequence[int] = (np.flatnonzero(np.diff(slots) != 1) + 1).tolist()
    return zip([0, *cuts], [*cuts, len(slots)], strict=True)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
