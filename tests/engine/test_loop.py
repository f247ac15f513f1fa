"""The engine's thread by itself: what is compiled, aborted and flushed while it comes and goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from mmserve.engine.engine import Engine
from mmserve.engine.loop import EngineLoop
from mmserve.errors import EngineUnavailable, UnsupportedConstraint
from mmserve.grammar.spec import Regex
from mmserve.types import TokenEvent
from tests.engine.process.fakes import FakeEngine, ask

LONG = 100_000


class Heard:
    """What a loop delivered."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []

    def __call__(self, events: Sequence[TokenEvent]) -> None:
        self.events += events

    def last(self, request_id: str) -> TokenEvent | None:
        return next((event for event in self.events if event.request_id == request_id and event.last), None)

    def of(self, request_id: str) -> TokenEvent:
        """The last event of a request, once it has come."""
        until(lambda: self.last(request_id) is not None)
        event = self.last(request_id)
        assert event is not None
        return event


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def loop(engine: FakeEngine, heard: Heard) -> Iterator[EngineLoop]:
    loop = EngineLoop(cast(Engine, engine), heard)
    yield loop
    loop.stop()
    loop.join()
    assert engine.closed
    assert not loop.alive


def test_it_answers_and_sleeps(loop: EngineLoop, heard: Heard) -> None:
    assert loop.alive
    loop.submit(ask("a", 3))
    assert heard.of("a").finish_reason == "length"
    turns = loop.turns
    time.sleep(0.1)
    assert loop.turns - turns <= 1


def test_a_constraint_that_is_compiled_late_joins_late(loop: EngineLoop, engine: FakeEngine, heard: Heard) -> None:
    loop.submit(ask("a", 1, constraint=Regex("late")))
    loop.submit(ask("b", 1))
    heard.of("b")
    assert heard.last("a") is None
    engine.compiles[0].set_result("compiled")
    assert heard.of("a").finish_reason == "length"


def test_a_constraint_that_is_refused_ends_its_request(loop: EngineLoop, heard: Heard) -> None:
    loop.submit(ask("a", 1, constraint=Regex("b")))
    assert isinstance(heard.of("a").error, UnsupportedConstraint)


def test_a_compiler_that_refuses_at_once_does_too(
    loop: EngineLoop, engine: FakeEngine, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise UnsupportedConstraint("too many wait")

    monkeypatch.setattr(engine, "compile", full)
    loop.submit(ask("a", 1, constraint=Regex("a")))
    assert "too many" in str(heard.of("a").error)


def test_an_engine_that_cannot_take_a_request_ends_that_alone(
    loop: EngineLoop,
    engine: FakeEngine,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no positions")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "add", broken)
        loop.submit(ask("a"))
        assert "RuntimeError" in str(heard.of("a").error)
    assert "no positions" in caplog.text
    loop.submit(ask("b"))
    assert heard.of("b").error is None


def test_who_leaves_while_his_constraint_is_compiled_is_never_added(
    loop: EngineLoop, engine: FakeEngine, heard: Heard
) -> None:
    loop.submit(ask("a", LONG, constraint=Regex("late")))
    loop.abort("a")
    engine.compiles[0].set_result("compiled")
    loop.submit(ask("b", 1))
    heard.of("b")
    assert engine.counts["requests_added"] == 1


def test_who_leaves_is_aborted(loop: EngineLoop, engine: FakeEngine) -> None:
    loop.submit(ask("a", LONG))
    until(lambda: bool(engine.requests))
    loop.abort("a")
    loop.abort("nobody")
    until(lambda: engine.idle)
    assert engine.counts["requests_aborted"] == 1


def test_flush_is_done_between_steps(loop: EngineLoop) -> None:
    assert loop.flush().result(20) == 7
    loop.submit(ask("a", LONG))
    assert loop.flush().result(20) == 7
    loop.abort("a")


def test_an_end_answers_all_that_is_under_way(engine: FakeEngine, heard: Heard) -> None:
    loop = EngineLoop(cast(Engine, engine), heard)
    loop.submit(ask("runs", LONG))
    loop.submit(ask("compiles", 1, constraint=Regex("late")))
    loop.submit(ask("left", LONG))
    loop.abort("left")
    until(lambda: "runs" in engine.requests)
    loop.stop()
    loop.submit(ask("late", 1))
    loop.join()
    for name in ("runs", "compiles"):
        assert isinstance(heard.of(name).error, EngineUnavailable)
    assert heard.last("left") is None
    with pytest.raises(EngineUnavailable):
        loop.flush()


def test_a_step_that_raises_ends_the_loop_and_says_so(
    engine: FakeEngine, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    loop = EngineLoop(cast(Engine, engine), heard)
    loop.submit(ask("a", 3, "crash"))
    assert "RuntimeError" in str(heard.of("a").error)
    loop.join()
    assert not loop.alive
    assert engine.closed
    assert "a slot is lost" in caplog.text
