"""Projectors: from vision tower features to rows in the language model's embedding space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def layer_norm(width: int) -> nn.Module:
    """As Qwen's towers have it."""
    return nn.LayerNorm(width, eps=1e-6)


class PatchMerger(nn.Module):
    """Qwen2-VL's projector: each block of ``merge_size`` squared neighbouring patches becomes one row.

    LayerNorm, the block's patches side by side, Linear, GELU, Linear (arXiv:2409.12191, 2.1; ``PatchMerger`` in
    transformers' models/qwen2_vl/modeling_qwen2_vl.py). Later models have another ``norm``, made for its width, or
    norm whole blocks (``norm_blocks``).
    """

    def __init__(
        self,
        patch_dim: int,
        hidden_size: int,
        merge_size: int,
        norm: Callable[[int], nn.Module] = layer_norm,
        *,
        norm_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.block_dim = patch_dim * merge_size**2
        self.norm_dim = self.block_dim if norm_blocks else patch_dim
        self.norm = norm(self.norm_dim)
        self.fc1 = nn.Linear(self.block_dim, self.block_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(self.block_dim, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(patches, patch_dim), block by block -> (patches / merge_size squared, hidden_size)."""
        normed = self.norm(features.view(-1, self.norm_dim))
        rows: torch.Tensor = self.fc2(self.act(self.fc1(normed.view(-1, self.block_dim))))
        return rows


class TwoLayerProjector(nn.Module):
    """LLaVA's projector: each feature becomes one row (arXiv:2310.03744, 3.3)."""

    def __init__(
        self, width: int, hidden_size: int, act: Callable[[torch.Tensor], torch.Tensor], *, bias: bool
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden_size, bias=bias)
        self.act = act
        self.linear_2 = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., hidden_size)."""
        rows: torch.Tensor = self.linear_2(self.act(self.linear_1(features)))
        return rows
