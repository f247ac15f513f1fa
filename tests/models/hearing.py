"""Questions about sounds, and what transformers answers to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from mmserve.types import AudioPart, Message, TextPart
from tests.models.equality import QUESTIONS
from tests.reference import Expected
from tests.sounds.made import Waves, chirp, encoded, noise, sine

LENGTHS = (321, 16_000, 641, 5_003, 47_999, 801, 60_000, 1_601)
"""In samples at 16 kHz: one row, a second, the least of two rows, odd ones, and more than three seconds."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A sound as a file of ours and as the samples that are in it, at 16 kHz."""

    file: bytes = field(repr=False)
    samples: Waves = field(repr=False)


@dataclass(frozen=True, slots=True)
class HeardCase:
    """One question about some sounds."""

    question: str
    sounds: tuple[Heard, ...] = field(repr=False)

    @property
    def message(self) -> Message:
        return Message("user", (*(AudioPart(sound.file) for sound in self.sounds), TextPart(self.question)))


def heard_cases(sounds: Sequence[int], *, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[HeardCase]:
    """One case for each number of sounds; every length has its turn, and some sounds come twice."""
    rng = random.Random(seed)
    made = [_heard(samples, number) for number, samples in enumerate(lengths)]
    cases, at = [], 0
    for count in sounds:
        chosen = tuple(made[(at + i) % len(made)] for i in range(count))
        at += count
        cases.append(HeardCase(rng.choice(QUESTIONS) + " " + str(rng.randrange(100)), chosen))
    return cases


def _heard(samples: int, number: int) -> Heard:
    """Of each kind in turn, in formats that lose nothing, so that both sides have the same samples."""
    waves = (chirp(samples, 16_000), noise(samples, number), sine(samples, 16_000, 200.0 + number))[number % 3]
    if number % 2:
        waves = (waves * 32_768).round().astype(np.float32) / np.float32(32_768)  # what 16 bits can say
        return Heard(encoded(waves, 16_000, "flac"), waves)
    return Heard(encoded(waves, 16_000, "wav-float"), waves)


class HearingReference:
    """A Qwen2-Audio in transformers, in float32, one request at a time."""

    def __init__(self, path: Path) -> None:
        self._processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        self._model = Qwen2AudioForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()

    def conversation(self, turns: Sequence[tuple[str, Sequence[Heard], str]]) -> Any:
        """What the model takes for some turns: role, sounds, text."""
        messages = [
            {"role": role, "content": [*({"type": "audio", "audio": s.samples} for s in sounds), _text(text)]}
            for role, sounds, text in turns
        ]
        return self._processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    @torch.inference_mode()
    def answer(self, case: HeardCase, max_tokens: int) -> Expected:
        """Without a cache, step by step: ``generate`` drops the attention mask, and where all sounds have one row only
        transformers' model cannot do without it."""
        inputs = self.conversation([("user", case.sounds, case.question)])
        length, leads = inputs["input_ids"].shape[1], []
        for _ in range(max_tokens):
            two = self._model(**inputs).logits[0, -1].topk(2)
            leads.append(float(two.values[0] - two.values[1]))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], two.indices[None, :1]], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        ids = inputs["input_ids"][0].tolist()
        return Expected(ids[:length], ids[length:], leads)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
