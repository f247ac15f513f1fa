"""What the vision towers of Qwen2.5-VL and Qwen3-VL share.

Pictures keep their shape: patches of all pictures lie one after another, those of a block (which becomes one row) side
by side, and each layer attends within spans of them. Rotary positions have two axes, row and column
(arXiv 2502.13923, 2.1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.rope import apply_rope, mrope_cos_sin, rope_inv_freq
from mmserve.errors import ConfigError
from mmserve.types import Grid
from vision.pixels import Pixels

Runs = Sequence[tuple[int, int]]
"""Spans of patches that attend to each other alone, in order: so many, of so many patches each."""


@dataclass(frozen=True, slots=True)
class TowerShape:
    """A tower's sizes: ``width`` and ``inner`` of its layers, ``row_width`` of what its mergers make."""

    depth: int
    width: int
    inner: int
    heads: int
    row_width: int
    channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    rope_theta: float

    @classmethod
    def read(cls, vision_config: Mapping[str, Any]) -> TowerShape:
        """From that part of ``config.json``. Raises ``ConfigError`` where a size is missing or impossible."""
        given = {"in_channels": 3, "temporal_patch_size": 2, "spatial_merge_size": 2, **vision_config}
        rope = vision_config.get("rope_parameters") or {}
        shape = cls(
            depth=positive(given, "depth"),
            width=positive(given, "hidden_size"),
            inner=positive(given, "intermediate_size"),
            heads=positive(given, "num_heads"),
            row_width=positive(given, "out_hidden_size"),
            channels=positive(given, "in_channels"),
            patch_size=positive(given, "patch_size"),
            temporal_patch_size=positive(given, "temporal_patch_size"),
            merge_size=positive(given, "spatial_merge_size"),
            rope_theta=float(rope.get("rope_theta", 10_000.0)),
        )
        if shape.width % (4 * shape.heads):
            raise ConfigError(
                f"config.json splits a vision tower of width {shape.width} into {shape.heads} heads: "
                "heads that turn on two axes need a multiple of 4"
            )
        return shape

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def block(self) -> int:
        """Patches that become one row."""
        return self.merge_size**2


def positive(values: Mapping[str, Any], field: str) -> int:
    """A field of ``vision_config``. Raises ``ConfigError``."""
    value = values.get(field)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json's vision_config must give {field} as a positive integer, got {value!r}")
    return value


def layer_numbers(vision_config: Mapping[str, Any], field: str, depth: int) -> tuple[int, ...]:
    """A field that lists layers, each once. Raises ``ConfigError``."""
    value = vision_config.get(field)
    numbers = value if isinstance(value, list) else [None]
    if any(each not in range(depth) for each in numbers) or len(set(numbers)) != len(numbers):
        raise ConfigError(f"config.json's {field} must list some of the tower's {depth} layers once, got {value!r}")
    return tuple(numbers)


class PatchEmbed(nn.Module):
    """Each patch to a vector: a convolution whose windows do not overlap, so one product."""

    def __init__(self, shape: TowerShape, *, bias: bool) -> None:
        super().__init__()
        size = (shape.temporal_patch_size, shape.patch_size, shape.patch_size)
        self.proj = nn.Conv3d(shape.channels, shape.width, size, size, bias=bias)

    def forward(self, values: Tensor) -> Tensor:
        """``(patches, channels * temporal patch * patch * patch)`` to ``(patches, width)``."""
        return F.linear(values, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Rotary self-attention within spans."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], runs: Runs) -> Tensor:
        """``(patches, width)`` to the same; ``rope`` as :func:`rope_tables` makes it."""
        heads = self.qkv(x).view(len(x), 3 * self.heads, -1)
        turned = apply_rope(heads[:, : 2 * self.heads].float(), *rope).to(x.dtype)
        qkv = (turned[:, : self.heads], turned[:, self.heads :], heads[:, 2 * self.heads :])
        parts, start = [], 0
        for count, length in runs:
            # Spans of one length are a batch.
            stop = start + count * length
            q, k, v = (each[start:stop].view(count, length, self.heads, -1).transpose(1, 2) for each in qkv)
            attended = F.scaled_dot_product_attention(q, k, v)
            parts.append(attended.transpose(1, 2).reshape(stop - start, -1))
            start = stop
        out: Tensor = self.proj(torch.cat(parts))
        return out


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, shape: TowerShape, norm: Callable[[int], nn.Module], mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(shape.width), norm(shape.width)
        self.attn, self.mlp = Attention(shape), mlp

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], runs: Runs) -> Tensor:
        x = x + self.attn(self.norm1(x), rope, runs)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def joined(pictures: Sequence[Pixels], weight: Tensor) -> Tensor:
    """All pictures' patches, in ``weight``'s dtype and on its device.

    Raises ``ValueError`` where grids and patches do not agree.
    """
    grids, values = [picture.grid for picture in pictures], torch.cat([picture.values for picture in pictures])
    promised = sum(grid.h * grid.w for grid in grids)
    if promised != len(values):
        raise ValueError(f"grids {grids} stand for {promised} patches, but {len(values)} were given")
    return values.to(weight.device, weight.dtype, non_blocking=True)


def parted(rows: Tensor, grids: Sequence[Grid], shape: TowerShape) -> list[Tensor]:
    """Each picture's rows, of a memory of their own."""
    parts = torch.split(rows, [grid.h * grid.w // shape.block for grid in grids])
    return [part.clone() for part in parts] if len(parts) > 1 else list(parts)


def whole_pictures(grids: Sequence[Grid]) -> Runs:
    """Spans in which each picture attends to itself."""
    return runs_of([grid.h * grid.w for grid in grids])


def runs_of(lengths: Sequence[int]) -> Runs:
    return [(len(list(same)), length) for length, same in groupby(lengths)]


def by_blocks(plane: Tensor, merge_size: int) -> Tensor:
    """What ``(height, width, ...)`` holds of a picture's patches in their order: ``(height * width, ...)``."""
    height, width = plane.shape[:2]
    shape = (height // merge_size, merge_size, width // merge_size, merge_size, *plane.shape[2:])
    return plane.reshape(shape).transpose(1, 2).flatten(0, 3)


def patch_positions(grids: Sequence[Grid], merge_size: int) -> Tensor:
    """Row and column of every patch within its picture: int64 ``(2, patches)``."""
    planes = [
        torch.stack(torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij"), -1) for grid in grids
    ]
    return torch.cat([by_blocks(plane, merge_size) for plane in planes]).t()


def rope_tables(positions: Tensor, shape: TowerShape) -> tuple[Tensor, Tensor]:
    """The tables that ``kernels.rope.apply_rope`` takes, float32: half of a head's pairs turn with the row, half with
    the column, at the same speeds."""
    speeds = rope_inv_freq(shape.head_dim // 2, shape.rope_theta).to(positions.device)
    axes = torch.arange(2, device=positions.device).repeat_interleave(len(speeds))
    return mrope_cos_sin(positions, speeds.repeat(2), axes)
