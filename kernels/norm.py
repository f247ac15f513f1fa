"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), alone and after a residual addition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    ``x`` is ``(..., C)`` and ``weight`` ``(C,)``, of one dtype, which the result has too.
    """
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(rms_norm(x + residual), x + residual)``; shapes and dtypes as in :func:`rms_norm`."""
    total = x + residual
    return F.rms_norm(total, weight.shape, weight, eps), total
