"""WaitingQueue: who is looked at next.

Waiting sequences are admitted in a sweep over the lexicographic order of their radix keys, round and round. So those
with a common prefix follow each other, which is a depth-first walk over the tree of all queued prompts: each distinct
prefix is computed once as long as one path fits the cache (SGLang proves it for its longest-prefix-first order,
arXiv 2312.07104, theorem 3.1). A newcomer whose prompt is mostly cached when it comes does not wait for the sweep, by
when its prefix would be gone: it goes before, the newest first. Whoever is overtaken for too long goes before those,
and a sequence that was preempted before all.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import chain, islice

from mmserve.cache.key import common_prefix
from mmserve.engine.sequence import Sequence
from mmserve.types import IntArray


@dataclass(slots=True, eq=False)
class _Place:
    """A sequence's place in the order of keys; the arrival parts equal keys."""

    salt: str
    key: IntArray
    arrival: int
    sequence: Sequence
    admitted_before: int

    def __lt__(self, other: _Place) -> bool:
        if self.salt != other.salt:
            return self.salt < other.salt
        at = common_prefix(self.key, other.key)
        if at < min(len(self.key), len(other.key)):
            return bool(self.key[at] < other.key[at])
        return (len(self.key), self.arrival) < (len(other.key), other.arrival)


class WaitingQueue:
    """Waiting sequences, in the order of keys and in that of arrival.

    A sequence is overtaken for too long when more than ``patience`` times the longest queue since the queue was last
    empty, and 256, have been admitted while it waited.
    """

    def __init__(self, patience: int = 1) -> None:
        self._patience = patience
        self._places: dict[str, _Place] = {}
        self._sorted: list[_Place] = []
        self._returned: dict[str, Sequence] = {}
        self._cached: dict[str, Sequence] = {}
        self._cursor: _Place | None = None
        self._admitted = 0
        self._peak = 0

    def __len__(self) -> int:
        return len(self._places) + len(self._returned)

    def __contains__(self, seq: Sequence) -> bool:
        return seq.id in self._places or seq.id in self._returned

    def add(self, seq: Sequence, *, cached: bool = False) -> None:
        """``cached``: most of its prompt is in the cache now, and would not be when the sweep comes round."""
        place = _Place(seq.salt, seq.key, seq.arrival, seq, self._admitted)
        self._peak = max(self._peak, len(self) + 1) if len(self) else 1
        self._places[seq.id] = place
        if cached:
            self._cached[seq.id] = seq
        insort(self._sorted, place)

    def give_back(self, seq: Sequence) -> None:
        """A preempted sequence, which goes before all others but older preempted ones."""
        self._returned[seq.id] = seq

    def remove(self, seq: Sequence, *, advance: bool = False) -> None:
        """Take out a sequence that ended, or was admitted: then the sweep goes on behind it if ``advance``."""
        if self._returned.pop(seq.id, None) is not None:
            return
        place = self._places.pop(seq.id)
        del self._sorted[bisect_left(self._sorted, place)]
        was_cached = self._cached.pop(seq.id, None) is not None
        if advance and not was_cached:
            self._cursor = place

    def count_admission(self) -> None:
        self._admitted += 1

    def window(self, limit: int) -> list[Sequence]:
        """The next ``limit`` sequences, each once: preempted ones, the overtaken, cached newcomers, then the sweep."""
        returned = sorted(self._returned.values(), key=lambda seq: seq.arrival)
        bound = self._admitted - self._patience * self._peak - 256
        aged: list[Sequence] = []
        for place in self._places.values():
            if place.admitted_before >= bound or len(aged) >= limit:
                break
            aged.append(place.sequence)
        start = bisect_left(self._sorted, self._cursor) if self._cursor is not None else 0
        around = chain(islice(self._sorted, start, None), islice(self._sorted, start))
        sweep = islice(around, limit)
        cached = reversed(self._cached.values())  # the newest first: its prefix was used last
        found = {seq.id: seq for seq in chain(returned, aged, cached, (place.sequence for place in sweep))}
        return list(islice(found.values(), limit))
