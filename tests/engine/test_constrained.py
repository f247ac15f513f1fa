"""Constrained answers through the whole engine: they are whole, whatever the sampling, the batch and the budget."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.limits import resolve_limits
from mmserve.errors import BudgetTooSmall, InvalidField, MMServeError
from mmserve.grammar.spec import Choice, Constraint, JsonSchema, Regex
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Prompt, Request, TextPart, TokenEvent
from tests.checkpoints import tiny_llava
from tests.engine.pictures import png

CONFIG = EngineConfig(device="cpu", dtype="float32", check_invariants=True, kv_slots=4096, share_threshold=8)
SCHEMA = {
    "type": "object",
    "properties": {
        "what": {"enum": ["circle", "square", "triangle"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["what", "count"],
    "additionalProperties": False,
}
COLOURS = Choice(("red", "dark red", "深红", "🐈"))


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> PromptBuilder:
    return PromptBuilder(checkpoint, Limits())


@pytest.fixture(params=[CONFIG], ids=["plain"])
def engine(checkpoint: Checkpoint, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = build_engine(checkpoint, request.param)
    yield engine
    engine.close()


def picture(number: int) -> bytes:
    return png(("red", "green", "blue", "noise")[number % 4])


def make(
    prompts: PromptBuilder,
    name: str,
    constraint: Constraint | None,
    *pictures: bytes,
    text: str = "What?",
    **sampling: object,
) -> Request:
    prompt = prompts.build([Message("user", (*map(ImagePart, pictures), TextPart(text)))])
    settings = {"max_tokens": 60, "seed": 1} | sampling
    return Request(name, prompt, SamplingParams(**settings), constraint=constraint)  # type: ignore[arg-type]


def add(engine: Engine, request: Request) -> None:
    request = resolve_limits(request, engine.max_model_len)
    grammar = (
        engine.compile(request.constraint, request.sampling.max_tokens).result()
        if request.constraint is not None
        else None
    )
    engine.add(request, grammar)


def run(engine: Engine, *requests: Request) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {r.id: [] for r in requests}
    for request in requests:
        add(engine, request)
    while engine.has_requests:
        for event in engine.step(wait=True):
            events[event.request_id].append(event)
    return events


def text_of(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def test_many_kinds_in_one_batch_are_all_whole(engine: Engine, prompts: PromptBuilder) -> None:
    rng = random.Random(0)
    requests = []
    for i in range(24):
        kinds: list[Constraint | None] = [JsonSchema.of(SCHEMA), COLOURS, Regex("[a-f]{2,9}-[0-9]+"), None]
        constraint = kinds[i % 4]
        requests.append(
            make(
                prompts,
                str(i),
                constraint,
                *([picture(i % 3)] if i % 2 else []),
                max_tokens=rng.choice([30, 40, 80]),
                temperature=rng.choice([0.0, 1.0, 3.0]),
                seed=i,
            )
        )
    for name, events in run(engine, *requests).items():
        text, last = text_of(events), events[-1]
        assert last.usage is not None
        match int(name) % 4:
            case 0:
                jsonschema.validate(json.loads(text), SCHEMA)
            case 1:
                assert text in COLOURS.options
            case 2:
                assert re.fullmatch("[a-f]{2,9}-[0-9]+", text)
            case _:
                assert last.constraint is None
                continue
        assert last.finish_reason == "stop"
        assert last.constraint is not None
        assert last.usage.completion_tokens == sum(len(event.token_ids) for event in events) <= 80


def test_fast_forward_changes_no_greedy_choice_of_choices(checkpoint: Checkpoint, prompts: PromptBuilder) -> None:
    """Where one token a choice is taken, forcing the rest of it changes nothing but the number of forward passes."""
    texts, passes = [], []
    for fast_forward in (True, False):
        engine = build_engine(checkpoint, dataclasses.replace(CONFIG, fast_forward=fast_forward))
        constraint = Choice(("aquamarine", "burgundy wine", "chartreuse"))
        events = run(engine, *(make(prompts, str(i), constraint, picture(i), seed=i) for i in range(4)))
        texts.append([text_of(e) for e in events.values()])
        passes.append(engine.scheduler.counters.steps)
        forced = engine.scheduler.counters.forced_tokens
        assert (forced > 0) is fast_forward
        engine.close()
    assert texts[0] == texts[1]
    assert passes[0] < passes[1]


def test_a_batch_answers_as_alone(engine: Engine, prompts: PromptBuilder) -> None:
    def requests() -> list[Request]:
        constraints: list[Constraint | None] = [JsonSchema.of(SCHEMA), COLOURS, Regex("[a-z ]{5,20}"), None]
        return [make(prompts, str(i), c, picture(0), temperature=1.0, seed=7) for i, c in enumerate(constraints)]

    together = {name: text_of(events) for name, events in run(engine, *requests()).items()}
    engine.flush()
    for request in requests():
        assert text_of(run(engine, request)[request.id]) == together[request.id]


def test_a_budget_that_is_too_small_is_refused_and_names_the_least(engine: Engine, prompts: PromptBuilder) -> None:
    constraint = JsonSchema.of(SCHEMA)
    with pytest.raises(BudgetTooSmall, match=r"takes [0-9]+ tokens") as caught:
        add(engine, make(prompts, "a", constraint, max_tokens=3))
    least = int(re.search("takes ([0-9]+) tokens", str(caught.value))[1])  # type: ignore[index]
    assert not engine.has_requests
    with pytest.raises(BudgetTooSmall):
        add(engine, make(prompts, "b", constraint, max_tokens=least - 1))
    (events,) = run(engine, make(prompts, "c", constraint, max_tokens=least, temperature=2.0)).values()
    jsonschema.validate(json.loads(text_of(events)), SCHEMA)


def test_log_probabilities_are_of_chosen_tokens(engine: Engine, prompts: PromptBuilder) -> None:
    (events,) = run(engine, make(prompts, "a", COLOURS, logprobs=2)).values()
    assert text_of(events) in COLOURS.options
    chosen = [entry for event in events for entry in event.logprobs]
    tokens = [id_ for event in events for id_ in event.token_ids]
    assert [entry.token_id for entry in chosen] == tokens
    assert all(len(entry.top) == 2 for entry in chosen)


def test_a_stop_string_ends_only_whole_answers(engine: Engine, prompts: PromptBuilder) -> None:
    greedy = text_of(run(engine, make(prompts, "a", Regex("[a-e]{30}")))["a"])
    inside = greedy[9:12]
    assert text_of(run(engine, make(prompts, "b", Regex("[a-e]{30}"), stop=(inside,)))["b"]) == greedy
    text = text_of(run(engine, make(prompts, "c", Regex("[a-e]{2,30}"), stop=(inside,)))["c"])
    assert len(text) >= 2
    assert inside not in text


def test_forced_tokens_are_not_the_prompts(engine: Engine, prompts: PromptBuilder) -> None:
    for i in range(3):
        (events,) = run(engine, make(prompts, str(i), JsonSchema.of(SCHEMA), picture(0))).values()
        usage = events[-1].usage
        assert usage is not None
        assert usage.cached_tokens <= usage.prompt_tokens
    counters = engine.scheduler.counters
    assert counters.cached_tokens <= counters.prompt_tokens


def test_nothing_behind_a_stop_string_is_counted(engine: Engine, prompts: PromptBuilder) -> None:
    (events,) = run(engine, make(prompts, "a", Regex("a(bcdefghijklmnop)?"), stop=("b",), temperature=5.0)).values()
    last = events[-1]
    assert text_of(events) == "a"
    assert last.usage is not None
    assert last.usage.completion_tokens <= 2
    assert last.constraint is not None
    assert last.constraint.forced_tokens == 0


def test_one_answer_that_fails_harms_no_other(
    engine: Engine, prompts: PromptBuilder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("oops")

    free = make(prompts, "free", None, max_tokens=4, ignore_eos=True)
    with monkeypatch.context() as patch:
        patch.setattr("mmserve.grammar.state.GrammarState.advance", broken)
        found = run(engine, make(prompts, "bound", COLOURS), free)
    assert isinstance(found["bound"][-1].error, MMServeError)
    assert found["free"][-1].finish_reason == "length"
    assert "could not be continued" in caplog.text
    assert text_of(run(engine, make(prompts, "next", COLOURS))["next"]) in COLOURS.options


def test_an_answer_with_nothing_to_choose_takes_a_step_all_the_same(engine: Engine, prompts: PromptBuilder) -> None:
    (events,) = run(engine, make(prompts, "a", Choice(("only this",)), picture(1))).values()
    assert text_of(events) == "only this"
    assert engine.scheduler.counters.pictures_encoded == 1


def test_preempted_and_constrained(checkpoint: Checkpoint, prompts: PromptBuilder) -> None:

    def requests() -> list[Request]:
        return [make(prompts, str(i), JsonSchema.of(SCHEMA), picture(i % 2), temperature=1.0, seed=i) for i in range(6)]

    roomy = build_engine(checkpoint, CONFIG)
    wanted = {name: text_of(events) for name, events in run(roomy, *requests()).items()}
    roomy.close()
    need = max(len(r.prompt) for r in requests()) + 60
    tight = build_engine(checkpoint, dataclasses.replace(CONFIG, kv_slots=need + 4, max_running=6))
    found = {name: text_of(events) for name, events in run(tight, *requests()).items()}
    assert tight.scheduler.counters.preemptions > 0
    tight.close()
    assert found == wanted


class TestScoring:
    def test_scores_are_the_log_probabilities_that_choosing_reports(
        self, engine: Engine, prompts: PromptBuilder
    ) -> None:
        asked = make(prompts, "a", None, picture(0), max_tokens=6, logprobs=3, ignore_eos=True)
        (events,) = run(engine, asked).values()
        chosen = [entry for event in events for entry in event.logprobs]
        ids = [entry.token_id for entry in chosen]
        whole = Request("b", with_tokens(asked, ids), SamplingParams(logprobs=3, seed=0), score_from=len(asked.prompt))
        for name in ("cold", "cached"):
            (scored,) = run(engine, Request(name, whole.prompt, whole.sampling, score_from=whole.score_from))[name]
            assert [entry.token_id for entry in scored.logprobs] == ids
            for one, other in zip(chosen, scored.logprobs, strict=True):
                assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
                assert [id_ for id_, _, _ in other.top] == [id_ for id_, _, _ in one.top]
            assert scored.usage is not None
            assert scored.usage.completion_tokens == 0

    def test_options_share_their_question(self, engine: Engine, prompts: PromptBuilder) -> None:
        asked = make(prompts, "q", None, picture(0), text="Which colour is it, dear model? " * 4)
        options = [[5], [6, 7], [8, 9, 10]]
        length = len(asked.prompt)
        run(
            engine,
            *(
                Request(str(i), with_tokens(asked, ids), SamplingParams(seed=0), score_from=length)
                for i, ids in enumerate(options)
            ),
        )
        counters = engine.scheduler.counters
        assert counters.pictures_encoded == 1
        assert counters.prefilled_tokens <= length + len(options) + sum(map(len, options))

    @pytest.mark.parametrize("first", [0, -1, 10_000])
    def test_what_cannot_be_scored_is_refused(self, engine: Engine, prompts: PromptBuilder, first: int) -> None:
        asked = make(prompts, "q", None)
        with pytest.raises(InvalidField, match="score_from"):
            engine.resolve(Request("a", asked.prompt, SamplingParams(), score_from=first))


def with_tokens(request: Request, ids: list[int]) -> Prompt:
    return dataclasses.replace(request.prompt, token_ids=np.concatenate([request.prompt.token_ids, np.array(ids)]))


@pytest.mark.parametrize("kind", ["llava-vicuna", "llava-next-mistral"])
def test_tokenizers_that_put_a_blank_before_texts(kind: str, tmp_path: Path) -> None:
    """Nothing of that blank is in the answer, nor is an asked one lost."""
    checkpoint = load_registry().resolve(str(tiny_llava(tmp_path, kind)))
    engine, prompts = build_engine(checkpoint, CONFIG), PromptBuilder(checkpoint, Limits())
    pattern = r" (ja|nein), [0-9]{2} Bäume"
    constraints: list[Constraint] = [JsonSchema.of(SCHEMA), Regex(pattern), COLOURS]
    requests = [make(prompts, str(i), constraint, picture(i)) for i, constraint in enumerate(constraints)]
    whole, matched, chosen = map(text_of, run(engine, *requests).values())
    engine.close()
    jsonschema.validate(json.loads(whole), SCHEMA)
    assert re.fullmatch(pattern, matched)
    assert chosen in COLOURS.options
