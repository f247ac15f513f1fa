"""Attention through a sliding window: a query sees itself and the positions before it, ``window`` in all."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from kernels.attention import AttentionGroup, AttentionPlan


def windowed(plan: AttentionPlan, window: int, dtype: torch.dtype = torch.float32) -> AttentionPlan:
    """``plan`` with what lies further back than ``window`` positions hidden from each query (Beltagy et al. 2020, arXiv
    2004.05150, without its global tokens). ``dtype`` is that of the queries; the plan itself is returned where no
    sequence is longer than the window. Raises ``ValueError`` for a window of no position."""
    if window < 1:
        raise ValueError(f"a window of {window} positions hides everything")
    if all(group.context <= window for group in plan.groups):
        return plan
    return dataclasses.replace(plan, groups=tuple(_narrowed(group, window, dtype) for group in plan.groups))


def _narrowed(group: AttentionGroup, window: int, dtype: torch.dtype) -> AttentionGroup:
    if group.context <= window:
        return group
    last = _last_seen(group).unsqueeze(-1)
    positions = torch.arange(group.context, device=group.table.device)
    hidden = (positions > last) | (positions <= last - window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
    return dataclasses.replace(group, mask=mask, causal=False)


def _last_seen(group: AttentionGroup) -> Tensor:
    """The last position that each query sees, which is its own: int64 ``(batch or 1, 1, queries)``."""
    if group.mask is not None:
        return (group.mask == 0).sum(-1) - 1
    first = group.context - group.queries
    return torch.arange(first, group.context, device=group.table.device).view(1, 1, -1)
