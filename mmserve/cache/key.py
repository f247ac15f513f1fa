"""Keys of the radix tree: one int64 a position, exact for text and media alike.

A position holds a token id (>= 0), or ``-1 - (number << 20 | row)`` for row ``row`` of the media item whose
content was interned under ``number``. Contents are interned by their full digest under numbers that are
never reused, so nothing is truncated and nothing can collide.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmserve.types import ContentHash, IntArray, MediaRange, Prompt

ROW_BITS = 20
MAX_ROWS = 1 << ROW_BITS


class Interner:
    """Numbers for contents, with a count of who refers to each.

    A content that nothing refers to is forgotten and gets a new number when it returns, so a stale key
    can never name another item.
    """

    def __init__(self) -> None:
        self._numbers: dict[ContentHash, int] = {}
        self._contents: dict[int, ContentHash] = {}
        self._references: dict[int, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def intern(self, content: ContentHash) -> int:
        """The content's number, with one more reference to it."""
        number = self._numbers.get(content)
        if number is None:
            number = self._next
            self._next += 1
            self._numbers[content] = number
            self._contents[number] = content
            self._references[number] = 0
        self._references[number] += 1
        return number

    def refer(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._references[number] += 1

    def release(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._references[number] -= 1
            if self._references[number] == 0:
                del self._references[number]
                del self._numbers[self._contents.pop(number)]

    def references(self) -> dict[int, int]:
        """A copy of the reference counts, for ``check()``."""
        return dict(self._references)


@dataclass(frozen=True, slots=True)
class Spans:
    """The extents of a prompt's media items: no cached prefix may end strictly inside one.

    ``starts`` and ``ends`` are ascending and do not overlap; ``numbers`` are the interned contents in the same order.
    """

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()

    def clamp(self, length: int) -> int:
        """The largest prefix of at most ``length`` positions that ends at no item's inside."""
        at = bisect_right(self.starts, length) - 1
        if at >= 0 and self.starts[at] < length < self.ends[at]:
            return self.starts[at]
        return length

    def uncut(self, start: int, length: int) -> int:
        """As much of ``length`` positions from ``start`` as ends at no item's inside; where that is nothing, the
        item that begins there. ``start`` must lie at no item's inside."""
        stop = self.clamp(start + length)
        return stop - start if stop > start else self.ends[bisect_right(self.starts, start) - 1] - start

    def rows(self, start: int, stop: int) -> int:
        """How many positions of ``start <= i < stop`` belong to media."""
        pairs = zip(self.starts, self.ends, strict=True)
        return sum(max(0, min(end, stop) - max(begin, start)) for begin, end in pairs)

    def within(self, start: int, stop: int) -> Spans:
        """The spans that lie in ``start <= i < stop``, whose edges must not cut one, counted from ``start``."""
        low, high = bisect_right(self.starts, start - 1), bisect_right(self.starts, stop - 1)
        return Spans(
            tuple(s - start for s in self.starts[low:high]),
            tuple(e - start for e in self.ends[low:high]),
            self.numbers[low:high],
        )


def media_spans(ranges: Sequence[MediaRange], numbers: Sequence[int]) -> Spans:
    """One span an item, from its first range to its last; ``numbers[i]`` interns ``media[i]``."""
    extents: dict[int, tuple[int, int]] = {}
    for start, end, item in ranges:
        first, last = extents.get(item, (start, end))
        extents[item] = (min(first, start), max(last, end))
    ordered = sorted((start, end, item) for item, (start, end) in extents.items())
    if any(start < end for (_, end, _), (start, _, _) in pairwise(ordered)):
        raise ValueError("the media items of a prompt overlap")
    return Spans(
        tuple(start for start, _, _ in ordered),
        tuple(end for _, end, _ in ordered),
        tuple(numbers[item] for _, _, item in ordered),
    )


def first_rows(ranges: Sequence[MediaRange]) -> list[int]:
    """For each range, the item's row that stands at its start (rows run on through an item's ranges)."""
    done: dict[int, int] = {}
    rows = []
    for start, end, item in ranges:
        rows.append(done.get(item, 0))
        done[item] = rows[-1] + end - start
    return rows


def build_key(prompt: Prompt, numbers: Sequence[int]) -> IntArray:
    """The prompt's radix key, int64 ``(n,)``; ``prompt.token_ids`` is left as it is."""
    key = prompt.token_ids.astype(np.int64, copy=True)
    for (start, end, item), row in zip(prompt.ranges, first_rows(prompt.ranges), strict=True):
        rows = np.arange(row, row + end - start, dtype=np.int64)
        if len(rows) and rows[-1] >= MAX_ROWS:
            raise ValueError(f"a media item has more than {MAX_ROWS} rows")
        key[start:end] = -1 - ((numbers[item] << ROW_BITS) | rows)
    return key


def common_prefix(a: IntArray, b: IntArray) -> int:
    """How many leading positions two keys share."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    differs = a[:n] != b[:n]
    at = int(differs.argmax())
    return at if differs[at] else n
