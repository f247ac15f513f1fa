"""What transformers answers, and how ours is held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

NEAR_TIE = 1e-4
"""A divergence is excused only where the reference's two best logits lie this close."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The reference's greedy answer: prompt ids, token ids, and at each step how far the best logit leads."""

    prompt_ids: list[int]
    token_ids: list[int]
    leads: list[float]


class Processor:
    """A checkpoint's processor in transformers; its tokenizer, where the model reads text only."""

    def __init__(self, path: Path) -> None:
        self.sees = hasattr(AutoConfig.from_pretrained(path, local_files_only=True), "vision_config")
        kind = AutoProcessor if self.sees else AutoTokenizer
        self._processor = kind.from_pretrained(path, local_files_only=True)

    def inputs(self, pictures: Sequence[Image.Image], question: str) -> Any:
        """What the model takes for one question. Raises ``ValueError`` where transformers refuses a picture."""
        return self.conversation([("user", pictures, question)])

    def conversation(self, turns: Sequence[tuple[str, Sequence[Image.Image], str]]) -> Any:
        """What the model takes for some turns: role, pictures, text."""
        messages = []
        for role, pictures, text in turns:
            content: Any = text
            if self.sees:
                content = [{"type": "image", "image": picture} for picture in pictures]
                content.append({"type": "text", "text": text})
            messages.append({"role": role, "content": content})
        return self._processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


class Reference:
    """A checkpoint in transformers, in float32, one request at a time; models that read text only too."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self._processor = Processor(path)
        kind = AutoModelForImageTextToText if self._processor.sees else AutoModelForCausalLM
        model = kind.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        self._model = model.to(device).eval()

    def answer(
        self, pictures: Sequence[Image.Image], question: str, max_tokens: int, *, to_the_end: bool = False
    ) -> Expected:
        """``to_the_end``: the answer has ``max_tokens`` tokens, also where one of them would end it.

        Raises ``ValueError`` where transformers refuses a picture.
        """
        inputs = self._processor.inputs(pictures, question).to(self._model.device)
        return generated(self._model, inputs, max_tokens, to_the_end=to_the_end)


@torch.inference_mode()
def generated(model: Any, inputs: Any, max_tokens: int, *, to_the_end: bool = False) -> Expected:
    """What a model of transformers answers to ``inputs``, greedily."""
    output = model.generate(
        **inputs,
        max_new_tokens=max_tokens,
        do_sample=False,
        output_logits=True,
        **({"eos_token_id": -1} if to_the_end else {}),
        return_dict_in_generate=True,
    )
    length = inputs["input_ids"].shape[1]
    best = [step[0].float().topk(2).values for step in output.logits]
    return Expected(
        inputs["input_ids"][0].tolist(),
        output.sequences[0, length:].tolist(),
        [float(two[0] - two[1]) for two in best],
    )


@dataclass(slots=True)
class Tally:
    """How many answers were compared, how many parted at a near tie, and how many questions both sides refused."""

    compared: int = 0
    excused: int = 0
    refused: int = 0

    def compare(self, expected: Expected, token_ids: Sequence[int]) -> None:
        """Raises ``AssertionError`` where ``token_ids`` part from the reference at anything but a near tie."""
        self.compared += 1
        pairs = enumerate(zip(expected.token_ids, token_ids, strict=False))
        parted = next((i for i, (a, b) in pairs if a != b), None)
        if parted is None:
            assert list(token_ids) == expected.token_ids, "one answer is longer than the other"
            return
        lead = expected.leads[parted]
        assert lead < NEAR_TIE, f"token {parted} differs where the reference's best logit leads by {lead}"
        self.excused += 1
