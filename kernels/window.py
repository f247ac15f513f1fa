"""Attention that is not plainly causal: through a sliding window, and both ways within a picture."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from kernels.attention import AttentionGroup, AttentionPlan


def reshaped(
    plan: AttentionPlan, window: int | None, together: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> AttentionPlan:
    """``plan`` with other positions hidden from its queries; ``dtype`` is that of the queries.

    With a ``window`` a query sees itself and what lies before it, so many positions in all (Beltagy et al. 2020, arXiv
    2004.05150, without its global tokens). ``together``, bool ``(T,)``, marks new tokens that see, within the window,
    the whole unbroken run of marked tokens of their sequence that they stand in (Gemma 3, arXiv 2503.19786); a run must
    lie in one step. The plan itself is returned where nothing changes. Raises ``ValueError`` for a window of no
    position.
    """
    if window is not None and window < 1:
        raise ValueError(f"a window of {window} positions hides everything")
    groups = tuple(_group(group, window, together, dtype) for group in plan.groups)
    return plan if all(map(lambda a, b: a is b, groups, plan.groups)) else dataclasses.replace(plan, groups=groups)


def _group(group: AttentionGroup, window: int | None, together: Tensor | None, dtype: torch.dtype) -> AttentionGroup:
    marks = None if together is None else together[group.rows].view(group.batch, 1, group.queries)
    if marks is not None and not marks.any():
        marks = None
    narrow = window is not None and group.context > window
    if marks is None and not narrow:
        return group
    own = _positions(group)
    last = own if marks is None else torch.minimum(own + _ahead(marks), own[..., -1:])
    positions = torch.arange(group.context, device=group.table.device)
    hidden = positions > last.unsqueeze(-1)
    if window is not None:
        hidden = hidden | (positions <= own.unsqueeze(-1) - window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
    return dataclasses.replace(group, mask=mask, causal=False)


def _positions(group: AttentionGroup) -> Tensor:
    """Each query's own position, the last that it sees: int64 ``(batch or 1, 1, queries)``."""
    if group.mask is not None:
        return (group.mask == 0).sum(-1) - 1
    first = group.context - group.queries
    return torch.arange(first, group.context, device=group.table.device).view(1, 1, -1)


def _ahead(marks: Tensor) -> Tensor:
    """How many marked queries follow each marked one without a break, 0 for the others; of ``marks``' shape."""
    count = marks.shape[-1]
    places = torch.arange(count, device=marks.device).expand(marks.shape)
    breaks = torch.where(marks, count, places)
    following = breaks.flip(-1).cummin(-1).values.flip(-1)
    return torch.where(marks, following - 1 - places, 0)
