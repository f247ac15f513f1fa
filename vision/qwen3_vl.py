"""Qwen3-VL's picture encoder (Bai et al. 2025, arXiv 2511.21631): rows that carry features for the decoder's first
layers (DeepStack, Meng et al. 2024, arXiv 2406.04334)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmserve.errors import ConfigError
from mmserve.types import Grid
from vision.pixels import Pixels
from vision.projectors import PatchMerger, layer_norm
from vision.qwen_tower import (
    Layer,
    PatchEmbed,
    TowerShape,
    by_blocks,
    joined,
    layer_numbers,
    parted,
    patch_positions,
    positive,
    rope_tables,
    whole_pictures,
)
from vision.vit import activation

_PARTS = {"linear_fc1.": "fc1.", "linear_fc2.": "fc2."}


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear_fc1, self.linear_fc2, self.act = nn.Linear(width, inner), nn.Linear(inner, width), act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_fc2(self.act(self.linear_fc1(x)))
        return out


class Qwen3VLEncoder(nn.Module):
    """A ``vision.encoder.PictureEncoder``. Parameters are on the meta device: a weight loader gives them memory.

    A row is an embedding, and behind it what the decoder's first layers add to it, one after another.
    """

    def __init__(self, vision_config: Mapping[str, Any]) -> None:
        """``vision_config`` is that part of ``config.json``. Raises ``ConfigError`` for what is not served."""
        super().__init__()
        shape = self.shape = TowerShape.read(vision_config)
        self.deepstack = deepstack_layers(vision_config)
        act = activation(vision_config.get("hidden_act", "gelu_pytorch_tanh"))
        positions = positive(vision_config, "num_position_embeddings")
        self.side = math.isqrt(positions)
        if self.side**2 != positions:
            raise ConfigError(f"config.json's num_position_embeddings {positions} do not fill a square")
        merger = partial(PatchMerger, shape.width, shape.row_width, shape.merge_size)
        with torch.device("meta"):
            self.patch_embed = PatchEmbed(shape, bias=True)
            self.pos_embed = nn.Embedding(positions, shape.width)
            self.blocks = nn.ModuleList(
                Layer(shape, layer_norm, MLP(shape.width, shape.inner, act)) for _ in range(shape.depth)
            )
            self.merger = merger()
            self.deepstack_merger_list = nn.ModuleList(merger(norm_blocks=True) for _ in self.deepstack)
        self.row_width = shape.row_width * (1 + len(self.deepstack))
        self.eval()

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        """As ``PictureEncoder.encode`` says. Raises ``ValueError`` where grids and patches do not agree."""
        if not pictures:
            return []
        grids, shape = [picture.grid for picture in pictures], self.shape
        x = self.patch_embed(joined(pictures, self.patch_embed.proj.weight))
        x = x + torch.cat([self._positions(grid) for grid in grids])
        rope = rope_tables(patch_positions(grids, shape.merge_size).to(x.device), shape)
        runs = whole_pictures(grids)
        features = []
        for number, layer in enumerate(self.blocks):
            x = layer(x, rope, runs)
            if number in self.deepstack:
                features.append(self.deepstack_merger_list[self.deepstack.index(number)](x))
        return parted(torch.cat([self.merger(x), *features], -1), grids, shape)

    def _positions(self, grid: Grid) -> Tensor:
        """The learned positions, stretched from their own square to the picture's grid: ``(patches, width)``."""
        square = self.pos_embed.weight.t().view(1, -1, self.side, self.side)
        stretched = F.interpolate(square, (grid.h, grid.w), mode="bilinear", align_corners=True)
        return by_blocks(stretched[0].permute(1, 2, 0), self.shape.merge_size)


def deepstack_layers(vision_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tower's layers whose features the decoder's first layers take. Raises ``ConfigError``."""
    depth = positive(vision_config, "depth")
    return layer_numbers(vision_config, "deepstack_visual_indexes", depth)


def rename_qwen3_vl(name: str) -> str | None:
    """The parameter that a published tensor (``model.visual.…``, or ``visual.…``) goes to; ``None`` where it is none of
    the encoder's."""
    name = name.removeprefix("model.")
    if not name.startswith("visual."):
        return None
    name = name.removeprefix("visual.")
    if name.startswith(("merger.", "deepstack_merger_list.")):
        for published, ours in _PARTS.items():
            name = name.replace(published, ours)
    return name
