"""Greedy answers of the embedded model are transformers' own, token for token, however they are served.

Float32 on the CPU. The small form runs with the tests; the full one, 100 pictures, with ``make proof``.
"""

from __future__ import annotations

import random
from pathlib import Path

import easy_vqa
import pytest
from PIL import Image

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Request, TextPart
from tests.proofs.serving import serve
from tests.reference import Expected, Reference, Tally

MAX_TOKENS = 16


def questions(count: int) -> list[tuple[Path, str]]:
    """``count`` questions of easy-vqa's test split, each about another picture."""
    paths = easy_vqa.get_test_image_paths()
    by_picture: dict[int, list[str]] = {}
    for text, _, picture in zip(*easy_vqa.get_test_questions(), strict=True):
        by_picture.setdefault(picture, []).append(text)
    rng = random.Random(0)
    return [(Path(paths[i]), rng.choice(by_picture[i])) for i in rng.sample(sorted(by_picture), count)]


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=[pytest.mark.proof, pytest.mark.timeout(1800)])])
def test_answers_are_transformers_own(count: int) -> None:
    checkpoint = load_registry().resolve("pocket-vl")
    prompts, reference = PromptBuilder(checkpoint, Limits()), Reference(checkpoint.path)
    requests: list[Request] = []
    expected: dict[str, Expected] = {}
    for i, (path, question) in enumerate(questions(count)):
        prompt = prompts.build([Message("user", (ImagePart(path.read_bytes()), TextPart(question)))])
        requests.append(Request(str(i), prompt, SamplingParams(max_tokens=MAX_TOKENS, seed=0)))
        with Image.open(path) as image:
            expected[str(i)] = reference.answer([image.convert("RGB")], question, MAX_TOKENS)
        assert prompt.token_ids.tolist() == expected[str(i)].prompt_ids
    for name, config, batches in (
        ("alone, uncached", EngineConfig(device="cpu", reuse=False, encoder_cache_bytes=0), [[r] for r in requests]),
        ("alone, then cached", EngineConfig(device="cpu"), [[r] for r in requests] * 2),
        ("in one batch", EngineConfig(device="cpu", max_running=count), [requests]),
        ("in small chunks", EngineConfig(device="cpu", step_tokens=7), [requests]),
    ):
        engine, tally = build_engine(checkpoint, config), Tally()
        for batch in batches:
            for request_id, tokens in serve(engine, batch).items():
                tally.compare(expected[request_id], tokens)
        stats = engine.stats()
        engine.close()
        print(f"{name}: {tally.compared} answers equal to transformers', {tally.excused} parted at a near tie")
        if name == "alone, then cached":
            assert stats["pictures_encoded"] == count
            assert stats["pictures_reused"] == count
