"""SecondTier: prefixes that left the device but are kept in slower memory, to come back instead of being recomputed.

It is a second radix tree with a slot pool of its own, under the same keys and the same rules, so nothing about identity
is weaker here. Eviction from the device offers the whole path of the evicted leaf: the tier then holds prefixes from
their first token on. This half only decides; ``mmserve.cache.host`` holds the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmserve.cache.costs import FetchCosts
from mmserve.cache.key import Interner, Spans
from mmserve.cache.pages import SlotPool
from mmserve.cache.radix import Handle, Match, RadixCache
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
    """``slots`` tokens in slower memory, kept and fetched where ``costs`` finds that cheaper than recomputing
    (``bench/second_tier.py`` shows where it is)."""

    def __init__(self, slots: int, interner: Interner, costs: FetchCosts) -> None:
        self.pool = SlotPool(slots)
        self.tree = RadixCache(self.pool, interner)
        self.costs = costs

    def keep(self, key: IntArray, slots: IntArray, spans: Spans, salt: str) -> SlotCopy | None:
        """A prefix leaves the device: what must be copied where, before the device's ``slots`` are written again."""
        if not self.costs.worth(len(key), spans.rows(0, len(key))):
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
        """How long a prefix is at hand, at a price worth paying, where the device has ``hit`` tokens of it; a query."""
        match = self._find(key, spans, salt, hit)
        return hit if match is None else match.length

    def borrow(self, key: IntArray, spans: Spans, *, salt: str, hit: int) -> Loan | None:
        """Lock what ``reach`` found behind ``hit``, until ``give_back``."""
        match = self._find(key, spans, salt, hit)
        if match is None:
            return None
        handle = self.tree.acquire(match)
        return Loan(handle, hit, self.tree.slots(handle)[hit:])

    def _find(self, key: IntArray, spans: Spans, salt: str, hit: int) -> Match | None:
        match = self.tree.match(key, spans, salt=salt, limit=len(key) - 1)
        if match is None or match.length <= hit:
            return None
        return match if self.costs.worth(match.length - hit, spans.rows(hit, match.length)) else None

    def give_back(self, loan: Loan) -> None:
        self.tree.release(loan.handle)
