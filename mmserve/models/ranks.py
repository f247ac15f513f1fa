"""The processes that share a decoder: what each holds of its weights, and how their results are put together.

Tensor parallelism as in Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053): the matrices at the start of attention and
feed-forward are split by their outputs, whole heads and channels, those at the end by their inputs, so that each half
of a layer takes one sum over the ranks. Embedding and LM head are split by tokens. What lies between is the same on
every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmserve.errors import ConfigError


class Ranks(Protocol):
    """One process among ``size`` that compute one model together; ``rank`` counts from 0.

    All must make the same calls in the same order, on tensors of the same shape and dtype.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' ``x``, on each of them. May overwrite ``x``, which must be contiguous."""

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' ``x``, on each of them: ``(size, *x.shape)``, in the order of the ranks."""


class Alone:
    """One process that has the whole model."""

    rank = 0
    size = 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x[None]


ALONE = Alone()


@dataclass(frozen=True, slots=True)
class Cut:
    """What a rank takes of a published tensor whose ``axis`` has ``whole`` places: those of ``ranges``, each
    ``start <= i < stop``, one behind the other. With no range it takes nothing."""

    whole: int
    ranges: tuple[tuple[int, int], ...]
    axis: int = 0

    @property
    def size(self) -> int:
        """How many places it takes."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def everything(self) -> bool:
        return self.ranges == ((0, self.whole),)

    def of(self, tensor: Any) -> Tensor:
        """Its part of ``tensor``, or of a safetensors slice, of which no more is read than that."""
        before = (slice(None),) * self.axis
        pieces = [tensor[(*before, slice(start, stop))] for start, stop in self.ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, self.axis)

    def along(self, axis: int) -> Cut:
        """The same places of another axis."""
        return Cut(self.whole, self.ranges, axis)


def nothing(whole: int) -> Cut:
    """Of what another rank has."""
    return Cut(whole, ())


def even(length: int, ranks: Ranks) -> Cut:
    """Consecutive places, as many on each rank but the last ones, which may have fewer."""
    each = -(-length // ranks.size)
    start = min(length, ranks.rank * each)
    return Cut(length, ((start, min(length, start + each)),))


def joined(x: Tensor, whole: int, ranks: Ranks) -> Tensor:
    """All ranks' parts ``(B, n)`` of what :func:`even` split, side by side: ``(B, whole)``."""
    each = -(-whole // ranks.size)
    if x.shape[1] < each:
        x = F.pad(x, (0, each - x.shape[1]))
    return ranks.gather(x).transpose(0, 1).flatten(1)[:, :whole]


@dataclass(frozen=True, slots=True)
class HeadShare:
    """A rank's heads: ``queries`` are the rows of the query projection that make them, ``keys`` those of the key and of
    the value projection."""

    heads: int
    kv_heads: int
    queries: Cut
    keys: Cut

    @property
    def merged(self) -> Cut:
        """The rows of one projection that has queries, keys and values behind each other."""
        q, k = self.queries.whole, self.keys.whole
        shifted = [(start + shift, stop + shift) for shift in (q, q + k) for start, stop in self.keys.ranges]
        return Cut(q + 2 * k, (*self.queries.ranges, *shifted))


def share_heads(heads: int, kv_heads: int, head_dim: int, ranks: Ranks) -> HeadShare:
    """A rank's share of grouped heads, each query head with its key head. Raises ``ConfigError`` as
    :func:`check_heads` does."""
    check_heads(heads, kv_heads, ranks.size)
    mine, mine_kv = heads // ranks.size, max(1, kv_heads // ranks.size)
    first, first_kv = ranks.rank * mine, ranks.rank * kv_heads // ranks.size
    queries = Cut(heads * head_dim, ((first * head_dim, (first + mine) * head_dim),))
    keys = Cut(kv_heads * head_dim, ((first_kv * head_dim, (first_kv + mine_kv) * head_dim),))
    return HeadShare(mine, mine_kv, queries, keys)


def check_heads(heads: int, kv_heads: int, size: int) -> None:
    """Raise ``ConfigError`` where so many ranks cannot share the heads.

    Heads are never cut. Where there are fewer key heads than ranks, several ranks keep the same one.
    """
    if size > 0 and heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0):
        return
    fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
    raise ConfigError(
        f"{heads} attention heads over {kv_heads} of keys and values cannot be shared evenly by {size} processes: "
        f"--tp can be {', '.join(map(str, fitting))}",
        param="tp_size",
    )
