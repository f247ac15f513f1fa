from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.deploy.routing import Bound, Rendezvous
from mmserve.errors import ConfigError

names = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=12)
keys = st.binary(min_size=0, max_size=40)
KEYS = [f"key {i}".encode() for i in range(4000)]


@given(names, keys)
def test_an_order_has_every_replica_once_and_does_not_depend_on_how_they_were_named(
    replicas: set[str], key: bytes
) -> None:
    order = Rendezvous(replicas).order(key)
    assert sorted(order) == sorted(replicas)
    assert order == Rendezvous(sorted(replicas, reverse=True)).order(key)
    assert order == Rendezvous([*replicas, *replicas]).order(key)


def test_orders_are_the_same_in_every_process_and_version() -> None:
    """Fronts agree only by computing the same, so a change of the hash would move every picture once."""
    assert Rendezvous(["a", "b", "c", "d"]).order(b"picture") == ["c", "a", "b", "d"]
    assert Rendezvous(str(i) for i in range(20)).order(b"")[:5] == ["4", "7", "17", "15", "19"]


@given(names, st.text(min_size=1, max_size=8), st.lists(keys, max_size=20))
def test_a_replica_that_comes_or_goes_moves_no_key_between_the_others(
    replicas: set[str], other: str, some: list[bytes]
) -> None:
    """The order of those that stay is the same for every key, which is the least movement there can be."""
    few, many = Rendezvous(replicas - {other}), Rendezvous(replicas | {other})
    for key in some:
        assert [name for name in many.order(key) if name != other] == few.order(key)


def test_a_replica_that_joins_takes_its_share_and_no_more() -> None:
    before, after = (Rendezvous(f"r{i}" for i in range(n)) for n in (9, 10))
    moved = [key for key in KEYS if before.order(key)[0] != after.order(key)[0]]
    assert all(after.order(key)[0] == "r9" for key in moved)
    # A tenth of 4000, give or take five standard deviations of the binomial.
    assert abs(len(moved) - 400) < 5 * math.sqrt(4000 * 0.1 * 0.9)


def test_keys_spread_evenly_at_every_rank() -> None:
    rendezvous = Rendezvous(f"10.0.0.{i}:8000" for i in range(8))
    orders = [rendezvous.order(key) for key in KEYS]
    for rank in range(8):
        counts = Counter(order[rank] for order in orders)
        chi_squared = sum((counts[name] - 500) ** 2 / 500 for name in rendezvous.replicas)
        assert chi_squared < 29.9  # of 7 degrees of freedom: one in ten thousand


@given(names, st.lists(keys, min_size=1, max_size=60), st.floats(1.0, 3.0), st.integers(1, 5))
def test_no_replica_ever_has_more_than_its_bound(
    replicas: set[str], some: list[bytes], balance: float, spare: int
) -> None:
    rendezvous, bound = Rendezvous(replicas), Bound(balance, spare)
    loads: dict[str, int] = {}
    for number, key in enumerate(some):
        first = rendezvous.choices(key, loads, bound)[0]
        loads[first] = loads.get(first, 0) + 1
        assert loads[first] <= max(spare, math.ceil(balance * (number + 1) / len(replicas)))


@given(names, keys, st.integers(1, 9), st.floats(1.0, 2.0), st.data())
def test_of_those_under_the_bound_the_first_in_the_keys_order_is_chosen(
    replicas: set[str], key: bytes, spare: int, balance: float, data: st.DataObject
) -> None:
    loads = {name: data.draw(st.integers(0, 30)) for name in sorted(replicas)}
    rendezvous, bound = Rendezvous(replicas), Bound(balance, spare)
    capacity = bound.capacity(sum(loads.values()), len(replicas))
    choices = rendezvous.choices(key, loads, bound)
    allowed = [name for name in rendezvous.order(key) if loads[name] < capacity]
    assert allowed
    assert choices[: len(allowed)] == allowed
    assert sorted(choices) == sorted(replicas)
    rest = [loads[name] for name in choices[len(allowed) :]]
    assert rest == sorted(rest)
    array = np.array([loads[name] for name in rendezvous.replicas])
    assert rendezvous.replicas[rendezvous.place(key, array, bound)] == choices[0]
    assert rendezvous.replicas[rendezvous.place(key, array, None)] == rendezvous.order(key)[0]


def test_a_popular_picture_spills_to_the_same_replicas_in_the_same_order() -> None:
    rendezvous, bound = Rendezvous("abcd"), Bound(1.25, spare=2)
    order = rendezvous.order(b"popular")
    loads = dict.fromkeys("abcd", 0)
    went = []
    for _ in range(6):
        went.append(rendezvous.choices(b"popular", loads, bound)[0])
        loads[went[-1]] += 1
    assert went == [name for name in order[:3] for _ in range(2)]


@given(names, keys)
def test_those_to_avoid_come_last_however_idle_they_are(replicas: set[str], key: bytes) -> None:
    rendezvous = Rendezvous(replicas)
    order = rendezvous.order(key)
    avoided = order[:2]
    loads = {name: 100 for name in replicas if name not in avoided}
    assert rendezvous.choices(key, loads, Bound(), avoided)[-len(avoided) :] == avoided


def test_without_replicas_there_is_no_choice() -> None:
    assert Rendezvous(()).choices(b"key", {}, Bound()) == []


@pytest.mark.parametrize("balance", [0.99, math.inf, math.nan])
def test_a_balance_that_cannot_be_kept_is_refused(balance: float) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Bound(balance)


def test_a_replica_that_may_have_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 request"):
        Bound(spare=0)
