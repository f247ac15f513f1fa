"""The whole engine on a tiny random checkpoint: same tokens however a request is served, and every end is clean."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator

import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.limits import resolve_limits
from mmserve.errors import CorruptPicture, MMServeError, PromptTooLong
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Request, TextPart, TokenEvent
from tests.engine.pictures import png

CONFIG = EngineConfig(device="cpu", dtype="float32", check_invariants=True, kv_slots=4096, share_threshold=8)


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> PromptBuilder:
    return PromptBuilder(checkpoint, Limits())


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    engine = build_engine(checkpoint, CONFIG)
    yield engine
    engine.close()


class Asker:
    """Makes requests of one prompt builder, under fresh ids."""

    def __init__(self, prompts: PromptBuilder) -> None:
        self.prompts = prompts
        self.count = 0

    def __call__(self, text: str, *pictures: bytes, salt: str = "", **sampling: object) -> Request:
        self.count += 1
        message = Message("user", (*map(ImagePart, pictures), TextPart(text)))
        settings = {"max_tokens": 8, "ignore_eos": True, "seed": 1} | sampling
        prompt = self.prompts.build([message], cache_salt=salt)
        return Request(str(self.count), prompt, SamplingParams(**settings), salt)  # type: ignore[arg-type]


@pytest.fixture
def ask(prompts: PromptBuilder) -> Asker:
    return Asker(prompts)


def run(engine: Engine, *requests: Request) -> dict[str, list[TokenEvent]]:
    """Serve requests together to their end."""
    events: dict[str, list[TokenEvent]] = {r.id: [] for r in requests}
    for r in requests:
        engine.add(engine.resolve(r))
    for _ in range(5000):
        if not engine.has_requests:
            return events
        for event in engine.step(wait=True):
            events[event.request_id].append(event)
    raise AssertionError("the engine hangs")


def tokens(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def alone(checkpoint: Checkpoint, request: Request) -> list[int]:
    engine = build_engine(checkpoint, CONFIG)
    try:
        return tokens(run(engine, request)[request.id])
    finally:
        engine.close()


def test_the_last_event_and_only_that_has_reason_and_usage(engine: Engine, ask: Asker) -> None:
    request = ask("What?", png("red"))
    (events,) = run(engine, request).values()
    assert [event.last for event in events] == [False] * 7 + [True]
    assert events[-1].finish_reason == "length"
    usage = events[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == len(request.prompt)
    assert (usage.completion_tokens, usage.cached_tokens) == (8, 0)
    assert usage.image_tokens == request.prompt.picture_tokens > 0


def test_a_second_question_reuses_prompt_and_picture(engine: Engine, ask: Asker) -> None:
    picture = png("red")
    first, second = ask("What is it?", picture), ask("How many?", picture)
    run(engine, first)
    before = engine.stats()
    usage = run(engine, second)[second.id][-1].usage
    after = engine.stats()
    assert usage is not None
    assert usage.cached_tokens >= second.prompt.ranges[-1].end
    assert usage.cached_pictures == 1
    assert usage.cached_system_tokens == usage.system_tokens == second.prompt.system_tokens > 0
    assert after["pictures_decoded"] == before["pictures_decoded"] == 1
    assert after["pictures_encoded"] == before["pictures_encoded"] == 1


def test_batched_cached_and_chunked_answers_are_those_of_a_cold_engine(checkpoint: Checkpoint, ask: Asker) -> None:
    pictures = [png("red"), png("blue", (100, 60)), png("green", (30, 200))]
    asked = [
        ask("What is it?", pictures[0]),
        ask("What is it?", pictures[1]),
        ask("Which?", pictures[0], pictures[1]),
        ask("Which?", pictures[1], pictures[0]),
        ask("Hello"),
        ask("All of them", *pictures),
        ask("What is it then?", pictures[0]),
    ]
    want = [alone(checkpoint, request) for request in asked]
    for config in (CONFIG, dataclasses.replace(CONFIG, step_tokens=5), dataclasses.replace(CONFIG, reuse=False)):
        engine = build_engine(checkpoint, config)
        together = run(engine, *asked)
        again = run(engine, *(dataclasses.replace(r, id=f"again {r.id}") for r in asked))
        engine.close()
        assert [tokens(events) for events in together.values()] == want
        assert [tokens(events) for events in again.values()] == want


@pytest.mark.parametrize("seed", range(3))
def test_preempted_answers_are_the_undisturbed_ones_sampled_too(checkpoint: Checkpoint, ask: Asker, seed: int) -> None:
    rng = random.Random(seed)
    pictures = [png("red"), png("blue", (100, 60))]
    asked = [
        ask(
            rng.choice(["What?", "Where is it?", "How many are there in it?"]),
            *rng.sample(pictures, rng.randint(0, 2)),
            temperature=rng.choice([0.0, 1.0]),
            seed=rng.randint(0, 9),
            max_tokens=rng.randint(10, 30),
        )
        for _ in range(6)
    ]
    want = [alone(checkpoint, request) for request in asked]
    slots = max(len(r.prompt) for r in asked) + 40
    engine = build_engine(checkpoint, dataclasses.replace(CONFIG, kv_slots=slots, max_running=6))
    got = run(engine, *asked)
    counters = engine.stats()
    engine.close()
    assert [tokens(events) for events in got.values()] == want
    assert counters["evicted_tokens"] > 0


def test_a_corrupt_picture_is_a_typed_error_and_harms_nobody(engine: Engine, ask: Asker) -> None:
    good, noise = ask("What?", png("red")), png("noise", (90, 90))
    bad = ask("What?", noise[: len(noise) // 2])
    also_bad = ask("And this?", noise[: len(noise) // 2])
    events = run(engine, bad, good, also_bad)
    assert [type(event.error) for event in events[bad.id]] == [CorruptPicture]
    assert [type(event.error) for event in events[also_bad.id]] == [CorruptPicture]
    assert len(tokens(events[good.id])) == 8
    assert engine.stats()["encoder_cache_pictures"] == 1


def test_a_failing_step_ends_its_requests_and_the_next_is_served(
    engine: Engine, ask: Asker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    execute = engine._runner.execute

    def broken(*_: object) -> object:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._runner, "execute", broken)
    request = ask("What?")
    (event,) = run(engine, request)[request.id]
    assert type(event.error) is MMServeError
    assert "RuntimeError" in event.error.message
    assert "a step failed" in caplog.text
    monkeypatch.setattr(engine._runner, "execute", execute)
    following = ask("What?")
    assert len(tokens(run(engine, following)[following.id])) == 8


def test_an_aborted_request_leaves_nothing_behind(engine: Engine, ask: Asker) -> None:
    engine.add(engine.resolve(ask("What?", png("red"), max_tokens=500)))
    for _ in range(3):
        engine.step(wait=True)
    engine.abort("1")
    engine.abort("1")
    assert not engine.has_requests
    stats = engine.stats()
    assert stats["slots_free"] + stats["slots_cached"] == stats["slots_total"]
    assert stats["requests_aborted"] == 1


def test_a_stop_string_ends_the_answer_before_itself(engine: Engine, ask: Asker) -> None:
    plain = "".join(event.text for event in run(engine, ask("What?", max_tokens=40))["1"])
    stop = plain[5:8]
    events = run(engine, ask("What?", max_tokens=40, stop=(stop,)))["2"]
    assert "".join(event.text for event in events) == plain[: plain.index(stop)]
    assert events[-1].finish_reason == "stop"


def test_an_end_token_stops_unless_min_tokens_forbids_it(engine: Engine, ask: Asker) -> None:
    ids = tokens(run(engine, ask("What?", max_tokens=30))["1"])
    last = ids[4]
    events = run(engine, ask("What?", max_tokens=30, stop_token_ids=(last,)))["2"]
    assert tokens(events) == ids[: ids.index(last) + 1]
    assert events[-1].finish_reason == "stop"
    longer = run(engine, ask("What?", max_tokens=30, min_tokens=20, stop_token_ids=(last,)))["3"]
    assert len(tokens(longer)) >= 20
    assert last not in tokens(longer)[:20]


def test_logprobs_describe_each_token(engine: Engine, ask: Asker) -> None:
    events = run(engine, ask("What?", logprobs=2))["1"]
    for event in events:
        (entry,) = event.logprobs
        assert entry.token_id == event.token_ids[0] == entry.top[0][0]
        assert entry.logprob == pytest.approx(entry.top[0][2])
        assert len(entry.top) == 2
        assert entry.top[0][2] >= entry.top[1][2]


def test_a_salt_shares_nothing(engine: Engine, ask: Asker) -> None:
    run(engine, ask("What?", png("red"), salt="a"))
    usage = run(engine, ask("What?", png("red"), salt="b"))["2"][-1].usage
    assert usage is not None
    assert (usage.cached_tokens, usage.cached_pictures) == (0, 0)


def test_limits_are_filled_in_and_what_can_never_fit_is_refused(ask: Asker) -> None:
    request = ask("What?", max_tokens=None)
    length = len(request.prompt)
    assert resolve_limits(request, length + 5).sampling.max_tokens == 5
    with pytest.raises(PromptTooLong, match=f"{length} tokens"):
        resolve_limits(request, length)
    with pytest.raises(PromptTooLong, match="at most 5") as error:
        resolve_limits(ask("What?", max_tokens=6), length + 5)
    assert error.value.param == "max_tokens"


def test_a_prefix_comes_back_from_the_second_tier_token_for_token(checkpoint: Checkpoint, ask: Asker) -> None:
    asked = [ask("What is it?", png("red")), ask("Where?", png("noise", (200, 200))), ask("How many?", png("red"))]
    want = [alone(checkpoint, request) for request in asked]
    slots = max(len(request.prompt) for request in asked) + 12
    small = dataclasses.replace(CONFIG, kv_slots=slots, encoder_cache_bytes=0, tier_bytes=1 << 20, tier_min_tokens=2)
    engine = build_engine(checkpoint, small)
    got = [tokens(run(engine, request)[request.id]) for request in asked]
    stats = engine.stats()
    engine.close()
    assert got == want
    assert stats["tier_fetched_tokens"] >= asked[0].prompt.picture_tokens
    assert stats["pictures_encoded"] == 2


def test_a_damaged_second_tier_costs_time_only(checkpoint: Checkpoint, ask: Asker) -> None:
    asked = [ask("What is it?", png("red")), ask("Where?", png("noise", (200, 200))), ask("How many?", png("red"))]
    want = [alone(checkpoint, request) for request in asked]
    slots = max(len(request.prompt) for request in asked) + 12
    small = dataclasses.replace(CONFIG, kv_slots=slots, encoder_cache_bytes=0, tier_bytes=1 << 20, tier_min_tokens=2)
    engine = build_engine(checkpoint, small)
    got = [tokens(run(engine, request)[request.id]) for request in asked[:2]]
    store = engine._runner._store  # type: ignore[attr-defined]
    os.truncate(store.file.fileno(), 100)
    got.append(tokens(run(engine, asked[2])[asked[2].id]))
    stats = engine.stats()
    engine.close()
    assert got == want
    assert stats["tier_damaged"] == 1
    assert stats["pictures_encoded"] == 3


def test_a_flush_forgets_everything(engine: Engine, ask: Asker) -> None:
    run(engine, ask("What is it?", png("red")))
    assert engine.flush() > 0
    usage = run(engine, ask("What is it?", png("red")))["2"][-1].usage
    assert usage is not None
    assert (usage.cached_tokens, usage.cached_pictures) == (0, 0)
