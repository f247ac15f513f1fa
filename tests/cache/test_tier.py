"""The second tier: what it keeps and lends, and that damaged bytes are a miss."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mmserve.cache.costs import FetchCosts, StepTimes
from mmserve.cache.host import FileStore, HostStore, PinnedStore
from mmserve.cache.key import ROW_BITS, Interner, Spans
from mmserve.cache.kv import KVCache
from mmserve.cache.pages import SlotPool
from mmserve.cache.radix import RadixCache
from mmserve.cache.tier import SecondTier
from mmserve.types import ContentHash, IntArray

NO_PICTURES = Spans()


def ids(*values: int) -> IntArray:
    return np.array(values, dtype=np.int64)


def check(tier: SecondTier) -> None:
    everything = np.concatenate([tier.pool.free_slots(), tier.tree.check()])
    assert sorted(everything.tolist()) == list(range(tier.pool.size))


def test_a_kept_prefix_is_lent_from_where_the_device_ends() -> None:
    tier = SecondTier(16, Interner(), FetchCosts(2))
    copy = tier.keep(ids(1, 2, 3, 4), ids(10, 11, 12, 13), NO_PICTURES, "")
    assert copy is not None
    assert list(copy.source) == [10, 11, 12, 13]
    loan = tier.borrow(ids(1, 2, 3, 9), NO_PICTURES, salt="", hit=1)
    assert loan is not None
    assert (loan.start, loan.stop) == (1, 3)
    assert list(loan.slots) == list(copy.target[1:3])
    tier.give_back(loan)
    check(tier)


def test_only_what_is_new_is_copied() -> None:
    tier = SecondTier(16, Interner(), FetchCosts(1))
    tier.keep(ids(1, 2, 3), ids(10, 11, 12), NO_PICTURES, "")
    copy = tier.keep(ids(1, 2, 5, 6), ids(10, 11, 15, 16), NO_PICTURES, "")
    assert copy is not None
    assert list(copy.source) == [15, 16]
    assert tier.keep(ids(1, 2, 5), ids(10, 11, 15), NO_PICTURES, "") is None


def test_short_prefixes_and_small_gains_are_left_to_recomputing() -> None:
    tier = SecondTier(16, Interner(), FetchCosts(3))
    assert tier.keep(ids(1, 2), ids(10, 11), NO_PICTURES, "") is None
    tier.keep(ids(1, 2, 3, 4), ids(10, 11, 12, 13), NO_PICTURES, "")
    assert tier.reach(ids(1, 2, 3, 4, 5), NO_PICTURES, salt="", hit=0) == 4
    assert tier.reach(ids(1, 2, 3, 4, 5), NO_PICTURES, salt="", hit=2) == 2
    assert tier.borrow(ids(1, 2, 3, 4, 5), NO_PICTURES, salt="", hit=2) is None
    assert tier.borrow(ids(1, 2, 3, 4, 5), NO_PICTURES, salt="other", hit=0) is None


def test_the_oldest_makes_room_and_a_loan_is_spared() -> None:
    tier = SecondTier(6, Interner(), FetchCosts(1))
    tier.keep(ids(1, 2, 3), ids(0, 1, 2), NO_PICTURES, "")
    tier.keep(ids(4, 5, 6), ids(3, 4, 5), NO_PICTURES, "")
    loan = tier.borrow(ids(1, 2, 3, 9), NO_PICTURES, salt="", hit=0)
    assert loan is not None
    assert tier.keep(ids(7, 8, 9), ids(6, 7, 8), NO_PICTURES, "") is not None
    assert tier.reach(ids(4, 5, 6, 9), NO_PICTURES, salt="", hit=0) == 0
    assert tier.keep(ids(5, 1, 1, 1), ids(9, 10, 11, 12), NO_PICTURES, "") is None
    tier.give_back(loan)
    check(tier)


def test_a_picture_is_lent_whole_and_referred_to() -> None:
    interner = Interner()
    number = interner.intern(ContentHash(b"p"))
    tier = SecondTier(16, interner, FetchCosts(1))
    key = np.concatenate([ids(1), -1 - ((number << ROW_BITS) | np.arange(3)), ids(2)])
    spans = Spans((1,), (4,), (number,))
    tier.keep(key, np.arange(5), spans, "")
    assert interner.references()[number] == 2
    assert tier.reach(key[:4], spans, salt="", hit=0) == 1
    assert tier.reach(key, spans, salt="", hit=0) == 4


def test_the_tree_offers_whole_paths() -> None:
    pool, interner = SlotPool(16), Interner()
    tree = RadixCache(pool, interner)
    offered: list[tuple[list[int], list[int], str]] = []

    def offer(key: IntArray, slots: IntArray, _: Spans, salt: str) -> None:
        offered.append((key.tolist(), slots.tolist(), salt))

    tree.on_evict = offer
    slots: dict[tuple[int, ...], list[int]] = {}
    for key in ((1, 2, 3), (1, 2, 4)):
        handle = tree.acquire(tree.match(ids(*key), NO_PICTURES), salt="")
        own = np.concatenate([tree.slots(handle), pool.alloc(len(key) - handle.length)])
        slots[key] = tree.extend(handle, ids(*key), own, NO_PICTURES).tolist()
        tree.release(handle)
    tree.evict(1)
    tree.evict(16)
    assert offered == [
        ([1, 2, 3], slots[1, 2, 3], ""),
        ([1, 2, 4], slots[1, 2, 4], ""),
        ([1, 2], slots[1, 2, 3][:2], ""),
    ]
    tree.on_evict = None


@pytest.fixture(params=["pinned", "file"])
def store(request: pytest.FixtureRequest, kv: KVCache, tmp_path: Path) -> HostStore:
    return PinnedStore(kv, 32) if request.param == "pinned" else FileStore(kv, 32, tmp_path)


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def kv(request: pytest.FixtureRequest) -> KVCache:
    cache = KVCache(3, 20, 2, 4, request.param, torch.device("cpu"))
    for tensor in (*cache.keys, *cache.values):
        tensor.copy_(torch.randn(tensor.shape))
    return cache


def snapshot(kv: KVCache, slots: IntArray) -> list[torch.Tensor]:
    return [tensor[torch.from_numpy(slots)].clone() for tensor in (*kv.keys, *kv.values)]


def test_a_round_trip_gives_every_bit_back(kv: KVCache, store: HostStore) -> None:
    source, kept, target = ids(3, 4, 9, 1), ids(30, 7, 8, 2), ids(11, 15, 12, 19)
    before, others = snapshot(kv, source), snapshot(kv, ids(0, 5))
    store.save(kv, source, kept)
    assert store.load(kv, kept, target)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(kv, target), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(others, snapshot(kv, ids(0, 5)), strict=True))
    assert store.load(kv, kept[1:3], target[:2])
    assert all(torch.equal(a[1:3], b) for a, b in zip(before, snapshot(kv, target[:2]), strict=True))
    store.close()


@pytest.mark.parametrize("damage", ["flipped bit", "cut off"])
def test_a_damaged_file_is_a_miss(kv: KVCache, tmp_path: Path, damage: str) -> None:
    store = FileStore(kv, 32, tmp_path)
    store.save(kv, ids(1, 2, 3), ids(4, 5, 6))
    before = snapshot(kv, ids(10, 11, 12))
    descriptor = store.file.fileno()
    size = os.fstat(descriptor).st_size
    if damage == "cut off":
        os.ftruncate(descriptor, size - 1)
    else:
        byte = os.pread(descriptor, 1, size - 5)
        os.pwrite(descriptor, bytes([byte[0] ^ 1]), size - 5)
    assert not store.load(kv, ids(4, 5, 6), ids(10, 11, 12))
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(kv, ids(10, 11, 12)), strict=True))
    assert store.load(kv, ids(4, 5), ids(10, 11))
    store.close()


def test_a_slot_that_could_not_be_written_is_a_miss(
    kv: KVCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = FileStore(kv, 32, tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    store.save(kv, ids(1), ids(4))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        store.save(kv, ids(2), ids(4))
    assert "No space left" in caplog.text
    assert not store.load(kv, ids(4), ids(10))
    assert not store.load(kv, ids(31), ids(10))
    store.close()


def learned(*, step: float, token: float, row: float, fetch: float) -> FetchCosts:
    """Costs that saw a decode, a prefill of 1000 tokens, an encoder run and a fetch, in seconds each."""
    costs = FetchCosts(8)
    costs.observe(StepTimes(step, 1))
    costs.observe(StepTimes(step + 1000 * token + 100 * row, 1000, encode_seconds=100 * row, encoded_rows=100))
    costs.observe(StepTimes(step + 1000 * fetch, 1, fetch_seconds=1000 * fetch, fetched_tokens=1000))
    return costs


def test_before_anything_is_known_gains_of_the_least_size_are_fetched() -> None:
    costs = FetchCosts(8)
    assert costs.worth(8, 0)
    assert not costs.worth(7, 7)


def test_a_slow_device_fetches_and_a_fast_one_recomputes_all_but_pictures() -> None:
    laptop = learned(step=4e-3, token=2e-4, row=4e-4, fetch=2e-5)
    assert laptop.worth(64, 0)
    assert not laptop.worth(16, 0)
    accelerator = learned(step=2e-3, token=2e-7, row=6e-5, fetch=6e-7)
    assert not accelerator.worth(4096, 0)
    assert accelerator.worth(283, 256)


def test_a_stale_price_fades() -> None:
    costs = learned(step=1e-3, token=1e-4, row=0.0, fetch=1.0)
    assert not costs.worth(1000, 0)
    for _ in range(20_000):
        costs.observe(StepTimes(1e-3, 1))
    assert costs.worth(1000, 0)
