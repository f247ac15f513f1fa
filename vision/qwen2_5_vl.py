"""Qwen2.5-VL's picture encoder (Bai et al. 2025, arXiv 2502.13923): most layers attend within windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.norm import rms_norm
from mmserve.errors import ConfigError
from mmserve.types import Grid
from vision.pixels import Pixels
from vision.projectors import PatchMerger
from vision.qwen_tower import (
    Layer,
    PatchEmbed,
    Runs,
    TowerShape,
    joined,
    layer_numbers,
    parted,
    patch_positions,
    positive,
    rope_tables,
    runs_of,
    whole_pictures,
)

_MERGER = {"merger.ln_q.": "merger.norm.", "merger.mlp.0.": "merger.fc1.", "merger.mlp.2.": "merger.fc2."}


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, 1e-6)


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Qwen25VLEncoder(nn.Module):
    """A ``vision.encoder.PictureEncoder``. Parameters are on the meta device: a weight loader gives them memory."""

    def __init__(self, vision_config: Mapping[str, Any]) -> None:
        """``vision_config`` is that part of ``config.json``. Raises ``ConfigError`` for what is not served."""
        super().__init__()
        if vision_config.get("hidden_act", "silu") != "silu":
            raise ConfigError(
                f"config.json asks for the activation {vision_config['hidden_act']!r} in the vision tower; "
                "only 'silu' is served"
            )
        shape = self.shape = TowerShape.read(vision_config)
        self.whole = layer_numbers(vision_config, "fullatt_block_indexes", shape.depth)
        self.window = positive(vision_config, "window_size") // (shape.patch_size * shape.merge_size)
        if not self.window:
            raise ConfigError(
                f"config.json's window_size {vision_config['window_size']} is smaller than one row's patches"
            )
        with torch.device("meta"):
            self.patch_embed = PatchEmbed(shape, bias=False)
            self.blocks = nn.ModuleList(
                Layer(shape, RMSNorm, SwiGLU(shape.width, shape.inner)) for _ in range(shape.depth)
            )
            self.merger = PatchMerger(shape.width, shape.row_width, shape.merge_size, RMSNorm)
        self.row_width = shape.row_width
        self.eval()

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        """As ``PictureEncoder.encode`` says. Raises ``ValueError`` where grids and patches do not agree."""
        if not pictures:
            return []
        grids, shape = [picture.grid for picture in pictures], self.shape
        x = self.patch_embed(joined(pictures, self.patch_embed.proj.weight))
        order, windows = window_order(grids, shape, self.window)
        order = order.to(x.device)
        positions = patch_positions(grids, shape.merge_size).to(x.device)
        x = x.view(-1, shape.block, shape.width)[order].flatten(0, 1)
        rope = rope_tables(positions.reshape(2, -1, shape.block)[:, order].flatten(1), shape)
        runs = whole_pictures(grids)
        for number, layer in enumerate(self.blocks):
            x = layer(x, rope, runs if number in self.whole else windows)
        rows = self.merger(x)
        return parted(torch.empty_like(rows).index_copy_(0, order, rows), grids, shape)


def window_order(grids: Sequence[Grid], shape: TowerShape, window: int) -> tuple[Tensor, Runs]:
    """The order of all pictures' blocks in which each window's lie side by side, int64 ``(blocks,)``; and the windows.

    A window is ``window`` blocks square, or what is left of that at the right and lower edge. A picture's windows of
    one size follow each other, so that they are computed together; a layer does not care about their order.
    """
    order, lengths, before = [], [], 0
    for grid in grids:
        height, width = grid.h // shape.merge_size, grid.w // shape.merge_size
        across = -(-width // window)
        numbers = torch.arange(height)[:, None] // window * across + torch.arange(width) // window
        flat = numbers.flatten()
        sizes = torch.bincount(flat)
        order.append(before + torch.argsort(sizes[flat] * len(sizes) + flat, stable=True))
        lengths += (sizes.sort().values * shape.block).tolist()
        before += height * width
    return torch.cat(order), runs_of(lengths)


def rename_qwen2_5_vl(name: str) -> str | None:
    """The parameter that a published tensor (``visual.…``, by newer transformers ``model.visual.…``) goes to; ``None``
    where it is none of the encoder's."""
    name = name.removeprefix("model.")
    if not name.startswith("visual."):
        return None
    name = name.removeprefix("visual.")
    for published, ours in _MERGER.items():
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return name
