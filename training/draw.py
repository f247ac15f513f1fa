"""Shapes in easy-vqa's style, drawn for a whole batch at once from signed distances."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from training.data import COLORS, SHAPES
from training.questions import ANYWHERE
from training.random_tensors import chance, uniform

CIRCLE, RECTANGLE, TRIANGLE = (SHAPES.index(name) for name in ("circle", "rectangle", "triangle"))

# The first value is easy-vqa's own; people who draw "green" or "gray" often mean one of the others.
PALETTE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((0, 0, 0), (25, 25, 25), (10, 10, 15)),
    "blue": ((0, 0, 255), (30, 60, 220), (0, 70, 200)),
    "brown": ((165, 42, 42), (139, 69, 19), (120, 60, 30)),
    "gray": ((128, 128, 128), (105, 105, 105), (150, 150, 150)),
    "green": ((0, 255, 0), (0, 128, 0), (34, 160, 40)),
    "red": ((255, 0, 0), (220, 20, 40), (235, 40, 30)),
    "teal": ((0, 128, 128), (0, 150, 140), (10, 110, 115)),
    "yellow": ((255, 255, 0), (255, 225, 0), (240, 220, 40)),
}

SMALLEST = 14 / 112
LARGEST = 0.62
LARGEST_IN_CELL = 0.4


def draw_shapes(looks: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
    """Float ``[batch, 3, *size]`` in 0..255 for ``looks`` ``[batch, 3]`` (shape, colour, cell)."""
    shape, color, cell = looks.unbind(1)
    half_width, half_height = _half_extents(shape, cell, min(size), generator)
    angle = _angles(shape, generator)
    reach = torch.where(angle == 0, half_width, torch.hypot(half_width, half_height))
    tall = torch.where(angle == 0, half_height, reach)
    placed = cell != ANYWHERE
    center_y = _centers(size[0], tall, torch.where(placed, cell // 3, -1), generator)
    center_x = _centers(size[1], reach, torch.where(placed, cell % 3, -1), generator)
    y = torch.arange(size[0], device=looks.device)[None, :, None] + 0.5 - center_y[:, None, None]
    x = torch.arange(size[1], device=looks.device)[None, None, :] + 0.5 - center_x[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    distance = _distance(shape, x * cos + y * sin, y * cos - x * sin, half_width, half_height)
    return _paint(distance, color, generator)


def _half_extents(shape: Tensor, cell: Tensor, short: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Half widths and heights in pixels, for a canvas whose shorter side is ``short``."""
    batch = len(shape)
    smallest = max(SMALLEST * min(short, 112), 5.0)
    largest = torch.where(cell == ANYWHERE, LARGEST, LARGEST_IN_CELL) * short
    width = smallest * (largest / smallest).pow(uniform(batch, 0.0, 1.0, generator))
    other = smallest * (largest / smallest).pow(uniform(batch, 0.0, 1.0, generator))
    other = other.clamp(min=width / 4).minimum(width * 4).clamp(max=largest)
    height = torch.where(shape == RECTANGLE, other, width)
    squash = math.sqrt(3) / 2 * uniform(batch, 0.85, 1.2, generator)
    height = torch.where(shape == TRIANGLE, width * squash, height)
    return width / 2, height / 2


def _angles(shape: Tensor, generator: Generator) -> Tensor:
    """Upright for most; a triangle may point anywhere, a rectangle leans a little."""
    batch = len(shape)
    limit = torch.where(shape == TRIANGLE, math.pi, math.radians(22))
    angle = limit * uniform(batch, -1.0, 1.0, generator)
    return torch.where(chance(batch, 0.75, generator) | (shape == CIRCLE), 0.0, angle)


def _centers(extent: int, reach: Tensor, third: Tensor, generator: Generator) -> Tensor:
    """Coordinates that keep the shape inside; in the given third of the side (0..2), away from its borders."""
    low = torch.where(third < 0, 0.0, third / 3 + 0.05) * extent
    high = torch.where(third < 0, 1.0, (third + 1) / 3 - 0.05) * extent
    low, high = torch.maximum(low, reach), torch.minimum(high, extent - reach)
    return low + (high - low).clamp(min=0) * uniform(len(reach), 0.0, 1.0, generator)


def _distance(shape: Tensor, x: Tensor, y: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    """Signed distances in pixels, negative inside; outside a corner they are too small, which does not show."""
    a, b = half_width[:, None, None], half_height[:, None, None]
    kind = shape[:, None, None]
    circle = torch.hypot(x, y) - a
    rectangle = torch.maximum(x.abs() - a, y.abs() - b)
    sides = (2 * b * x.abs() - a * (y + b)) / torch.hypot(2 * b, a)
    triangle = torch.maximum(y - b, sides)
    return torch.where(kind == CIRCLE, circle, torch.where(kind == RECTANGLE, rectangle, triangle))


def _paint(distance: Tensor, color: Tensor, generator: Generator) -> Tensor:
    batch = len(color)
    hard = chance(batch, 0.25, generator)[:, None, None]
    cover = (0.5 - distance).clamp(0, 1)
    cover = torch.where(hard, (cover > 0.5).float(), cover)[:, None]
    ink, paper = _inks(color, generator), _papers(batch, generator)
    return paper[:, :, None, None] * (1 - cover) + ink[:, :, None, None] * cover


def _inks(color: Tensor, generator: Generator) -> Tensor:
    """RGB ``[batch, 3]``: easy-vqa's colour for most, and a little jitter for half."""
    batch = len(color)
    palette = torch.tensor([PALETTE[name] for name in COLORS], device=color.device, dtype=torch.float32)
    other = torch.randint(1, palette.shape[1], (batch,), generator=generator, device=color.device)
    ink = palette[color, torch.where(chance(batch, 0.8, generator), 0, other)]
    jitter = uniform((batch, 3), -14.0, 14.0, generator) * chance(batch, 0.5, generator)[:, None]
    return (ink + jitter).clamp(0, 255)


def _papers(batch: int, generator: Generator) -> Tensor:
    """Light backgrounds: easy-vqa's range for most, white for some, a little darker for the rest."""
    kind = uniform((batch, 1), 0.0, 1.0, generator)
    paper = uniform((batch, 3), 230.0, 255.0, generator)
    paper = torch.where(kind < 0.1, uniform((batch, 3), 195.0, 255.0, generator), paper)
    return torch.where(kind > 0.8, 255.0, paper)
