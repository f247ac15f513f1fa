"""Choosing the next token of each row from its logits.

A row's choice depends on its own logits, parameters and position only, not on the batch it is in: noise is a
hash of ``(seed, position)``, and a sampled token is found by inverting the row's cumulative distribution at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.mask import apply_token_bitmask
from mmserve.engine.plan import SamplingRow
from mmserve.sampling import SamplingParams
from mmserve.types import IntArray

FIRST_CANDIDATES = 32
"""How many best tokens a filtered row looks at first; it looks at more only when its filters may keep more."""

SCORED_ROWS = 64
"""How many rows are scored at a time; ranking a row for its best tokens takes several times its memory."""

FloatArray: TypeAlias = "npt.NDArray[np.float32]"

_NO_MASS = float("-inf")
_LOWEST_TEMPERATURE = 1e-30
_MASK64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Natural log-probabilities under the model's own distribution.

    ``chosen`` is the chosen token's; ``top`` the ``(id, log-probability)`` of the best, best first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """Which tokens some rows may take: ``bits`` int32 ``(N, ceil(V / 32))`` for the ``rows``, int64 ``(N,)``, distinct.

    See ``kernels.mask``. Every row must allow a token.
    """

    bits: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """For each row the chosen id, and its log-probabilities where they were asked for."""

    token_ids: list[int]
    logprobs: list[RowLogprobs | None]


def sample(logits: Tensor, rows: Sequence[SamplingRow], allowed: Allowed | None = None) -> Sampled:
    """Choose one token for each row of ``logits``, float32 ``(B, V)``, which is left as it is.

    In the order that :class:`mmserve.sampling.SamplingParams` states, with what a grammar allows after the penalties.
    Among equal logits the lowest id counts as the better: greedy takes it, ``top_k`` keeps exactly k, and ``top_p``
    keeps the fewest tokens that reach it.
    """
    shaped = _shape(logits, rows)
    if allowed is not None:
        shaped = apply_token_bitmask(logits.clone() if shaped is logits else shaped, allowed.bits, allowed.rows)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    ways = [_way(row.params) for row in rows]
    for choose in (_best, _draw, _draw_filtered):
        members = [i for i, way in enumerate(ways) if way is choose]
        if len(members) == len(rows):
            tokens = choose(shaped, rows)
        elif members:
            index = torch.tensor(members, device=logits.device)
            tokens.index_copy_(0, index, choose(shaped.index_select(0, index), [rows[i] for i in members]))
    return Sampled(tokens.tolist(), _logprobs(logits, tokens, rows))


def score(logits: Tensor, targets: Tensor, top: Sequence[int]) -> list[RowLogprobs]:
    """Log-probabilities of given tokens: ``targets``, int64 ``(B,)``, under the rows of ``logits``, float32 ``(B, V)``.

    ``top`` says how many of the best are wanted with each.
    """
    found: list[RowLogprobs] = []
    for start in range(0, len(top), SCORED_ROWS):
        piece = slice(start, start + SCORED_ROWS)
        found += _score(logits[piece], targets[piece], top[piece])
    return found


def _score(logits: Tensor, targets: Tensor, top: Sequence[int]) -> list[RowLogprobs]:
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, targets.unsqueeze(1)).squeeze(1).tolist()
    most = min(logits.shape[1], max(top, default=0))
    if not most:
        return [RowLogprobs(value, ()) for value in chosen]
    ids = _ranked(logits, most)
    best = zip(ids.tolist(), logprobs.gather(1, ids).tolist(), strict=True)
    return [
        RowLogprobs(value, tuple(zip(best_ids[:count], values[:count], strict=True)))
        for value, count, (best_ids, values) in zip(chosen, top, best, strict=True)
    ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) on a grid of 2^-53, hashed from ``seed`` and ``position`` (SplitMix64, Steele et al. 2014)."""
    return (_mix(_mix(seed & _MASK64) + (position + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z &= _MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK64
    return z ^ (z >> 31)


def _way(params: SamplingParams) -> Callable[[Tensor, Sequence[SamplingRow]], Tensor]:
    if params.greedy:
        return _best
    return _draw_filtered if params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0 else _draw


def _shape(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The logits after penalties, biases and bans: a copy where there are any.

    Repetition (Keskar et al. 2019, arXiv 1909.05858) counts prompt and output; presence and frequency, as in
    OpenAI's interface, the output alone.
    """
    penalised = [(i, row) for i, row in enumerate(rows) if row.params.penalised]
    banned = [(i, np.array(row.banned), _NO_MASS) for i, row in enumerate(rows) if row.banned]
    biased = _biases(rows)
    if not penalised and not biased and not banned:
        return logits
    shaped = logits.clone()
    flat = shaped.view(-1)
    outputs = [(i, np.asarray(row.output_ids, dtype=np.int64), row.params) for i, row in penalised]
    prompts = [row.prompt_ids for _, row in penalised]
    seen = [
        (i, np.concatenate((prompt, ids)), params.repetition_penalty)
        for prompt, (i, ids, params) in zip(prompts, outputs, strict=True)
    ]
    # A token that occurs twice is written twice with the same value, except where frequency adds up.
    index, penalty = _spread(seen, shaped)
    values = flat[index]
    flat[index] = torch.where(values > 0, values / penalty, values * penalty)
    index, penalty = _spread([(i, ids, params.presence_penalty) for i, ids, params in outputs], shaped)
    flat[index] = flat[index] - penalty
    index, penalty = _spread([(i, ids, params.frequency_penalty) for i, ids, params in outputs], shaped)
    flat.index_add_(0, index, penalty, alpha=-1)
    index, bias = _spread(biased, shaped)
    flat[index] = flat[index] + bias
    index, penalty = _spread(banned, shaped)
    flat[index] = penalty
    return shaped


def _biases(rows: Sequence[SamplingRow]) -> list[tuple[int, IntArray, FloatArray]]:
    pairs = [(i, row.params.logit_bias) for i, row in enumerate(rows) if row.params.logit_bias]
    return [
        (i, np.array([id_ for id_, _ in biases]), np.array([bias for _, bias in biases], np.float32))
        for i, biases in pairs
    ]


def _spread(entries: Sequence[tuple[int, IntArray, float | FloatArray]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Places in ``like``, ``(B, V)`` laid flat, of ``(row, ids, value)`` entries, and their values, one each.
    A value is of all ids, or an array has one for each.

    Ids outside the vocabulary are left out: a caller may ban any number.
    """
    vocabulary = like.shape[1]
    places, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for row, ids, value in entries:
        inside = (ids >= 0) & (ids < vocabulary)
        places.append(row * vocabulary + ids[inside])
        values.append(np.broadcast_to(np.asarray(value, np.float32), ids.shape)[inside])
    return (
        torch.tensor(np.concatenate(places), device=like.device),
        torch.tensor(np.concatenate(values), device=like.device),
    )


def _best(logits: Tensor, _rows: Sequence[SamplingRow]) -> Tensor:
    return logits.argmax(-1)


def _weights(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Unnormalised probabilities ``(B, V)`` after temperature; the best token's is 1."""
    temperature = _column([max(row.params.temperature, _LOWEST_TEMPERATURE) for row in rows], logits, torch.float32)
    return (logits - logits.amax(-1, keepdim=True)).div_(temperature).exp_()


def _draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    return _invert(_weights(logits, rows).cumsum(-1, dtype=torch.float64), rows)


def _draw_filtered(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Draw from the tokens that top-k, top-p and min-p keep, best token first."""
    weights = _weights(logits, rows)
    vocabulary = logits.shape[1]
    limits = [row.params.top_k if 0 < row.params.top_k < vocabulary else vocabulary for row in rows]
    top_k = _column(limits, logits, torch.int64)
    top_p = _column([row.params.top_p for row in rows], logits, torch.float64)
    min_p = _column([row.params.min_p for row in rows], logits, torch.float64)
    total = weights.sum(-1, keepdim=True, dtype=torch.float64)
    looked_at = min(vocabulary, max([FIRST_CANDIDATES, *(limit for limit in limits if limit < vocabulary)]))
    while True:
        ids = _ranked(logits, looked_at)
        ranks = torch.arange(looked_at, device=logits.device)
        mass = weights.gather(1, ids).double().masked_fill_(ranks >= top_k, 0.0)
        reached = mass.cumsum(-1)
        before = F.pad(reached[:, :-1], (1, 0))
        # What top-p takes its share of: the sum over the k best, or over everything.
        whole = torch.where(top_k <= looked_at, reached[:, -1:], total)
        kept = (ranks < top_k) & (before < top_p * whole) & (mass >= min_p * mass[:, :1])
        # Kept tokens are a prefix of the ranking, so nothing is missed where the last one looked at is not kept.
        if looked_at == vocabulary or not bool((kept[:, -1:] & (top_k > looked_at)).any()):
            break
        looked_at = min(vocabulary, looked_at * 8)
    place = _invert(mass.mul_(kept).cumsum(-1), rows)
    return ids.gather(1, place.unsqueeze(1)).squeeze(1)


def _ranked(logits: Tensor, count: int) -> Tensor:
    """The ids ``(B, count)`` of each row's best tokens, best first; of equal ones the lower id comes first."""
    if count < logits.shape[1]:
        values, ids = logits.topk(count + 1)
        # topk promises no order among equals. Within its result sorting mends that; across its edge, more is needed.
        if not bool((values[:, -2:-1] == values[:, -1:]).any()):
            ids = ids[:, :count]
            return ids.gather(1, _rank_keys(values[:, :count], ids).argsort(descending=True))
    ids = torch.arange(logits.shape[1], device=logits.device)
    return _rank_keys(logits, ids).topk(count).indices


def _rank_keys(logits: Tensor, ids: Tensor) -> Tensor:
    """int64, all different in a row: ordered by logit, and among equal ones the lower id is the larger."""
    # Adding zero turns -0.0 into 0.0, its equal. Floats order like their bits, negative ones in reverse.
    bits = (logits + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ordered.to(torch.int64) * 2**32 - ids


def _invert(cdf: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The index ``(B,)`` at which each row's unnormalised ``cdf``, float64 ``(B, n)``, passes the row's noise."""
    noise = _column([uniform(row.seed, row.position) for row in rows], cdf, torch.float64)
    # noise <= 1 - 2^-53, so the product rounds to less than the total, and only NaN has to be clamped.
    return torch.searchsorted(cdf, noise * cdf[:, -1:], right=True).squeeze(1).clamp_(max=cdf.shape[1] - 1)


def _logprobs(logits: Tensor, tokens: Tensor, rows: Sequence[SamplingRow]) -> list[RowLogprobs | None]:
    found: list[RowLogprobs | None] = [None] * len(rows)
    wanted = {i: row.params.logprobs for i, row in enumerate(rows) if row.params.logprobs is not None}
    if not wanted:
        return found
    index = torch.tensor(list(wanted), device=logits.device)
    for i, scored in zip(
        wanted, score(logits.index_select(0, index), tokens[index], list(wanted.values())), strict=True
    ):
        found[i] = scored
    return found


def _column(values: list[float] | list[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device).unsqueeze(1)
