"""How tokens are chosen, as data; a leaf like ``mmserve.types``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mmserve.errors import InvalidField


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Validated on construction; raises ``InvalidField``.

    Applied to the logits in this order: repetition, presence and frequency penalties; ``logit_bias``; ``min_tokens``;
    ``temperature``; ``top_k``; ``top_p``; ``min_p``. ``temperature=0`` is greedy. ``top_k=0`` and ``max_tokens=None``
    mean "no limit" (the context length still holds). ``seed=None`` lets the engine draw one.
    Log-probabilities are of the model's own distribution, before penalties and temperature;
    ``logprobs=None`` is off, ``0`` only the chosen token, ``n`` also the ``n`` best.
    With ``skip_special_tokens=False`` the text has special tokens by their names, but for the one that ends the answer:
    Qwen-VL writes boxes between ``<|box_start|>`` and ``<|box_end|>``.
    ``logit_bias`` are ``(token id, number)`` pairs, each id once; the number is added to the token's logit, also where
    decoding is greedy. An id outside the vocabulary has no effect.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in _SAMPLING_RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # also refuses NaN
                raise InvalidField(f"{name} must be between {low:g} and {high:g}, got {value}", param=name)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidField("min_tokens is larger than max_tokens", param="min_tokens")
        if any(not text for text in self.stop):
            raise InvalidField("a stop string must not be empty", param="stop")
        if len(self.stop) > 16:
            raise InvalidField(f"at most 16 stop strings are allowed, got {len(self.stop)}", param="stop")
        self._check_bias()

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidField(
                f"at most {MAX_BIASES} tokens may have a bias, got {len(self.logit_bias)}", param="logit_bias"
            )
        for id_, bias in self.logit_bias:
            if not 0 <= id_ < 2**31:
                raise InvalidField(f"{id_} is no token id", param="logit_bias")
            if not -100.0 <= bias <= 100.0:
                raise InvalidField(f"a bias must be between -100 and 100, got {bias}", param="logit_bias")
        if len({id_ for id_, _ in self.logit_bias}) < len(self.logit_bias):
            raise InvalidField("a token has two biases; give each token once", param="logit_bias")

    def replace(self, **changes: object) -> SamplingParams:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


MAX_BIASES = 1024
"""How many tokens a request may bias; each costs work at every step."""

_SAMPLING_RANGES = (
    ("max_tokens", 1, 2**31 - 1),
    ("min_tokens", 0, 2**31 - 1),
    ("temperature", 0.0, 100.0),
    ("top_p", 1e-6, 1.0),
    ("top_k", 0, 2**31 - 1),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("seed", -(2**63), 2**64 - 1),
    ("logprobs", 0, 20),
)
