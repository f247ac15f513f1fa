"""When an engine counts as standing still."""

from __future__ import annotations

import pytest

from mmserve.engine.process.messages import Pong
from mmserve.engine.process.watchdog import WARM_UP, Watchdog


@pytest.fixture
def dog() -> Watchdog:
    return Watchdog(10.0, now=0.0)


def test_an_idle_engine_may_idle_for_ever(dog: Watchdog) -> None:
    for now in range(0, 1000, 5):
        dog.heard(Pong(3, busy=False, warm=True), now)
        assert dog.verdict(now + 1) is None


def test_a_process_that_does_not_answer_stands_still(dog: Watchdog) -> None:
    dog.heard(Pong(), 1.0)
    assert dog.verdict(11.0) is None
    assert "not answered for 11 s" in (dog.verdict(12.0) or "")


def test_a_busy_engine_that_makes_turns_is_well(dog: Watchdog) -> None:
    for turn in range(100):
        dog.heard(Pong(turn, busy=True, warm=True), turn * 9.0)
        assert dog.verdict(turn * 9.0 + 9.0) is None


def test_a_busy_engine_without_a_turn_stands_still(dog: Watchdog) -> None:
    for now in range(11):
        dog.heard(Pong(5, busy=True, warm=True), now)
        assert dog.verdict(now) is None
    dog.heard(Pong(5, busy=True, warm=True), 11)
    assert "no step for 11 s" in (dog.verdict(11) or "")


def test_time_counts_from_when_the_work_came(dog: Watchdog) -> None:
    for now in range(100):
        dog.heard(Pong(5, busy=False, warm=True), now)
    dog.heard(Pong(5, busy=True, warm=True), 100)
    assert dog.verdict(110) is None
    dog.heard(Pong(5, busy=True, warm=True), 110.5)
    assert dog.verdict(110.5) is not None


def test_a_first_step_may_compile(dog: Watchdog) -> None:
    last = int(10 * WARM_UP)
    for now in range(last + 1):
        dog.heard(Pong(1, busy=True, warm=False), now)
        assert dog.verdict(now) is None
    dog.heard(Pong(1, busy=True, warm=False), last + 1)
    assert dog.verdict(last + 1) is not None


def test_who_did_not_listen_blames_nobody(dog: Watchdog) -> None:
    dog.heard(Pong(5, busy=True, warm=True), 1)
    dog.pardon(500)
    assert dog.verdict(505) is None
    assert dog.verdict(511) is not None
