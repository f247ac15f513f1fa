"""SecondTier: prefixes that left the device but are kept in slower memory, to come back instead of being recomputed.

It is a second radix tree with a slot pool of its own, under the same keys and the same rules, so nothing about identity
is weaker here. Eviction from the device offers the whole path of the evicted leaf: the tier then holds prefixes from
their first token on. This half only decides; ``mmserve.cache.host`` holds the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmserve.cache.key import Interner, Spans
from mmserve.cache.pages import SlotPool
from mmserve.cache.radix import Handle, RadixCache
from mmserve.types import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class SlotCopy:
    """Keys and values of ``source`` slots go to ``target`` slots of the other tier; int64, equally long."""

    source: IntArray
    target: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Loan:
    """A prefix locked in the tier while it is copied back: ``slots`` hold its positions from ``start`` on."""

    handle: Handle
    start: int
    slots: IntArray

    @property
    def stop(self) -> int:
        return self.start + len(self.slots)


class SecondTier:
    """``slots`` tokens in slower memory. Prefixes shorter than ``min_tokens`` are not kept, and a gain of less than
    ``min_tokens`` is not fetched: below it recomputing is faster (``bench/second_tier.py`` measures where)."""

    def __init__(self, slots: int, interner: Interner, *, min_tokens: int) -> None:
        self.pool = SlotPool(slots)
        self.tree = RadixCache(self.pool, interner)
        self._min_tokens = min_tokens

    def keep(self, key: IntArray, slots: IntArray, spans: Spans, salt: str) -> SlotCopy | None:
        """A prefix leaves the device: what must be copied where, before the device's ``slots`` are written again."""
        if len(key) < self._min_tokens:
            return None
        handle = self.tree.acquire(self.tree.match(key, spans, salt=salt), salt=salt)
        missing = len(key) - handle.length
        copy = None
        if 0 < missing <= self.pool.free_count + self.tree.evictable_tokens:
            self.tree.evict(missing - self.pool.free_count)
            copy = SlotCopy(slots[handle.length :].copy(), self.pool.alloc(missing))
            self.tree.extend(handle, key, np.concatenate([self.tree.slots(handle), copy.target]), spans)
        self.tree.release(handle)
        return copy

    def reach(self, key: IntArray, spans: Spans, *, salt: str, hit: int) -> int:
        """How long a prefix is at hand where the device has ``hit`` tokens of it; a query."""
        match = self.tree.match(key, spans, salt=salt, limit=len(key) - 1)
        return match.length if match is not None and match.length - hit >= self._min_tokens else hit

    def borrow(self, key: IntArray, spans: Spans, *, salt: str, hit: int) -> Loan | None:
        """Lock what is worth fetching behind ``hit``, until ``give_back``."""
        match = self.tree.match(key, spans, salt=salt, limit=len(key) - 1)
        if match is None or match.length - hit < self._min_tokens:
            return None
        handle = self.tree.acquire(match)
        return Loan(handle, hit, self.tree.slots(handle)[hit:])

    def give_back(self, loan: Loan) -> None:
        self.tree.release(loan.handle)
