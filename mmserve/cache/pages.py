"""SlotPool: which KV slots are free. One slot holds the keys and values of one token in every layer."""

from __future__ import annotations

import numpy as np

from mmserve.types import IntArray


class SlotPool:
    """A stack of free slot numbers ``0 <= slot < size``.

    Owns the free slots; the tree and the sequences own the rest. Double frees and foreign slots raise ``ValueError``.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError("a slot pool needs at least one slot")
        self.size = size
        self._stack = np.arange(size - 1, -1, -1, dtype=np.int64)
        self._is_free = np.ones(size, dtype=np.bool_)
        self._last_writer = np.zeros(size, dtype=np.int64)
        self._count = size

    @property
    def free_count(self) -> int:
        return self._count

    def alloc(self, n: int) -> IntArray:
        """``n`` slots that are the caller's until it frees them. Raises ``MemoryError`` when too few are free."""
        if n > self._count:
            raise MemoryError(f"{n} slots wanted, {self._count} free")
        slots = self._stack[self._count - n : self._count][::-1].copy()
        self._count -= n
        self._is_free[slots] = False
        return slots

    def free(self, slots: IntArray) -> None:
        n = len(slots)
        if n == 0:
            return
        if slots.min() < 0 or slots.max() >= self.size or self._is_free[slots].any():
            raise ValueError("freed slots must be allocated ones")
        order = np.arange(n)
        self._last_writer[slots] = order  # of two equal slots only the later one reads its own number back
        if not np.array_equal(self._last_writer[slots], order):
            raise ValueError("the same slot was freed twice in one call")
        self._is_free[slots] = True
        self._stack[self._count : self._count + n] = slots
        self._count += n

    def free_slots(self) -> IntArray:
        """A copy of the free slots, for ``check()``."""
        return self._stack[: self._count].copy()
