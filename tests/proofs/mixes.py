"""Random requests, random engines, and the truth about each request: what it gets alone and uncached."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageDraw

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Request, TextPart
from tests.proofs.answers import Answer, ask, could_choose, recorded_choices

SYSTEMS = (
    "",
    "You are a helpful assistant.",
    "Answer in one word.",
    "You look at pictures with care. You name the shape and its color and say nothing else. Be brief.",
)
QUESTIONS = (
    "What is this?",
    "What is this? Describe the picture.",
    "is there a red shape?",
    "is there not a circle?",
    "what color is the shape?",
    "Describe the picture.",
    "which picture has the circle?",
    "Hello! Who are you? <|image_pad|>",
    "zebra 42 ünïcode",
)
REPLIES = ("a red circle", "yes", "I see a picture of a shape.")
COLOURS = ("red", "blue", "green", "yellow", "black", "teal")
FILTERS: tuple[dict[str, Any], ...] = ({}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.05}, {"top_k": 40, "top_p": 0.8})
SIZES = ((64, 64), (112, 112), (168, 84), (84, 168), (150, 110))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request without a name: equal ones have the same answer."""

    messages: tuple[Message, ...]
    sampling: SamplingParams
    salt: str = ""


def picture(rng: random.Random) -> bytes:
    """One simple shape, in one of several sizes and formats."""
    width, height = rng.choice(SIZES)
    image = Image.new("RGB", (width, height), rng.choice(("white", "gray")))
    draw = ImageDraw.Draw(image)
    left, top = rng.randrange(width // 3), rng.randrange(height // 3)
    right, bottom = width - rng.randrange(width // 3), height - rng.randrange(height // 3)
    outline = (left, top, right, bottom)
    rng.choice((draw.ellipse, draw.rectangle))(outline, fill=rng.choice(COLOURS))
    file = io.BytesIO()
    image.save(file, rng.choice(("PNG", "JPEG", "BMP")))
    return file.getvalue()


def sampling(rng: random.Random) -> SamplingParams:
    """Greedy or drawn, with any of the filters and penalties; it asks for log-probabilities, to compare them."""
    longest = rng.choice((1, 16, 32, 40))
    params = SamplingParams(
        max_tokens=longest,
        min_tokens=rng.choice((0, 0, longest)),
        ignore_eos=rng.random() < 0.8,
        seed=rng.randrange(1000),
        logprobs=rng.choice((0, 5, 20)),
    )
    if rng.random() < 0.5:
        params = replace(params, temperature=rng.choice((0.5, 1.0, 2.0)))
        params = replace(params, **rng.choice(FILTERS))
    if rng.random() < 0.3:
        params = replace(
            params,
            repetition_penalty=rng.choice((1.0, 1.2)),
            presence_penalty=rng.choice((0.0, 0.7)),
            frequency_penalty=rng.choice((0.0, 0.5)),
        )
    return params


class Askers:
    """Makes requests that share system prompts, pictures and turns, and now and then bring a new picture."""

    def __init__(self, rng: random.Random, *, known_pictures: int = 8) -> None:
        self._rng = rng
        self._known = [picture(rng) for _ in range(known_pictures)]
        self._asked: list[Asked] = []

    def next(self) -> Asked:
        rng = self._rng
        if self._asked and rng.random() < 0.15:
            return rng.choice(self._asked)
        asked = Asked(self._messages(), sampling(rng), rng.choice(("", "", "", "tenant")))
        self._asked.append(asked)
        return asked

    def _messages(self) -> tuple[Message, ...]:
        rng = self._rng
        system = rng.choice(SYSTEMS)
        messages = [Message("system", (TextPart(system),))] if system else []
        pictures = rng.choice((0, 1, 1, 1, 1, 1, 2, 2, 3))
        turns = rng.choice((1, 1, 1, 1, 2, 3))
        for turn in range(turns):
            here = pictures if turn == turns - 1 else rng.randint(0, pictures)
            pictures -= here
            parts = [ImagePart(self._picture()) for _ in range(here)]
            messages.append(Message("user", (*parts, TextPart(rng.choice(QUESTIONS)))))
            messages.append(Message("assistant", (TextPart(rng.choice(REPLIES)),)))
        return tuple(messages[:-1])

    def _picture(self) -> bytes:
        return picture(self._rng) if self._rng.random() < 0.1 else self._rng.choice(self._known)


class Truths:
    """The answer of each request alone in an engine that reuses nothing and has ample room; each is asked once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = EngineConfig(device="cpu", dtype="float32", kv_slots=4096, reuse=False, encoder_cache_bytes=0)
        self._engine = build_engine(checkpoint, config)
        self._prompts = PromptBuilder(checkpoint, Limits())
        self._answers: dict[Asked, Answer] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def request(self, asked: Asked, name: str) -> Request:
        prompt = self._prompts.build(asked.messages, cache_salt=asked.salt)
        return Request(name, prompt, asked.sampling, asked.salt)

    def of(self, asked: Asked) -> Answer:
        if asked not in self._answers:
            self._answers[asked] = ask(self._engine, [self.request(asked, "truth")])["truth"]
        return self._answers[asked]

    def could_choose(self, asked: Asked, step: int, token: int) -> bool:
        """Whether the truth's own logits, changed by rounding at most, make ``token`` the choice at ``step``."""
        with recorded_choices() as choices:
            ask(self._engine, [self.request(asked, "again")])
        return could_choose(*choices[step], token)

    def close(self) -> None:
        self._engine.close()


def engine_config(rng: random.Random, longest: int) -> EngineConfig:
    """An engine for a mix whose longest request may take ``longest`` slots: hardly room for two of that kind."""
    return EngineConfig(
        device="cpu",
        dtype="float32",
        kv_slots=longest + rng.choice((0, 0, 5, 30)),
        max_running=rng.choice((4, 8, 16)),
        step_tokens=rng.choice((3, 9, 24, 64, 2048)),
        encode_patches=rng.choice((64, 128, 16_384)),
        encoder_cache_bytes=rng.choice((0, 20_000, 60_000, 2**20)),
        share_threshold=rng.choice((1, 8, 32, 10_000)),
        tier_bytes=rng.choice((0, 300_000, 2**22)),
        tier_min_tokens=rng.choice((1, 32)),
        reuse=rng.random() < 0.9,
        check_invariants=True,
    )
