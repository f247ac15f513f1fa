"""Answers with the log-probabilities behind them, how far two of them lie apart, and what excuses a difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mmserve.engine.engine import Engine
from mmserve.engine.plan import SamplingRow
from mmserve.engine.sampler import Allowed, Sampled, sample
from mmserve.types import Request, TokenLogprob, Usage
from tests.reference import NEAR_TIE

TOLERANCE = 1e-4
"""Log-probabilities of equal computations in another order of summation lie this close in float32."""

MAX_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got: its tokens with their log-probabilities, and its usage."""

    steps: tuple[TokenLogprob, ...]
    usage: Usage

    @property
    def token_ids(self) -> list[int]:
        return [step.token_id for step in self.steps]


def ask(engine: Engine, requests: Sequence[Request]) -> dict[str, Answer]:
    """All requests, which ask for log-probabilities, served together to their end; none may fail."""
    steps: dict[str, list[TokenLogprob]] = {request.id: [] for request in requests}
    answers: dict[str, Answer] = {}
    for request in requests:
        engine.add(engine.resolve(request))
    for _ in range(MAX_STEPS):
        if not engine.has_requests:
            return answers
        for event in engine.step(wait=True):
            assert event.error is None, event.error
            steps[event.request_id] += event.logprobs
            if event.usage is not None:
                answers[event.request_id] = Answer(tuple(steps[event.request_id]), event.usage)
    raise AssertionError("the engine hangs")


def distance(one: TokenLogprob, other: TokenLogprob) -> float:
    """How far two distributions lie apart in the log-probability of a token that is among the best of either."""
    if not one.top or not other.top:
        return abs(one.logprob - other.logprob) if one.token_id == other.token_id else 0.0
    a, b = ({token: value for token, _, value in step.top} for step in (one, other))
    # A token that is missing from the other's best lies below all of them there.
    return max(abs(a.get(token, min(a.values())) - b.get(token, min(b.values()))) for token in a.keys() | b.keys())


def parted_at(one: Answer, other: Answer) -> int | None:
    """The first step at which two answers chose different tokens; the shorter one's end, where it only ends first."""
    pairs = enumerate(zip(one.token_ids, other.token_ids, strict=False))
    shorter = min(len(one.steps), len(other.steps))
    end = shorter if len(one.steps) != len(other.steps) else None
    return next((at for at, (a, b) in pairs if a != b), end)


def furthest(one: Answer, other: Answer) -> float:
    """The largest distance of two answers' steps, up to and with the first at which they chose different tokens."""
    at = parted_at(one, other)
    pairs = list(zip(one.steps, other.steps, strict=False))
    return max(distance(a, b) for a, b in (pairs if at is None else pairs[: at + 1]))


@contextmanager
def recorded_choices() -> Iterator[list[tuple[Tensor, SamplingRow]]]:
    """What every choice inside the block is made from, in order: float32 logits ``(V,)`` and the sampler's row."""
    seen: list[tuple[Tensor, SamplingRow]] = []

    def recording(logits: Tensor, rows: Sequence[SamplingRow], allowed: Allowed | None) -> Sampled:
        seen.extend(zip(logits.clone(), rows, strict=True))
        return sample(logits, rows, allowed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmserve.engine.runner.sample", recording)
        yield seen


def could_choose(logits: Tensor, row: SamplingRow, token: int) -> bool:
    """Whether logits that differ from these by at most half a near tie each make the sampler choose ``token``.

    For a greedy choice that is: the best logit leads ``token``'s by at most ``NEAR_TIE``. For a sampled one, with the
    same noise, it is the same allowance. What is tried: the changes that move the token's share of the distribution
    furthest up and down, in the order of ids and of ranks (which are the best changes where no filter cuts), and
    random ones for the filters' edges. So a false answer may be too strict; a true one is a proof.
    """
    half = NEAR_TIE / 2
    ids = torch.arange(len(logits))
    ranks = logits.argsort(descending=True, stable=True).argsort()
    own = ids == token
    changes = [own]
    for order in (ids, ranks):
        changes += [order >= order[token], order <= order[token], (order > order[token]) | own]
        changes.append((order < order[token]) | own)
    generator = torch.Generator().manual_seed(0)
    signs = torch.cat([torch.stack(changes), torch.rand(256, len(logits), generator=generator) < 0.5])
    tried = torch.cat([logits.unsqueeze(0), logits + torch.where(signs, half, -half)])
    return token in sample(tried, [row] * len(tried)).token_ids
