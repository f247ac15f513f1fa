"""The radix tree against a dictionary of prefixes, and its rules one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mmserve.cache.key import ROW_BITS, Interner, Spans
from mmserve.cache.pages import SlotPool
from mmserve.cache.radix import Handle, RadixCache
from mmserve.types import ContentHash, IntArray

NO_PICTURES = Spans()


def ids(*values: int) -> IntArray:
    return np.array(values, dtype=np.int64)


class Cached:
    """A tree with its pool, and what a sequence does with them."""

    def __init__(self, size: int = 64) -> None:
        self.pool = SlotPool(size)
        self.interner = Interner()
        self.tree = RadixCache(self.pool, self.interner)

    def compute(self, key: IntArray, spans: Spans = NO_PICTURES, salt: str = "") -> tuple[Handle, IntArray]:
        """Acquire the cached prefix, compute the rest, give it to the tree."""
        handle = self.tree.acquire(self.tree.match(key, spans, salt=salt), salt=salt)
        own = self.pool.alloc(len(key) - handle.length)
        slots = np.concatenate([self.tree.slots(handle), own])
        prefix = self.tree.extend(handle, key, slots, spans)
        self.pool.free(slots[handle.length :])
        return handle, prefix

    def insert(self, key: IntArray, spans: Spans = NO_PICTURES, salt: str = "") -> IntArray:
        handle, slots = self.compute(key, spans, salt)
        self.tree.release(handle)
        return slots

    def length(self, key: IntArray, spans: Spans = NO_PICTURES, **kwargs: object) -> int:
        match = self.tree.match(key, spans, **kwargs)  # type: ignore[arg-type]
        return match.length if match else 0

    def check(self) -> None:
        everything = np.concatenate([self.pool.free_slots(), self.tree.check()])
        assert sorted(everything.tolist()) == list(range(self.pool.size))


def test_a_prefix_is_found_and_its_slots_are_the_first_writers() -> None:
    cached = Cached()
    slots = cached.insert(ids(1, 2, 3, 4))
    handle = cached.tree.acquire(cached.tree.match(ids(1, 2, 3, 9), NO_PICTURES))
    assert handle.length == 3
    assert list(cached.tree.slots(handle)) == list(slots[:3])
    cached.check()


def test_a_match_changes_nothing() -> None:
    cached = Cached()
    cached.insert(ids(1, 2, 3, 4))
    before = [(len(n), n.last_used, n.locks) for n in cached.tree.nodes()]
    cached.tree.match(ids(1, 2), NO_PICTURES)
    assert [(len(n), n.last_used, n.locks) for n in cached.tree.nodes()] == before


def test_a_stale_match_is_refused() -> None:
    cached = Cached()
    cached.insert(ids(1, 2, 3))
    match = cached.tree.match(ids(1, 2, 3), NO_PICTURES)
    cached.insert(ids(7))
    with pytest.raises(ValueError, match="changed"):
        cached.tree.acquire(match)


def test_the_limit_holds() -> None:
    cached = Cached()
    cached.insert(ids(1, 2, 3))
    assert cached.length(ids(1, 2, 3), limit=2) == 2
    assert cached.length(ids(1, 2, 3), limit=0) == 0


def test_a_hit_and_an_insertion_end_at_picture_edges() -> None:
    cached = Cached()
    picture = -1 - ((cached.interner.intern(ContentHash(b"p")) << ROW_BITS) | np.arange(3))
    key = np.concatenate([ids(1), picture, ids(2, 3)])
    spans = Spans((1,), (4,), (0,))
    cached.insert(key, spans)
    assert cached.length(key, spans, limit=3) == 1
    assert cached.length(key, spans, limit=4) == 4
    assert cached.length(key, spans, limit=5) == 5

    other = Cached()
    other.interner.intern(ContentHash(b"p"))
    handle = other.tree.acquire(None)
    slots = other.pool.alloc(3)
    assert len(other.tree.extend(handle, key, slots, spans)) == 1
    assert handle.length == 1
    other.tree.release(handle)
    other.pool.free(slots[1:])
    other.check()


def test_the_tree_refers_to_its_pictures_until_they_are_evicted() -> None:
    cached = Cached()
    number = cached.interner.intern(ContentHash(b"p"))
    key = np.concatenate([-1 - ((number << ROW_BITS) | np.arange(2)), ids(1)])
    cached.insert(key, Spans((0,), (2,), (number,)))
    cached.interner.release([number])
    assert cached.interner.references() == {number: 1}
    cached.tree.flush()
    assert len(cached.interner) == 0


def test_another_salt_is_another_tree_and_an_empty_root_goes() -> None:
    cached = Cached()
    cached.insert(ids(1, 2), salt="a")
    assert cached.length(ids(1, 2), salt="b") == 0
    assert cached.length(ids(1, 2), salt="a") == 2
    cached.tree.flush()
    assert list(cached.tree.nodes()) == []
    cached.check()


def test_two_that_computed_the_same_share_the_first_slots() -> None:
    cached = Cached()
    first, second = cached.tree.acquire(None), cached.tree.acquire(None)
    a, b = cached.pool.alloc(3), cached.pool.alloc(4)
    cached.tree.extend(first, ids(1, 2, 3), a, NO_PICTURES)
    slots = cached.tree.extend(second, ids(1, 2, 8, 9), b, NO_PICTURES)
    assert list(slots) == [*a[:2], *b[2:]]
    for handle in (first, second):
        cached.tree.release(handle)
    cached.check()


def test_release_is_idempotent() -> None:
    cached = Cached()
    handle, _ = cached.compute(ids(1, 2))
    cached.tree.release(handle)
    cached.tree.release(handle)
    assert cached.tree.evictable_tokens == 2
    cached.check()


def test_eviction_takes_the_least_recently_used_leaf_and_spares_locked_ones() -> None:
    cached = Cached()
    cached.insert(ids(1, 2, 3))
    cached.insert(ids(1, 2, 4, 5))
    cached.insert(ids(9, 9))
    handle = cached.tree.acquire(cached.tree.match(ids(1, 2, 3), NO_PICTURES))
    assert cached.tree.evict(1) == 2  # 4, 5
    assert cached.tree.evict(1) == 2  # 9, 9
    assert cached.tree.evict(1) == 0
    assert cached.length(ids(1, 2, 3)) == 3
    cached.tree.release(handle)
    assert cached.tree.evictable_tokens == 3
    assert cached.tree.flush() == 3
    cached.check()


def test_a_parent_whose_children_went_is_evicted_in_its_turn() -> None:
    cached = Cached()
    cached.insert(ids(1, 2, 3))
    cached.insert(ids(1, 2, 4))
    assert cached.tree.evict(3) >= 3
    cached.check()
    cached.tree.flush()
    assert cached.pool.free_count == cached.pool.size


def test_the_eviction_queue_stays_small_under_many_uses() -> None:
    cached = Cached()
    for _ in range(5000):
        cached.insert(ids(1, 2, 3))
    assert len(cached.tree._leaves) < 2000
    assert cached.tree.flush() == 3


class TreeMachine(RuleBasedStateMachine):
    """Random keys over a tiny alphabet with two pictures; the oracle is the set of inserted prefixes."""

    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.cached = Cached(size=400)
        self.known: dict[str, set[tuple[int, ...]]] = {"": set(), "t": set()}
        self.held: list[tuple[Handle, tuple[int, ...], str]] = []
        self.numbers = [self.cached.interner.intern(ContentHash(name)) for name in (b"p", b"q")]

    def key(self, parts: list[int]) -> tuple[IntArray, Spans]:
        """Parts 0..3 are tokens, 4 and 5 are pictures of three rows."""
        pieces: list[IntArray] = []
        starts, ends, numbers = [], [], []
        at = 0
        for part in parts:
            if part < 4:
                pieces.append(ids(part))
            else:
                number = self.numbers[part - 4]
                pieces.append(-1 - ((number << ROW_BITS) | np.arange(3)))
                starts.append(at)
                ends.append(at + 3)
                numbers.append(number)
            at += len(pieces[-1])
        return np.concatenate(pieces), Spans(tuple(starts), tuple(ends), tuple(numbers))

    def expected(self, key: IntArray, spans: Spans, salt: str) -> int:
        return max(
            (n for n in range(len(key) + 1) if spans.clamp(n) == n and tuple(key[:n]) in self.known[salt]), default=0
        )

    @rule(target=handles, parts=st.lists(st.integers(0, 5), min_size=1, max_size=8), salt=st.sampled_from(["", "t"]))
    def compute(self, parts: list[int], salt: str) -> object:
        key, spans = self.key(parts)
        if self.cached.pool.free_count < len(key):
            self.evict(len(key))
        if self.cached.pool.free_count < len(key):
            return None
        assert self.cached.length(key, spans, salt=salt) == self.expected(key, spans, salt)
        handle, _ = self.cached.compute(key, spans, salt)
        self.known[salt] |= {tuple(key[:n]) for n in range(1, len(key) + 1)}
        entry = (handle, tuple(key.tolist()), salt)
        self.held.append(entry)
        return entry

    @rule(entry=consumes(handles))
    def release(self, entry: tuple[Handle, tuple[int, ...], str] | None) -> None:
        if entry is not None:
            self.cached.tree.release(entry[0])
            self.held.remove(entry)

    @rule(n=st.integers(1, 40))
    def evict(self, n: int) -> None:
        evictable = self.cached.tree.evictable_tokens
        freed = self.cached.tree.evict(n)
        assert freed >= min(n, evictable)
        self.reread()

    @rule()
    def flush(self) -> None:
        self.cached.tree.flush()
        assert self.cached.tree.evictable_tokens == 0
        self.reread()

    def reread(self) -> None:
        """After an eviction the oracle keeps what the tree still has; held prefixes must be among it."""
        self.known = {"": set(), "t": set()}
        for node in self.cached.tree.nodes():
            path: tuple[int, ...] = ()
            at = node
            while at is not None:
                path = (*at.key.tolist(), *path)
                at = at.parent  # type: ignore[assignment]
            self.known[node.salt] |= {path[:n] for n in range(1, len(path) + 1)}
        for _, key, salt in self.held:
            assert key in self.known[salt], "a locked prefix was evicted"

    @invariant()
    def holds(self) -> None:
        self.cached.check()


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=210, stateful_step_count=50, deadline=None)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=12))
def test_what_was_inserted_is_found_whole(keys: list[list[int]]) -> None:
    cached = Cached(256)
    for key in keys:
        cached.insert(ids(*key))
    assert all(cached.length(ids(*key)) == len(key) for key in keys)
    cached.check()
