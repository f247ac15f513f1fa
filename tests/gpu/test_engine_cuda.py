"""The torch backend on a CUDA device; its twin on the CPU is tests/proofs/test_identity.py.

Run on a machine with a GPU: ``pytest -m gpu -s``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmserve
from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Request, TextPart
from tests.proofs.serving import serve
from tests.reference import Expected, Reference, Tally

pytestmark = pytest.mark.gpu
EXAMPLES = Path(mmserve.__file__).parent / "assets" / "examples"
QUESTIONS = ("What is this?", "is there a red shape?", "what color is the shape?", "Describe the picture.", "Hello!")
MAX_TOKENS = 16


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def asked(pocket_vl: Checkpoint) -> tuple[list[Request], dict[str, Expected]]:
    prompts, reference = PromptBuilder(pocket_vl, Limits()), Reference(pocket_vl.path, device="cuda")
    requests, expected = [], {}
    for example in json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8")):
        path = EXAMPLES / example["file"]
        for question in QUESTIONS:
            name = f"{example['file']} {question}"
            prompt = prompts.build([Message("user", (ImagePart(path.read_bytes()), TextPart(question)))])
            requests.append(Request(name, prompt, SamplingParams(max_tokens=MAX_TOKENS, seed=0)))
            with Image.open(path) as image:
                expected[name] = reference.answer([image.convert("RGB")], question, MAX_TOKENS)
    return requests, expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reuse": False, "encoder_cache_bytes": 0},
        {"step_tokens": 7},
        {"kv_slots": 300, "max_running": 30},
        {"kv_slots": 100, "encoder_cache_bytes": 0, "tier_bytes": 1 << 24, "tier_min_tokens": 2},
    ],
    ids=["cached", "uncached", "chunked", "preempted", "second tier"],
)
def test_greedy_tokens_are_transformers_own(
    pocket_vl: Checkpoint, asked: tuple[list[Request], dict[str, Expected]], changes: dict[str, int]
) -> None:
    requests, expected = asked
    config = EngineConfig(device="cuda", dtype="float32", kv_slots=8192, check_invariants=True)
    engine, tally = build_engine(pocket_vl, dataclasses.replace(config, **changes)), Tally()  # type: ignore[arg-type]
    for batch in ([request] for request in requests) if not changes else [requests]:
        for name, tokens in serve(engine, batch).items():
            tally.compare(expected[name], tokens)
    if "tier_bytes" in changes:
        again = [dataclasses.replace(request, id=f"{request.id} again") for request in requests]
        for name, tokens in serve(engine, again).items():
            tally.compare(expected[name.removesuffix(" again")], tokens)
        assert engine.stats()["tier_fetched_tokens"] > 0
    engine.close()
    print(f"{changes}: {tally.compared} answers equal to transformers', {tally.excused} parted at a near tie")


def test_bfloat16_answers_the_examples(pocket_vl: Checkpoint) -> None:
    prompts = PromptBuilder(pocket_vl, Limits())
    engine = build_engine(pocket_vl, EngineConfig(device="cuda"))
    for example in json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8")):
        picture = ImagePart((EXAMPLES / example["file"]).read_bytes())
        prompt = prompts.build([Message("user", (picture, TextPart(example["question"])))])
        request = Request(example["file"], prompt, SamplingParams(max_tokens=MAX_TOKENS, seed=0))
        (tokens,) = serve(engine, [request]).values()
        assert prompts.tokenizer.decode(tokens) == example["answer"]
    engine.close()
