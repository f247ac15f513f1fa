"""Squares to embedding rows: the picture encoder of CogVLM (arXiv 2311.03079) and CogVLM2 (arXiv 2408.16500).

An EVA2-CLIP-E tower (arXiv 2303.15389) whose norms stand behind attention and feed-forward, not before them; an adapter
with a gate; and a learned row at either end. Parameters have the published names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmserve.errors import ConfigError
from mmserve.types import Grid
from vision.cog import CogGeometry
from vision.pixels import Pixels, check_grid
from vision.vit import MLP, activation

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation; published CogVLM checkpoints have no file that says so."""

_PREFIX = "model.vision."


class CogPixels:
    """One square a picture: ``values`` is (1, 3, side, side), squeezed by Pillow's bicubic filter, as in training."""

    def __init__(self, geometry: CogGeometry) -> None:
        self._geometry = geometry
        self._mean, self._std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))

    def __call__(self, image: Image.Image, grid: Grid) -> Pixels:
        check_grid(self._geometry.measure(*image.size)[0], grid)
        side = self._geometry.image
        squeezed = np.array(image.resize((side, side), Image.Resampling.BICUBIC))
        values = torch.from_numpy(squeezed).permute(2, 0, 1).float() / 255
        return Pixels(((values - self._mean) / self._std)[None].contiguous(), grid, image.size)


class PatchEmbedding(nn.Module):
    """Patches to vectors behind a class token, with a learned position each."""

    def __init__(self, width: int, patch: int, positions: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_embedding = nn.Parameter(torch.empty(1, width))
        self.position_embedding = nn.Embedding(positions, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(N, 3, image, image)`` to ``(N, positions, width)``."""
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_embedding.expand(len(patches), 1, -1), patches), 1)
        out: Tensor = x + self.position_embedding.weight
        return out


class TowerAttention(nn.Module):
    """Full self-attention within each picture; queries, keys and values are one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, positions, C)`` to the same."""
        q, k, v = self.query_key_value(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.dense(attended.transpose(1, 2).flatten(2))
        return out


class TowerLayer(nn.Module):
    """Attention and feed-forward, each with a norm behind it, added to the stream."""

    def __init__(self, width: int, heads: int, inner: int, eps: float, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.attention, self.mlp = TowerAttention(width, heads), MLP(width, inner, act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.input_layernorm(self.attention(x))
        out: Tensor = x + self.post_attention_layernorm(self.mlp(x))
        return out


class Tower(nn.Module):
    def __init__(self, layers: Sequence[TowerLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class GatedAdapter(nn.Module):
    """From the tower's width to the language model's, then a SwiGLU of the latter's own inner width."""

    def __init__(self, width: int, hidden_size: int, inner: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(width, hidden_size, bias=False)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.dense_h_to_4h, self.gate_proj = (nn.Linear(hidden_size, inner, bias=False) for _ in range(2))
        self.dense_4h_to_h = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to ``(..., hidden_size)``."""
        x = F.gelu(self.norm1(self.linear_proj(x)))
        out: Tensor = self.dense_4h_to_h(F.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))
        return out


class CogEncoder(nn.Module):
    """Tower, blocks joined by a convolution (CogVLM2), adapter, and the rows at either end.

    Rows are ``hidden_size`` wide and carry one value more: 1 where the picture's expert takes the token. That is every
    one but the last, by which a picture's rows are told to end. Parameters are made on the meta device, without memory:
    a weight loader gives them theirs.
    """

    def __init__(self, config: Mapping[str, Any], geometry: CogGeometry) -> None:
        """``config`` is ``config.json``. Raises ``ConfigError`` for settings that are not served."""
        super().__init__()
        vision = config["vision_config"]
        width, heads, inner, layers = (
            _positive(vision, name) for name in ("hidden_size", "num_heads", "intermediate_size", "num_hidden_layers")
        )
        if width % heads:
            raise ConfigError(f"config.json's vision_config splits hidden_size {width} into {heads} heads unevenly")
        hidden_size, act = _positive(config, "hidden_size"), activation(vision.get("hidden_act", "gelu"))
        eps = float(vision.get("layer_norm_eps", 1e-6))
        with torch.device("meta"):
            self.patch_embedding = PatchEmbedding(width, geometry.patch, geometry.side**2 + 1)
            self.transformer = Tower([TowerLayer(width, heads, inner, eps, act) for _ in range(layers)])
            self.conv = nn.Conv2d(width, width, geometry.block, geometry.block) if geometry.block > 1 else None
            self.linear_proj = GatedAdapter(width, hidden_size, _positive(config, "intermediate_size"))
            self.boi, self.eoi = (nn.Parameter(torch.empty(1, 1, hidden_size)) for _ in range(2))
        self.row_width = hidden_size + 1
        self._side = geometry.side
        self.eval()

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        if not pictures:
            return []
        pixels = torch.cat([picture.values for picture in pictures])
        x = self.transformer(self.patch_embedding(pixels.to(self.boi.device, self.boi.dtype, non_blocking=True)))[:, 1:]
        if self.conv is not None:
            square = x.transpose(1, 2).unflatten(2, (self._side, self._side))
            x = self.conv(square).flatten(2).transpose(1, 2)
        ends = (each.expand(len(x), 1, -1) for each in (self.boi, self.eoi))
        rows = torch.cat((next(ends), self.linear_proj(x), next(ends)), 1)
        marks = rows.new_ones(*rows.shape[:2], 1)
        marks[:, -1] = 0
        marked = torch.cat((rows, marks), 2)
        return [each.clone() for each in marked] if len(marked) > 1 else [marked[0]]

    @staticmethod
    def rename(name: str) -> str | None:
        """The parameter that a published tensor goes to; ``None`` if it is none of the encoder's."""
        return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None


def _positive(values: Mapping[str, Any], field: str) -> int:
    value = values.get(field)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json must give {field} of CogVLM as a positive integer, got {value!r}")
    return value
