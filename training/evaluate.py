"""Evaluation of a saved checkpoint with transformers' own processor and ``generate``, in float32, greedy.

An answer is right when the generated text equals the expected text exactly. The test split is read here only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor

from training.cases import Case, sample, suites
from training.data import load_split
from training.model import load_model

Picture = Image.Image
Results = dict[str, Any]

ANSWER_TOKENS = 48
SHOWN_ERRORS = 12


class Answerer:
    """A checkpoint in float32 and its processor."""

    def __init__(self, checkpoint: Path, device: torch.device) -> None:
        self._device = device
        self._processor = AutoProcessor.from_pretrained(checkpoint)
        self._model = load_model(checkpoint).to(device).eval()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    @torch.inference_mode()
    def answer(self, cases: Sequence[Case]) -> list[str]:
        """The generated texts, without special tokens."""
        texts = [
            self._processor.apply_chat_template(case.messages, tokenize=False, add_generation_prompt=True)
            for case in cases
        ]
        images = [picture for case in cases for picture in case.pictures]
        inputs = self._processor(text=texts, images=images or None, padding=True, return_tensors="pt").to(self._device)
        output = self._model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        decoded: list[str] = self._processor.batch_decode(new, skip_special_tokens=True)
        return decoded


def evaluate(checkpoint: Path, root: Path, device: torch.device, questions: int | None = None) -> Results:
    """Every suite on the test split; ``questions`` limits each suite to a sample, for a quick look."""
    answerer = Answerer(checkpoint, device)
    began = time.monotonic()
    results: Results = {
        "parameters": answerer.parameters,
        "bytes": (checkpoint / "model.safetensors").stat().st_size,
        "suites": {},
    }
    for name, cases in suites(load_split(root, "test")).items():
        chosen = cases if questions is None else sample(cases, questions)
        results["suites"][name] = score(answerer, chosen)
        print(f"{time.monotonic() - began:.0f} s  {name}: {share(results['suites'][name]):.4f}", flush=True)
    return results


def score(answerer: Answerer, cases: Sequence[Case]) -> Results:
    """Right answers and totals by group, and the first few errors."""
    right: Counter[str] = Counter()
    total = Counter(case.group for case in cases)
    errors: list[dict[str, str]] = []
    # Longest prompts together: less padding.
    for batch in batches(sorted(cases, key=Case.cost), device_rows=256):
        for case, said in zip(batch, answerer.answer(batch), strict=True):
            right[case.group] += said == case.expected
            if said != case.expected and len(errors) < SHOWN_ERRORS:
                errors.append({"question": case.question, "expected": case.expected, "said": said})
    return {"groups": {group: [right[group], total[group]] for group in sorted(total)}, "errors": errors}


def batches(cases: Sequence[Case], device_rows: int) -> Iterable[Sequence[Case]]:
    """Slices of at most ``device_rows`` cases, all with pictures or all without."""
    for with_pictures in (False, True):
        kind = [case for case in cases if bool(case.pictures) == with_pictures]
        for start in range(0, len(kind), device_rows):
            yield kind[start : start + device_rows]


def share(suite: Results) -> float:
    right = sum(pair[0] for pair in suite["groups"].values())
    total = sum(pair[1] for pair in suite["groups"].values())
    return float(right / total)
