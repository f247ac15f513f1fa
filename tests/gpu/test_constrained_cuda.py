"""Constrained answers and scores on a CUDA device; the CPU twins are in tests/engine/test_constrained.py and proofs.

Run on a machine with a GPU: ``pytest -m gpu -s``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

import mmserve
from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.grammar.judge import judge
from mmserve.grammar.spec import Choice, Constraint, JsonSchema, Regex
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Request, TextPart, TokenEvent
from tests.proofs.test_constrained import REGEXES, WORDS

pytestmark = pytest.mark.gpu
EXAMPLES = Path(mmserve.__file__).parent / "assets" / "examples"
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"type": "string", "maxLength": 20},
        "shape": {"enum": ["circle", "rectangle", "triangle"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["color", "shape"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(pocket_vl: Checkpoint, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = build_engine(pocket_vl, EngineConfig(device="cuda", dtype=request.param, kv_slots=40_000))
    yield engine
    engine.close()


def run(engine: Engine, requests: list[Request]) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {request.id: [] for request in requests}
    for request in requests:
        resolved = engine.resolve(request)
        grammar = None
        if request.constraint is not None:
            grammar = engine.compile(request.constraint, resolved.sampling.max_tokens).result()
        engine.add(resolved, grammar)
    while engine.has_requests:
        for event in engine.step(wait=True):
            assert event.error is None, event.error
            events[event.request_id].append(event)
    return events


def test_every_answer_is_whole(engine: Engine, pocket_vl: Checkpoint) -> None:
    prompts = PromptBuilder(pocket_vl, Limits())
    picture = (EXAMPLES / "red-circle.png").read_bytes()
    prompt = prompts.build([Message("user", (ImagePart(picture), TextPart("Describe the picture as JSON.")))])
    kinds: list[Constraint] = [JsonSchema.of(SCHEMA), Choice(WORDS), *map(Regex, REGEXES)]
    requests = [
        Request(
            str(i), prompt, SamplingParams(max_tokens=120, temperature=(0.0, 1.0, 5.0)[i % 3], seed=i), constraint=kind
        )
        for i, kind in enumerate(kinds * 4)
    ]
    for (name, events), request in zip(run(engine, requests).items(), requests, strict=True):
        text = "".join(event.text for event in events)
        assert request.constraint is not None
        assert judge(request.constraint, text), (name, request.constraint, text)
    (events,) = run(
        engine, [Request("greedy", prompt, SamplingParams(max_tokens=60, seed=0), constraint=kinds[0])]
    ).values()
    answer = json.loads("".join(event.text for event in events))
    jsonschema.validate(answer, SCHEMA)
    assert (answer["color"], answer["shape"]) == ("red", "circle")


def test_scores_are_those_of_choosing(engine: Engine, pocket_vl: Checkpoint) -> None:
    prompts = PromptBuilder(pocket_vl, Limits())
    prompt = prompts.build(
        [Message("user", (ImagePart((EXAMPLES / "red-circle.png").read_bytes()), TextPart("What is this?")))]
    )
    (events,) = run(engine, [Request("a", prompt, SamplingParams(max_tokens=4, seed=0, logprobs=0))]).values()
    text = "".join(event.text for event in events)
    chosen = sum(entry.logprob for event in events for entry in event.logprobs)
    whole = prompts.append_text(prompt, text, end=True)
    (scored,) = run(engine, [Request("b", whole, SamplingParams(seed=0), score_from=len(prompt))])["b"]
    assert sum(entry.logprob for entry in scored.logprobs) == pytest.approx(chosen, abs=0.05)
