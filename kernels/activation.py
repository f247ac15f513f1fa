"""The gate of a SwiGLU feed-forward (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up``, where ``gate_up`` is ``(..., 2F)``, the gate first; returns ``(..., F)``."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)
