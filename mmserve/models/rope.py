"""How far each pair of a head turns from one position to the next, and how that is stretched for longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.rope import rope_inv_freq
from mmserve.errors import CheckpointError

KINDS = ("default", "mrope", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary positions of a decoder.

    ``section`` says how many pairs follow each axis of a position (M-RoPE); a single section is plain RoPE.
    ``low`` and ``high`` are llama3's ``low_freq_factor`` and ``high_freq_factor``, or yarn's ``beta_slow`` and
    ``beta_fast``; ``original_length`` is the context, in tokens, that the model was trained with before it was
    stretched by ``factor``; ``scale`` multiplies cosines and sines.
    """

    theta: float
    section: tuple[int, ...]
    interleaved: bool = False
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 1.0
    original_length: int = 0
    truncate: bool = True
    scale: float = 1.0

    def inv_freq(self) -> Tensor:
        """Radians a position for each pair of a head: float32 ``(sum(section),)``. Equal to transformers'
        modeling_rope_utils.py, which follows arXiv 2309.00071 for yarn."""
        plain = rope_inv_freq(2 * sum(self.section), self.theta)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            return self._yarn(plain)
        return plain

    def _llama3(self, plain: Tensor) -> Tensor:
        wavelength = 2 * math.pi / plain
        smooth = (self.original_length / wavelength - self.low) / (self.high - self.low)
        slow = torch.where(wavelength > self.original_length / self.low, plain / self.factor, plain)
        between = (1 - smooth) * slow / self.factor + smooth * slow
        is_between = (wavelength >= self.original_length / self.high) & (wavelength <= self.original_length / self.low)
        return torch.where(is_between, between, slow)

    def _yarn(self, plain: Tensor) -> Tensor:
        first, last = self._pair_that_turns(self.high), self._pair_that_turns(self.low)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * len(plain) - 1)
        last += 0.001 * (first == last)
        kept = 1 - ((torch.arange(len(plain), dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
        return plain / self.factor * (1 - kept) + plain * kept

    def _pair_that_turns(self, times: float) -> float:
        """Which pair turns so many times over the original context."""
        pairs = sum(self.section)
        return pairs * math.log(self.original_length / (times * 2 * math.pi)) / math.log(self.theta)


def read_rope(text: Mapping[str, Any], head_dim: int) -> RopeConfig:
    """From the language model's fields of ``config.json``. Raises ``CheckpointError`` for what is not served.

    The fields stand under ``rope_scaling`` and ``rope_theta`` as published, under ``rope_parameters`` in newer files.
    """
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in KINDS or (kind not in KINDS[:2] and "mrope_section" in rope):
        raise CheckpointError(
            f"config.json asks for rope scaling of type {kind!r}; served are {', '.join(KINDS)}, "
            "and with mrope_section only the first two"
        )
    if rope.get("partial_rotary_factor", text.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise CheckpointError("config.json turns a part of each head only (partial_rotary_factor), which is not served")
    section = tuple(rope.get("mrope_section") or (head_dim // 2,))
    if 2 * sum(section) != head_dim:
        raise CheckpointError(f"config.json's mrope_section {list(section)} does not fill half a head of {head_dim}")
    theta = rope.get("rope_theta") or text.get("rope_theta") or 10_000.0
    interleaved = bool(rope.get("mrope_interleaved"))
    if kind in ("default", "mrope"):
        return RopeConfig(float(theta), section, interleaved)
    try:
        return RopeConfig(float(theta), section, interleaved, kind, **_stretching(kind, rope, text))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json's rope scaling of type {kind!r} is not complete: {error!r}") from None


def _stretching(kind: str, rope: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"factor": float(rope["factor"])}
    if kind == "linear":
        return fields
    fields["original_length"] = int(
        rope.get("original_max_position_embeddings") or text["max_position_embeddings"],
    )
    if kind == "llama3":
        return fields | {"low": float(rope["low_freq_factor"]), "high": float(rope["high_freq_factor"])}
    scale = rope.get("attention_factor")
    if scale is None:
        factor, own, every = fields["factor"], rope.get("mscale"), rope.get("mscale_all_dim")
        scale = _magnitude(factor, own) / _magnitude(factor, every) if own and every else _magnitude(factor, 1)
    return fields | {
        "low": float(rope.get("beta_slow") or 1),
        "high": float(rope.get("beta_fast") or 32),
        "truncate": bool(rope.get("truncate", True)),
        "scale": float(scale),
    }


def _magnitude(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
