"""A family's proof: greedy answers equal to transformers', alone, batched, cached and chunked."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.errors import PictureError
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Prompt, Request, TextPart
from tests.proofs.serving import serve
from tests.reference import Expected, Processor, Reference, Tally

SIZES = ((1000, 1), (28, 28), (60, 100), (1, 1000), (150, 90), (3001, 17), (97, 97), (333, 250))
QUESTIONS = (
    "What is in this picture?",
    "How many red circles are there? Is there a blue square?",
    "图片里有什么？ Émile asks:  describe it.\n",
    "Where is the dog?",
    "hi",
)
ROOMY = EngineConfig(device="cpu", dtype="float32", check_invariants=True, kv_slots=8192, share_threshold=8)
CHUNKED = replace(ROOMY, step_tokens=24, encode_patches=16, max_running=3, kv_slots=2048)


@dataclass(frozen=True, slots=True)
class Case:
    """One question about some pictures."""

    question: str
    pictures: tuple[Image.Image, ...] = field(repr=False)

    @property
    def message(self) -> Message:
        return Message("user", (*(ImagePart(png(picture)) for picture in self.pictures), TextPart(self.question)))


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def cases(pictures: Sequence[int], *, sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0) -> list[Case]:
    """One case for each number of pictures; every size has its turn, and some pictures come twice."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    drawn = [_picture(width, height, noise) for width, height in sizes]
    made, at = [], 0
    for count in pictures:
        chosen = [drawn[(at + i) % len(drawn)] for i in range(count)]
        at += count
        made.append(Case(rng.choice(QUESTIONS) + " " + str(rng.randrange(100)), tuple(chosen)))
    return made


def _picture(width: int, height: int, noise: np.random.Generator) -> Image.Image:
    """Coarse noise, so that resizing leaves something to see."""
    small = noise.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def resolve(path: Path) -> Checkpoint:
    return load_registry().resolve(str(path))


class Answering(Protocol):
    """What answers are held against: transformers', unless it lacks the family."""

    def answer(
        self, pictures: Sequence[Image.Image], question: str, max_tokens: int, *, to_the_end: bool = False
    ) -> Expected: ...


def check_equality(path: Path, asked: Sequence[Case], *, tokens: int = 8, reference: Answering | None = None) -> Tally:
    """Ask all in every way; raises ``AssertionError`` where an answer differs for another reason than a near tie.

    A picture that transformers refuses must be refused by us with a typed error. Returns the count of both.
    """
    checkpoint = resolve(path)
    builder, reference, tally = PromptBuilder(checkpoint, Limits()), reference or Reference(path), Tally()
    expected: dict[str, Expected] = {}
    prompts: dict[str, Prompt] = {}
    for number, case in enumerate(asked):
        try:
            right = reference.answer(case.pictures, case.question, tokens, to_the_end=True)
        except ValueError:
            with pytest.raises(PictureError):
                builder.build([case.message])
            tally.refused += 1
            continue
        name = str(number)
        expected[name], prompts[name] = right, builder.build([case.message])
        assert prompts[name].token_ids.tolist() == right.prompt_ids, case
    for answers in served(checkpoint, prompts, tokens):
        for name, right in expected.items():
            tally.compare(right, answers[name])
    return tally


def check_conversations(path: Path, shown: tuple[int, int, int]) -> None:
    """Conversations of one, two and three questions, with so many pictures each, have transformers' prompt ids."""
    builder, processor = PromptBuilder(resolve(path), Limits()), Processor(path)
    first, second, third = (case.pictures for case in cases(shown, sizes=((60, 100), (97, 97))))
    turns: list[tuple[str, Sequence[Image.Image], str]] = [
        ("user", first, "What is this?"),
        ("assistant", (), "A dog, it's hidden."),
        ("user", second, "  Where?\n"),
        ("assistant", (), "猫"),
        ("user", third, "Is there a red circle? "),
    ]
    for start in (0, 2, 4):
        expected = processor.conversation(turns[start:])["input_ids"][0].tolist()
        messages = [Message(role, Case(text, tuple(seen)).message.parts) for role, seen, text in turns[start:]]
        assert builder.build(messages).token_ids.tolist() == expected


def check_counts(path: Path, number: int, *, longest: int = 700, seed: int = 0) -> int:
    """Of ``number`` pictures of random sizes, alone and by twos, the rows that headers promise are those that the
    processor makes room for. Returns how many both sides refuse."""
    checkpoint, rng, refused = resolve(path), random.Random(seed), 0
    builder, reference = PromptBuilder(checkpoint, Limits()), Processor(path)
    for _ in range(number):
        # Short sides are as likely as long ones.
        sizes = [tuple(int(longest ** rng.random()) for _ in range(2)) for _ in range(rng.choice((1, 1, 1, 2)))]
        case = Case("?", tuple(Image.new("RGB", (width, height)) for width, height in sizes))
        try:
            expected = reference.inputs(case.pictures, case.question)["input_ids"][0].tolist()
        except ValueError:
            refused += 1
            with pytest.raises(PictureError):
                builder.build([case.message])
            continue
        prompt = builder.build([case.message])
        promised, made = prompt.picture_tokens, expected.count(checkpoint.image_token_id)
        assert promised == made, f"{sizes}: {promised} rows promised, {made} made room for"
        assert prompt.token_ids.tolist() == expected
    return refused


def served(checkpoint: Checkpoint, prompts: dict[str, Prompt], tokens: int) -> list[dict[str, list[int]]]:
    """What the engine answers: each alone, all together, all together once more, all together in small pieces."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=1)
    requests = [Request(name, prompt, sampling) for name, prompt in prompts.items()]
    alone = build_engine(checkpoint, replace(ROOMY, reuse=False))
    batched, chunked = build_engine(checkpoint, ROOMY), build_engine(checkpoint, CHUNKED)
    try:
        answers = [{name: ids for request in requests for name, ids in serve(alone, [request]).items()}]
        answers.append(serve(batched, requests))
        before = batched.stats()
        answers.append(serve(batched, requests))
        after = batched.stats()
        assert after["cached_tokens"] - before["cached_tokens"] >= sum(len(p) - 1 for p in prompts.values()) * 0.9
        assert after["pictures_encoded"] == before["pictures_encoded"]
        answers.append(serve(chunked, requests))
    finally:
        for engine in (alone, batched, chunked):
            engine.close()
    return answers
