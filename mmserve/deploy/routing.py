"""Which replica a request belongs to, so that what is asked about the same picture meets the cache that knows it.

Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
Networking 6(1), 1998) gives every key its own order of the replicas: a replica that joins takes only the keys it now
comes first for, and one that leaves gives each of its keys to that key's next. No state is shared: whoever knows the
replicas' names finds the same order. Loads are bounded as in "Consistent hashing with bounded loads" (Mirrokni, Thorup
and Zadimoghaddam, SODA 2018): a request goes to the first replica in its key's order that has fewer than its share of
the requests in flight, so a popular picture spills to the same second and third replica each time, which then know it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmserve.errors import ConfigError

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a replica may have in flight before its keys spill over.

    ``balance`` is the paper's c: at most c times the mean, rounded up. ``spare`` requests are always allowed, however
    few others have: an engine computes that many side by side at hardly more than the cost of one, and to spill then
    would only make a second replica look at the same picture. Raises ``ConfigError``.
    """

    balance: float = 1.25
    spare: int = 8

    def __post_init__(self) -> None:
        if not 1.0 <= self.balance < math.inf:
            raise ConfigError(f"the load balance must be at least 1 (1.25 is usual), not {self.balance}")
        if self.spare < 1:
            raise ConfigError(f"a replica must be allowed at least 1 request, not {self.spare}")

    def capacity(self, in_flight: int, replicas: int) -> int:
        """The most that each of ``replicas`` may have once one more joins the ``in_flight`` requests there are.

        Not all can be that full before it comes, so there is always a replica that may take it.
        """
        return max(self.spare, math.ceil(self.balance * (in_flight + 1) / replicas))


class Rendezvous:
    """A set of replicas, by name; immutable. Equal sets give equal orders, whatever order they were named in."""

    def __init__(self, replicas: Iterable[str]) -> None:
        self.replicas: tuple[str, ...] = tuple(sorted(set(replicas)))
        self._seeds: Words = np.array([_word(name.encode()) for name in self.replicas], np.uint64)

    def __len__(self) -> int:
        return len(self.replicas)

    def order(self, key: bytes) -> list[str]:
        """All replicas, ``key``'s first choice first."""
        return [self.replicas[index] for index in self._order(key)]

    def choices(self, key: bytes, loads: Mapping[str, int], bound: Bound, avoid: Collection[str] = ()) -> list[str]:
        """All replicas in the order in which ``key``'s request should try them.

        First those whose load (requests in flight; 0 where ``loads`` does not name one) is under the bound, in
        ``key``'s order; then, for when these cannot be had, the others with the least loaded first; last those to
        ``avoid``. Empty only where there is no replica.
        """
        if not self.replicas:
            return []
        order = self.order(key)
        held = {name: loads.get(name, 0) for name in order}
        capacity = bound.capacity(sum(held.values()), len(order))
        avoided = frozenset(avoid)
        # Sorting is stable: within a rank the key's own order stays.
        return sorted(order, key=lambda name: (name in avoided, max(0, held[name] - capacity + 1)))

    def place(self, key: bytes, loads: npt.NDArray[np.int64], bound: Bound | None) -> int:
        """The index in ``replicas`` of the first of :meth:`choices`, for arrays of ``loads`` in the same order.

        Without a ``bound`` the key's first choice, whatever its load. O(replicas), with no sort. There must be one.
        """
        scores = self._scores(key)
        if bound is not None:
            open_ = loads < bound.capacity(int(loads.sum()), len(self.replicas))
            if not open_.all():
                scores = np.where(open_, scores, np.uint64(0))
        return int(scores.argmax())

    def _order(self, key: bytes) -> list[int]:
        # The stable sort of the complement: equal scores keep the order of the names, as argmax does.
        order: list[int] = np.argsort(~self._scores(key), kind="stable").tolist()
        return order

    def _scores(self, key: bytes) -> Words:
        return _mix(self._seeds ^ np.uint64(_word(key)))


def _word(data: bytes) -> int:
    """64 bits of a digest. Two keys that share them share a replica and nothing else: it is placement, no identity."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _mix(words: Words) -> Words:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), a bijection in which each bit depends on all."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed
