"""What the supervisor does when engines end: over links that are no processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from mmserve.engine.process.link import EngineLink
from mmserve.engine.process.supervisor import BackOff, Supervisor
from mmserve.errors import CheckpointError

pytestmark = pytest.mark.anyio
SOON = BackOff(first=0.001, most=0.004)


class FakeLink(EngineLink):
    def __init__(self, **stats: float) -> None:
        self.stats = stats
        self.failure = None
        self.stopped = False
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def max_model_len(self) -> int:
        return 10

    async def ended(self) -> str:
        return await self._end

    def die(self, **stats: float) -> None:
        self.stats = stats
        self._end.set_result("it was ended by SIGKILL")

    def stop(self) -> None:
        self.stopped = True
        if not self._end.done():
            self._end.set_result("it ended with status 0")


def starter(*outcomes: FakeLink | Exception) -> Callable[[], Awaitable[EngineLink]]:
    left = list(outcomes)

    async def start() -> EngineLink:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return start


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_totals_never_fall_and_gauges_are_the_living_engines() -> None:
    first, second, third = FakeLink(), FakeLink(), FakeLink()
    supervisor = await Supervisor.start(starter(first, second, third), SOON)
    first.stats = {"steps": 5.0, "grammar_hits": 1.0, "slots_free": 9.0}
    assert supervisor.stats() == {"steps": 5.0, "grammar_hits": 1.0, "slots_free": 9.0, "engine_restarts": 0.0}
    first.die(steps=6.0, grammar_hits=1.0, slots_free=8.0)
    await until(lambda: supervisor.link is second)
    assert supervisor.stats() == {"steps": 6.0, "grammar_hits": 1.0, "engine_restarts": 1.0}
    second.die(steps=2.0, evicted_tokens=3.0, slots_free=7.0)
    await until(lambda: supervisor.link is third)
    third.stats = {"steps": 1.0, "slots_free": 4.0}
    assert supervisor.stats() == {
        "steps": 9.0,
        "grammar_hits": 1.0,
        "evicted_tokens": 3.0,
        "slots_free": 4.0,
        "engine_restarts": 2.0,
    }
    await supervisor.close()
    assert third.stopped


async def test_what_was_in_an_engine_that_died_has_failed() -> None:
    first, second = FakeLink(), FakeLink()
    supervisor = await Supervisor.start(starter(first, second), SOON)
    first.die(requests_added=9.0, requests_finished=4.0, requests_failed=1.0, requests_aborted=2.0)
    await until(lambda: supervisor.link is second)
    second.stats = {"requests_added": 3.0, "requests_failed": 1.0}
    stats = supervisor.stats()
    assert (stats["requests_added"], stats["requests_failed"]) == (12.0, 4.0)
    await supervisor.close()


async def test_it_never_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    first, last = FakeLink(steps=2.0), FakeLink()
    failures = [CheckpointError("the disk is away"), OSError("no process"), CheckpointError("still away")]
    supervisor = await Supervisor.start(starter(first, *failures, last), SOON)
    with caplog.at_level(logging.WARNING):
        first.die(steps=2.0)
        await until(lambda: supervisor.link is last)
    assert supervisor.restarts == 4
    assert supervisor.stats()["steps"] == 2.0
    assert "SIGKILL" in caplog.text
    assert "the disk is away" in caplog.text
    await until(lambda: "answers again" in caplog.text)
    await supervisor.close()


async def test_a_first_start_that_fails_is_the_callers() -> None:
    with pytest.raises(CheckpointError, match="away"):
        await Supervisor.start(starter(CheckpointError("the disk is away")))


async def test_closing_while_it_waits_to_start_again_starts_nothing() -> None:
    first = FakeLink()
    supervisor = await Supervisor.start(starter(first), BackOff(first=3600))
    first.die()
    await until(lambda: supervisor.link is None)
    await supervisor.close()
    await supervisor.close()
    assert supervisor.restarts == 0


async def test_closing_while_another_starts_gives_that_up() -> None:
    first, given_up = FakeLink(), asyncio.Event()
    starts = 0

    async def start() -> EngineLink:
        nonlocal starts
        starts += 1
        if starts == 1:
            return first
        try:
            await asyncio.sleep(3600)
        finally:
            given_up.set()
        raise AssertionError

    supervisor = await Supervisor.start(start, SOON)
    first.die()
    await until(lambda: starts == 2)
    await supervisor.close()
    assert given_up.is_set()


async def test_an_engine_that_ends_while_it_is_closed_is_not_missed() -> None:
    first = FakeLink()
    supervisor = await Supervisor.start(starter(first), SOON)
    await asyncio.gather(supervisor.close(), supervisor.close())
    assert supervisor.restarts == 0


def test_the_wait_grows_to_its_bound() -> None:
    back_off = BackOff(first=0.5, most=30)
    assert [back_off.delay(n) for n in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert back_off.delay(10_000) == 30


async def test_an_engine_that_lived_long_is_started_at_once() -> None:
    first, second = FakeLink(), FakeLink()
    supervisor = await Supervisor.start(starter(first, second), BackOff(first=3600, steady=0))
    first.die()
    await until(lambda: supervisor.link is second)
    await supervisor.close()
