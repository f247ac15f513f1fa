"""The slot pool against a set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mmserve.cache.pages import SlotPool


class PoolMachine(RuleBasedStateMachine):
    """A pool and a set, step for step."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = SlotPool(16)
        self.free = set(range(16))
        self.taken: list[set[int]] = []

    @rule(n=st.integers(0, 6))
    def alloc(self, n: int) -> None:
        if n > len(self.free):
            with pytest.raises(MemoryError):
                self.pool.alloc(n)
            return
        slots = self.pool.alloc(n).tolist()
        assert len(set(slots)) == n
        assert set(slots) <= self.free
        self.free -= set(slots)
        self.taken.append(set(slots))

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0, 99))
    def give_back(self, which: int) -> None:
        slots = self.taken.pop(which % len(self.taken))
        self.pool.free(np.array(sorted(slots), dtype=np.int64))
        self.free |= slots

    @rule(slot=st.integers(-2, 18))
    def refuse_what_is_not_taken(self, slot: int) -> None:
        if not any(slot in slots for slots in self.taken):
            with pytest.raises(ValueError, match="freed"):
                self.pool.free(np.array([slot], dtype=np.int64))

    @invariant()
    def agrees(self) -> None:
        assert self.pool.free_count == len(self.free)
        assert set(self.pool.free_slots().tolist()) == self.free


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=210, stateful_step_count=50, deadline=None)


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
