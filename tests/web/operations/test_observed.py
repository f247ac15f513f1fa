"""ObservedEngine: the same engine to its callers, and what it tells of each request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing

import numpy as np
import pytest

from mmserve.errors import CorruptPicture, MMServeError
from mmserve.sampling import SamplingParams
from mmserve.types import Prompt, Request, Stages, TokenEvent, Usage
from tests.web.fakes import FakeEngine, Step, forever, say
from web.operations.metrics import FINISH_REASONS, ServiceMetrics
from web.operations.observed import ObservedEngine, outcome_of
from web.operations.story import Generation, Story, current

pytestmark = pytest.mark.anyio
USAGE = Usage(4, 2, 1, 0)


class Recorded:
    def __init__(self) -> None:
        self.told: list[tuple[Generation, Story | None]] = []

    def record(self, generation: Generation, story: Story | None) -> None:
        self.told.append((generation, story))


class Clock:
    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def observed(engine: FakeEngine, recorded: Recorded) -> ObservedEngine:
    return ObservedEngine(engine, ServiceMetrics(), recorded, Clock())


def request() -> Request:
    return Request("r", Prompt(np.zeros(4, dtype=np.int64)), SamplingParams(max_tokens=5))


async def events_of(observed: ObservedEngine) -> list[TokenEvent]:
    return [event async for event in observed.generate(request())]


async def test_events_pass_through_untouched(observed: ObservedEngine, engine: FakeEngine) -> None:
    asked = request()
    expected = list(say("It", " is", " a cat.", request=asked))
    assert [event async for event in observed.generate(asked)] == expected
    assert engine.requests == [asked]


async def test_times_and_stages_of_an_answer(observed: ObservedEngine, engine: FakeEngine, recorded: Recorded) -> None:
    stages = Stages(11.0, 11.5)

    def script(_: Request) -> Iterator[Step]:
        yield TokenEvent("r", text="a", token_ids=(1,))
        yield TokenEvent("r", text="b", token_ids=(2,), finish_reason="length", usage=USAGE, stages=stages)

    engine.script = script
    await events_of(observed)
    ((generation, story),) = recorded.told
    assert story is None
    assert (generation.outcome, generation.error) == ("length", None)
    assert (generation.started, generation.first_token, generation.ended) == (11.0, 12.0, 14.0)
    assert (generation.usage, generation.stages) == (USAGE, stages)


async def test_a_caller_who_stops_after_the_last_event_has_its_answer(
    observed: ObservedEngine, recorded: Recorded
) -> None:
    async with aclosing(observed.generate(request())) as events:
        async for event in events:
            if event.last:
                break
    assert [generation.outcome for generation, _ in recorded.told] == ["stop"]


async def test_a_caller_who_leaves_aborts(observed: ObservedEngine, engine: FakeEngine, recorded: Recorded) -> None:
    engine.script = forever
    async with aclosing(observed.generate(request())) as events:
        await anext(events)
    assert engine.aborted == ["r"]
    assert [generation.outcome for generation, _ in recorded.told] == ["abort"]


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [(CorruptPicture("bad"), "refused", "corrupt_image"), (RuntimeError("fault"), "error", "internal_error")],
)
async def test_errors_are_raised_and_told(
    observed: ObservedEngine, engine: FakeEngine, recorded: Recorded, error: Exception, outcome: str, code: str
) -> None:
    engine.script = lambda _: [error]
    with pytest.raises(type(error)):
        await events_of(observed)
    ((generation, _),) = recorded.told
    assert (generation.outcome, generation.error) == (outcome, code)


async def test_the_story_of_the_task_adds_up(observed: ObservedEngine) -> None:
    story = Story("/v1/captions")
    token = current.set(story)
    try:
        await events_of(observed)
        await events_of(observed)
    finally:
        current.reset(token)
    assert (story.requests, story.completion_tokens, story.prompt_tokens) == (2, 6, 8)
    assert story.outcome == "stop"


def test_a_story_keeps_its_first_failure() -> None:
    story = Story("/")
    for outcome, error in (("stop", None), ("refused", "corrupt_image"), ("error", "internal_error"), ("stop", None)):
        story.add(Generation(request(), outcome, 1.0, 2.0, error=error))
    assert (story.outcome, story.error) == ("refused", "corrupt_image")


def test_every_error_has_a_listed_outcome() -> None:
    def classes(root: type[MMServeError]) -> list[type[MMServeError]]:
        return [root, *(found for child in root.__subclasses__() for found in classes(child))]

    assert {outcome_of(cls("x")) for cls in classes(MMServeError)} <= set(FINISH_REASONS)


async def test_the_rest_is_the_engine_s(observed: ObservedEngine, engine: FakeEngine) -> None:
    assert observed.ready
    assert observed.stats() == engine.stats()
    assert await observed.flush() == 7
    await observed.close()
    assert not observed.ready
