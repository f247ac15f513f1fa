from __future__ import annotations

import math
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from web.access.meter import SECONDS, Entry, Meter, Window


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_no_more_than_the_limit_in_any_minute_and_then_again() -> None:
    clock = Clock()
    meter = Meter(clock)
    for _ in range(3):
        assert meter.enter(0, 3, counted=True) == 0
        clock.now += 10
    assert meter.enter(0, 3, counted=True) == SECONDS - 30
    clock.now += 29.5
    assert meter.enter(0, 3, counted=True) == 0.5
    clock.now += 0.5
    assert meter.enter(0, 3, counted=True) == 0
    assert meter.enter(0, 3, counted=True) == 10


def test_what_is_not_counted_is_let_in_and_only_concurrency_binds_it() -> None:
    meter = Meter(Clock())
    assert meter.enter(2, 1, counted=True) == 0
    assert meter.enter(2, 1, counted=False) == 0
    assert meter.enter(2, 1, counted=False) > 0
    meter.leave()
    assert meter.enter(2, 1, counted=False) == 0
    assert meter.running == 2


def test_a_refused_request_counts_nowhere() -> None:
    clock = Clock()
    meter = Meter(clock)
    assert meter.enter(1, 2, counted=True) == 0
    assert meter.enter(1, 2, counted=True) == 1.0  # too many at a time
    meter.leave()
    assert meter.enter(1, 2, counted=True) == 0
    meter.leave()
    for _ in range(5):
        assert meter.enter(1, 2, counted=True) == SECONDS
    assert meter.running == 0
    clock.now += SECONDS
    assert meter.enter(1, 2, counted=True) == 0


def test_a_limit_of_zero_is_none() -> None:
    meter = Meter(Clock())
    assert [meter.enter(0, 0, counted=True) for _ in range(1000)] == [0] * 1000
    taken: list[Entry] = []
    assert [meter.take_picture(taken, 0) for _ in range(1000)] == [0] * 1000
    assert taken == []


def test_pictures_of_a_refused_request_are_given_back_and_the_wait_is_for_all_of_them() -> None:
    clock = Clock()
    meter = Meter(clock)
    first: list[Entry] = []
    for _ in range(2):
        assert meter.take_picture(first, 4) == 0
        clock.now += 20
    second: list[Entry] = []
    assert meter.take_picture(second, 4) == 0
    assert meter.take_picture(second, 4) == 0
    assert meter.take_picture(second, 4) == SECONDS - 40  # three fit once the first of the others is a minute old
    assert second == []
    third: list[Entry] = []
    assert [meter.take_picture(third, 4) for _ in range(2)] == [0, 0]


def test_a_client_that_waits_as_told_gets_through() -> None:
    clock = Clock()
    meter = Meter(clock)
    for i in range(5):
        meter.take_picture([], 5)
        clock.now += i
    for _ in range(5):
        taken: list[Entry] = []
        wait = next((w for w in (meter.take_picture(taken, 5) for _ in range(4)) if w), 0.0)
        if not wait:
            break
        clock.now += wait
    assert len(taken) == 4


def test_more_than_the_limit_never_fits() -> None:
    taken: list[Entry] = []
    meter = Meter(Clock())
    assert [meter.take_picture(taken, 2) for _ in range(3)] == [0, 0, math.inf]


@given(st.integers(1, 5), st.lists(st.tuples(st.floats(0, 40), st.integers(1, 6)), max_size=40))
def test_window_is_the_plain_count_of_the_last_minute(limit: int, steps: list[tuple[float, int]]) -> None:
    window, now, log = Window(), 0.0, list[tuple[float, int]]()

    def within(at: float) -> int:
        return sum(count for when, count in log if when + SECONDS > at)

    for pause, count in steps:
        now += pause
        wait = window.wait(count, limit, now)
        if count > limit:
            assert wait == math.inf
            continue
        assert (wait == 0) == (within(now) + count <= limit)
        if wait:
            # The times when something leaves the window: the wait ends at the first at which it fits.
            ends = sorted(when + SECONDS for when, _ in log if when + SECONDS > now)
            assert now + wait == next(end for end in ends if within(end) + count <= limit) or math.isclose(
                now + wait, next(end for end in ends if within(end) + count <= limit)
            )
        else:
            log.append((now, count))
            window.take(count, now)


def test_memory_is_bounded_by_the_limit() -> None:
    window, clock = Window(), iter(range(10**6))

    def seconds() -> Iterator[float]:
        yield from map(float, clock)

    for _, now in zip(range(1000), seconds(), strict=False):
        if window.wait(1, 7, now) == 0:
            window.take(1, now)
    assert len(window._entries) <= 7
