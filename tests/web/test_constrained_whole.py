"""Constraints and decisions from the wire to the embedded model and back, and the guide to them."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmserve import Client
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from tests.web.fakes import serve
from web.service import ServedModel, Service

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "mmserve/assets/examples/black-triangle.png"
GUIDE = (ROOT / "docs/constrained.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    checkpoint = load_registry().resolve("pocket-vl", offline=True)
    engine = LocalEngineClient(build_engine(checkpoint, EngineConfig(device="cpu", kv_slots=8192)))
    prompts = PromptBuilder(checkpoint, Limits())
    with serve(Service(ServedModel("pocket-vl"), prompts, engine, checkpoint.max_model_len)) as url:
        yield url
    asyncio.run(engine.close())


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def test_the_guide_runs_as_it_is_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) > 5
    namespace: dict[str, Any] = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block.replace("http://127.0.0.1:8000", url), "docs/constrained.md", "exec"), namespace)
    namespace["client"].close()
    namespace["api"].close()
    namespace["chat"]._client.close()


def test_a_decision_agrees_with_what_the_model_writes(client: Client) -> None:
    question = "What color is the triangle?"
    written = client.ask(PICTURE, question, temperature=0.0, logprobs=True)
    assert written.text == "black"
    tokens = math.fsum(entry["logprob"] for entry in written.logprobs["content"])
    decision = client.decide(PICTURE, question, ["red", "black", "blackish", "a black triangle"])
    assert decision.choice == "black"
    assert decision.logprobs["black"] == pytest.approx(tokens, abs=0.02)
    assert 0.95 < decision.label_mass <= 1.0
    assert math.fsum(decision.probabilities.values()) == pytest.approx(1.0)
    assert max(decision.logprobs.values()) <= 0.0


def test_the_answers_of_a_question_share_its_prompt(client: Client) -> None:
    shared = client.decide(PICTURE, "Is there a teal shape?", cache_salt="fresh").usage
    assert (shared.cached_tokens, shared.image_tokens) == (0, 16)
    again = client.decide(PICTURE, "Is there a teal shape?", cache_salt="fresh").usage
    assert again.cached_tokens >= again.image_tokens


@pytest.mark.parametrize("max_tokens", [12, 20, 64])
def test_json_is_whole_whatever_the_budget(client: Client, max_tokens: int) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    answer = client.ask(PICTURE, "Write.", schema=schema, max_tokens=max_tokens, temperature=1.0, seed=3)
    assert isinstance(answer.parsed["a"], str)
    assert answer.finish_reason == "stop"
    assert answer.constraint is not None
    assert answer.constraint.valid
