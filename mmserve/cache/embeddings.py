"""EncoderCache: which pictures' embedding rows are kept, and for how long.

It decides; the runner holds the tensors and forgets those that it is told to. Bounded in bytes, least
recently used first, and never a picture that somebody holds: the bound is soft for held rows.
"""

from __future__ import annotations

from collections import OrderedDict

from mmserve.types import ContentHash


class EncoderCache:
    """Membership, sizes and holds of encoded pictures. No tensors."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._sizes: OrderedDict[ContentHash, int] = OrderedDict()
        self._holds: dict[ContentHash, int] = {}
        self._bytes = 0
        self._bytes_held = 0
        self._dropped: list[ContentHash] = []
        self.evicted_pictures = 0

    def __contains__(self, content: ContentHash) -> bool:
        return content in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def bytes_used(self) -> int:
        return self._bytes

    @property
    def bytes_held(self) -> int:
        return self._bytes_held

    def put(self, content: ContentHash, size: int) -> None:
        """Note rows of ``size`` bytes that were just computed."""
        if content in self._sizes:
            raise ValueError("a picture's rows were computed while they were cached")
        self._sizes[content] = size
        self._bytes += size

    def hold(self, content: ContentHash) -> None:
        """Keep a cached picture's rows until the matching ``release``."""
        if content not in self._sizes:
            raise KeyError("only cached rows can be held")
        self._sizes.move_to_end(content)
        if content not in self._holds:
            self._bytes_held += self._sizes[content]
        self._holds[content] = self._holds.get(content, 0) + 1

    def release(self, content: ContentHash) -> None:
        left = self._holds[content] - 1
        if left:
            self._holds[content] = left
        else:
            del self._holds[content]
            self._bytes_held -= self._sizes[content]

    def shrink(self, capacity: int | None = None) -> None:
        """Drop unheld rows, least recently used first, until the bytes fit."""
        capacity = self.capacity_bytes if capacity is None else capacity
        if self._bytes <= capacity:
            return
        for content in [c for c in self._sizes if c not in self._holds]:
            self.discard(content)
            self.evicted_pictures += 1
            if self._bytes <= capacity:
                return

    def discard(self, content: ContentHash) -> None:
        """Drop one picture's rows, which nobody may hold."""
        if content in self._holds:
            raise ValueError("rows that somebody holds cannot be dropped")
        self._bytes -= self._sizes.pop(content)
        self._dropped.append(content)

    def take_dropped(self) -> tuple[ContentHash, ...]:
        """The pictures dropped since the last call, whose tensors the runner forgets."""
        dropped, self._dropped = tuple(self._dropped), []
        return dropped

    def check(self) -> None:
        assert self._bytes == sum(self._sizes.values())
        assert self._bytes_held == sum(self._sizes[content] for content in self._holds)
        assert all(content in self._sizes and count > 0 for content, count in self._holds.items())
        assert not set(self._dropped) & set(self._sizes)
