from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bench.scale import MEASURED, POLICIES, Chooser, Outcome, Replica, Times, World, simulate, table
from mmserve.deploy.routing import Bound

TIMES = Times(new=0.03, known=0.005, token=0.005, speed_up=((1, 1.0), (2, 2.0), (4, 4.0)))
SMALL = World(replicas=8, requests=4000, pictures=400, cache=30, tokens=4, load=0.1, together=4)


def test_the_measured_figures_are_whole() -> None:
    times = Times.load()
    assert 0 < times.known < times.new
    assert times.speeds(40)[[0, 1]].tolist() == [0.0, 1.0]
    assert (np.diff(times.speeds(40)) >= 0).all()
    assert json.loads(Path(MEASURED).read_text())["command"].startswith("python -m bench.service_times")


def test_work_is_that_of_the_measured_parts() -> None:
    assert TIMES.work(hit=True, tokens=1, speed=3.0) == pytest.approx(0.005)
    assert TIMES.work(hit=True, tokens=5, speed=3.0) == pytest.approx(0.025)
    assert TIMES.work(hit=False, tokens=1, speed=1.0) == pytest.approx(0.03)
    assert TIMES.work(hit=False, tokens=1, speed=4.0) == pytest.approx(0.005 + 4 * 0.025)
    assert TIMES.cost(hit_rate=0.5, tokens=1) == pytest.approx(0.005 / 4 + 0.5 * 0.025)


def test_a_replica_forgets_what_was_asked_about_longest_ago() -> None:
    replica = Replica()
    assert [replica.knows(picture, 2) for picture in (1, 2, 1, 3, 1, 2)] == [False, False, True, False, True, False]


def test_a_replica_shares_itself_evenly() -> None:
    """Two answers of one second each, the second half a second later, on a device that gains nothing from two."""
    replica, speeds = Replica(), np.array([0.0, 1.0, 1.0])
    replica.add(1.0, 0, 2)
    replica.advance(0.5, speeds)
    replica.add(1.0, 1, 2)
    assert replica.next_end(speeds) == pytest.approx(1.5)
    replica.advance(1.5, speeds)
    assert replica.end_first(2) == 0
    assert replica.next_end(speeds) == pytest.approx(2.0)


def test_what_finds_no_room_waits_its_turn() -> None:
    replica, speeds = Replica(), np.array([0.0, 1.0])
    for request in range(3):
        replica.add(1.0, request, 1)
    ends = []
    for _ in range(3):
        replica.advance(replica.next_end(speeds), speeds)
        ends.append((replica.end_first(1), replica.at))
    assert ends == [(0, 1.0), (1, 2.0), (2, 3.0)]


@pytest.mark.parametrize("policy", POLICIES)
def test_alone_and_idle_an_answer_takes_its_own_time(policy: str) -> None:
    world = World(replicas=1, requests=400, pictures=1, cache=1, tokens=1, load=0.001, together=4)
    outcome = simulate(policy, world, TIMES)
    assert outcome.hit_rate == 1.0
    assert outcome.p50 == pytest.approx(0.005)


def test_one_replica_leaves_no_choice() -> None:
    world = dataclasses.replace(SMALL, replicas=1)
    assert len({simulate(policy, world, TIMES).hit_rate for policy in POLICIES}) == 1


def test_a_run_is_repeatable_and_another_seed_is_another_run() -> None:
    first, again = (simulate("ours", SMALL, TIMES) for _ in range(2))
    assert first == again != simulate("ours", dataclasses.replace(SMALL, seed=1), TIMES)


def test_hashing_finds_more_and_the_bound_keeps_the_load_even() -> None:
    random, _, hashed, ours = (simulate(policy, SMALL, TIMES) for policy in POLICIES)
    assert hashed.hit_rate > ours.hit_rate - 0.02 > random.hit_rate + 0.2
    assert ours.cost < 0.8 * random.cost
    popular = dataclasses.replace(SMALL, zipf=1.5, load=0.3, bound=Bound(1.25, 2))
    hashed, ours = simulate("consistent hash", popular, TIMES), simulate("ours", popular, TIMES)
    assert ours.spread < 0.8 * hashed.spread
    assert ours.p99 < 0.5 * hashed.p99


def test_the_least_loaded_is_any_of_them() -> None:
    chooser = Chooser("least loaded", SMALL, np.random.default_rng(0))
    loads = np.array([2, 1, 3, 1, 2, 2, 1, 2])
    assert {chooser.choose(0, loads) for _ in range(100)} == {1, 3, 6}


def test_the_table_has_a_line_for_each_result() -> None:
    text = table([("ours", SMALL, Outcome(0.5, 0.1, 0.2, 12.3, 1.5))])
    assert text.splitlines()[1].split() == ["8", "4,000", "ours", "50.0%", "0.100", "0.200", "12.30", "1.50"]
