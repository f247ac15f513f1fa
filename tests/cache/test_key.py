"""Keys: what is equal, what is not, and where a prefix may end."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.cache.key import Interner, Spans, build_key, common_prefix, media_spans
from mmserve.types import ContentHash, Grid, ImageHeader, MediaRange, Picture, Prompt

PAD = 7


def content(name: str) -> ContentHash:
    return ContentHash(hashlib.sha256(name.encode()).digest())


def picture(name: str, rows: int) -> Picture:
    return Picture(b"", ImageHeader("PNG", 1, 1), content(name), Grid(1, 2, 2 * rows), rows)


def prompt(ids: list[int], pictures: list[Picture], ranges: list[tuple[int, int, int]]) -> Prompt:
    return Prompt(np.array(ids, dtype=np.int64), tuple(pictures), tuple(MediaRange(*r) for r in ranges))


def test_a_picture_position_is_never_a_token_and_ids_stay() -> None:
    p = prompt([1, PAD, PAD, 2], [picture("a", 2)], [(1, 3, 0)])
    key = build_key(p, [5])
    assert list(key) == [1, -1 - (5 << 20), -1 - (5 << 20 | 1), 2]
    assert list(p.token_ids) == [1, PAD, PAD, 2]


def test_pictures_in_another_order_have_another_key() -> None:
    a, b = picture("a", 2), picture("b", 2)
    ranges = [(0, 2, 0), (2, 4, 1)]
    assert list(build_key(prompt([PAD] * 4, [a, b], ranges), [0, 1])) != list(
        build_key(prompt([PAD] * 4, [b, a], ranges), [1, 0])
    )


def test_rows_run_on_through_the_ranges_of_one_picture() -> None:
    p = prompt([PAD, 3, PAD, PAD], [picture("a", 3)], [(0, 1, 0), (2, 4, 0)])
    assert list(build_key(p, [0])) == [-1, 3, -2, -3]
    assert media_spans(p.ranges, [0]) == Spans((0,), (4,), (0,))


def test_a_prefix_never_ends_inside_a_picture() -> None:
    spans = Spans((2, 8), (6, 9), (0, 1))
    assert [spans.clamp(n) for n in range(11)] == [0, 1, 2, 2, 2, 2, 6, 7, 8, 9, 10]


def test_a_stretch_that_cuts_no_picture() -> None:
    spans = Spans((2, 8), (6, 9), (0, 1))
    assert [spans.uncut(0, n) for n in range(1, 8)] == [1, 2, 2, 2, 2, 6, 7]
    assert [spans.uncut(2, n) for n in range(1, 8)] == [4, 4, 4, 4, 5, 6, 7]
    assert [spans.uncut(6, n) for n in range(1, 4)] == [1, 2, 3]
    assert spans.uncut(20, 5) == 5


def test_overlapping_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        media_spans([MediaRange(0, 2, 0), MediaRange(3, 4, 1), MediaRange(5, 6, 0)], [0, 1])


def test_a_picture_with_too_many_rows_is_refused() -> None:
    rows = (1 << 20) + 1
    p = Prompt(np.zeros(rows, dtype=np.int64), (picture("a", rows),), (MediaRange(0, rows, 0),))
    with pytest.raises(ValueError, match="rows"):
        build_key(p, [0])


def test_a_number_is_never_reused() -> None:
    interner = Interner()
    first = interner.intern(content("a"))
    assert interner.intern(content("a")) == first
    interner.release([first, first])
    assert len(interner) == 0
    assert interner.intern(content("a")) != first


def test_spans_within_a_piece_count_from_its_start() -> None:
    spans = Spans((2, 8), (6, 9), (4, 5))
    assert spans.within(0, 6) == Spans((2,), (6,), (4,))
    assert spans.within(7, 12) == Spans((1,), (2,), (5,))
    assert spans.within(6, 8) == Spans()


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_common_prefix_is_what_a_loop_finds(a: list[int], b: list[int]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_prefix(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64)) == n
