"""Rotary positions: RoPE (Su et al. 2021, arXiv 2104.09864) and M-RoPE (Qwen2-VL, arXiv 2409.12191).

In the half-split layout, pair j of a head is its dimensions ``j`` and ``j + D / 2``. M-RoPE gives each pair one of
three positions of a token: time, height or width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rope_inv_freq(head_dim: int, theta: float) -> Tensor:
    """The rotation speeds ``theta^(-2j / D)`` of a head's pairs: float32 ``(D / 2,)``."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def mrope_axes(section: Sequence[int], *, interleaved: bool = False) -> Tensor:
    """Which position (0 time, 1 height, 2 width) turns each pair: int64 ``(sum(section),)``.

    Section i is the number of consecutive pairs that follow axis ``i % 3``. ``interleaved`` (Qwen3-VL) deals the pairs
    out in turns instead: time, height, width, time, ... until height and width have had theirs; the rest are time's.
    """
    if not interleaved:
        return torch.arange(len(section)).remainder(3).repeat_interleave(torch.tensor(section))
    axes = torch.zeros(sum(section), dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes


def mrope_cos_sin(
    positions: Tensor, inv_freq: Tensor, axes: Tensor, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The tables that :func:`apply_rope` takes, made once a step for all layers.

    ``positions`` is int64 ``(3, T)`` (or one row for each axis in use), ``inv_freq`` float32 ``(D / 2,)`` and
    ``axes`` int64 ``(D / 2,)``. Angles are computed in float32. Returns ``cos`` and ``sin`` times ``scale``, each
    ``(T, 1, D)`` in ``dtype``; the first half of ``sin`` is negated.
    """
    angles = positions.index_select(0, axes).t() * inv_freq
    cos, sin = angles.cos(), angles.sin()
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    cos, sin = cos.to(dtype), sin.to(dtype)
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def apply_rope(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``heads``, ``(T, N, D)``: queries and keys side by side, or either; returns a new tensor of that shape."""
    # Rolling by half a head swaps the members of each pair; the sign of the swapped ones is in ``sin``.
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)
