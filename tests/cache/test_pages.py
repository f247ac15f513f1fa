"""The slot pool against a set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.cache.pages import SlotPool


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=60))
def test_the_pool_agrees_with_a_set(steps: list[tuple[bool, int]]) -> None:
    pool, free, taken = SlotPool(16), set(range(16)), []
    for is_alloc, n in steps:
        if is_alloc and n > len(free):
            with pytest.raises(MemoryError):
                pool.alloc(n)
        elif is_alloc:
            slots = pool.alloc(n)
            assert len(set(slots.tolist())) == n
            assert set(slots.tolist()) <= free
            free -= set(slots.tolist())
            taken.append(slots)
        elif taken:
            slots = taken.pop(n % len(taken))
            pool.free(slots)
            free |= set(slots.tolist())
        assert pool.free_count == len(free)
        assert set(pool.free_slots().tolist()) == free


@pytest.mark.parametrize("slots", [[0], [3, 3], [-1], [4]])
def test_slots_that_are_not_taken_cannot_be_freed(slots: list[int]) -> None:
    pool = SlotPool(4)
    pool.free(np.array([pool.alloc(4)[0]]))
    before = sorted(pool.free_slots().tolist())
    with pytest.raises(ValueError, match="freed"):
        pool.free(np.array(slots, dtype=np.int64))
    assert sorted(pool.free_slots().tolist()) == before


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        SlotPool(0)
