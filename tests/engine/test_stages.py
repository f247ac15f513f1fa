"""The stages of a request: what the clock notes of plans, and what a whole engine reports."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.plan import Chunk, SchedulerOutput
from mmserve.engine.stages import REMEMBERED_ITEMS, StageClock
from mmserve.errors import CorruptPicture
from mmserve.prompt import PromptBuilder
from mmserve.types import ContentHash, Grid, ImageHeader, Picture, Prompt, Stages, TokenEvent
from tests.engine.pictures import png
from tests.engine.test_engine import Asker, run

ZEROS = np.zeros(1, dtype=np.int64)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def picture(name: str) -> Picture:
    return Picture(b"", ImageHeader("PNG", 1, 1), ContentHash(name.encode()), Grid(1, 1, 1), 1)


def prompt(*names: str) -> Prompt:
    return Prompt(ZEROS, tuple(map(picture, names)))


def chunk(request_id: str) -> Chunk:
    return Chunk(request_id, 0, ZEROS, ZEROS[None], ZEROS)


def run_plan(clock: StageClock, plan: SchedulerOutput) -> None:
    clock.planned(plan)
    clock.executed(plan)


def test_a_request_without_pictures_waits_until_its_first_chunk() -> None:
    clock = StageClock(Clock())
    clock.added("a", prompt())
    run_plan(clock, SchedulerOutput(prefill=(chunk("a"),)))
    run_plan(clock, SchedulerOutput(prefill=(chunk("a"),)))  # a later chunk changes nothing
    assert clock.end("a") == Stages(1.0, 2.0, None)
    assert clock.end("a") is None


def test_pictures_of_the_step_that_admits_are_counted() -> None:
    clock = StageClock(Clock())
    clock.added("a", prompt("p"))
    run_plan(clock, SchedulerOutput(prepare=(picture("p"),)))
    run_plan(clock, SchedulerOutput(encode=(ContentHash(b"p"),), prefill=(chunk("a"),)))
    assert clock.end("a") == Stages(1.0, 3.0, (2.0, 4.0))


def test_what_was_encoded_before_a_request_came_is_not_its_own() -> None:
    clock = StageClock(Clock())
    run_plan(clock, SchedulerOutput(prepare=(picture("p"),)))
    run_plan(clock, SchedulerOutput(encode=(ContentHash(b"p"),)))
    clock.added("a", prompt("p"))
    run_plan(clock, SchedulerOutput(prefill=(chunk("a"),)))
    stages = clock.end("a")
    assert stages is not None
    assert stages.encoding is None


def test_work_that_had_begun_counts_from_the_arrival() -> None:
    clock = StageClock(Clock())
    run_plan(clock, SchedulerOutput(prepare=(picture("p"),)))
    clock.added("a", prompt("p", "q"))
    run_plan(clock, SchedulerOutput(prepare=(picture("q"),)))
    run_plan(clock, SchedulerOutput(encode=(ContentHash(b"p"), ContentHash(b"q"))))
    run_plan(clock, SchedulerOutput(prefill=(chunk("a"),)))
    assert clock.end("a") == Stages(2.0, 5.0, (2.0, 4.0))


def test_a_request_that_never_ran_has_no_stages() -> None:
    clock = StageClock(Clock())
    clock.added("a", prompt())
    assert clock.end("a") is None


def test_nothing_is_kept_for_ever() -> None:
    clock = StageClock(Clock())
    for number in range(REMEMBERED_ITEMS + 10):
        name = f"p{number}"
        run_plan(clock, SchedulerOutput(prepare=(picture(name),)))
        run_plan(clock, SchedulerOutput(encode=(ContentHash(name.encode()),)))
    run_plan(clock, SchedulerOutput(prepare=(picture("gone"), picture("broken"))))
    run_plan(clock, SchedulerOutput(forget=(ContentHash(b"gone"),)))
    clock.dropped(ContentHash(b"broken"))
    assert len(clock._encoded) == REMEMBERED_ITEMS
    assert not clock._started


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> PromptBuilder:
    return PromptBuilder(checkpoint, Limits())


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    engine = build_engine(checkpoint, EngineConfig(device="cpu", check_invariants=True, kv_slots=4096))
    yield engine
    engine.close()


def last_of(events: list[TokenEvent]) -> TokenEvent:
    assert all(event.stages is None for event in events[:-1])
    return events[-1]


def test_the_engine_tells_with_the_last_event(engine: Engine, prompts: PromptBuilder) -> None:
    ask = Asker(prompts)
    new, known = ask("What?", png("red")), ask("What else?", png("red"))
    first = last_of(run(engine, new)[new.id]).stages
    assert first is not None
    assert first.encoding is not None
    assert first.added <= first.encoding[0] <= first.encoding[1]
    assert first.added <= first.admitted
    second = last_of(run(engine, known)[known.id]).stages
    assert second is not None
    assert second.encoding is None


def test_failures_leave_nothing_behind(engine: Engine, prompts: PromptBuilder) -> None:
    ask = Asker(prompts)
    noise = png("noise", (80, 80))
    broken, aborted = ask("What?", noise[: len(noise) // 2]), ask("What?")
    (event,) = run(engine, broken)[broken.id]
    assert isinstance(event.error, CorruptPicture)
    engine.add(engine.resolve(aborted))
    engine.abort(aborted.id)
    assert not engine._stages._passages
    assert not engine._stages._started
