"""From a picture's size in pixels to its grid of patches and its number of embedding rows. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mmserve.errors import ConfigError, UnsupportedPicture
from mmserve.types import Grid

MAX_ASPECT_RATIO = 200


class Geometry(Protocol):
    """How a model family cuts pictures, and how many embedding rows come of it.

    Implementations are frozen dataclasses: their fields enter every picture's identity.
    """

    def measure(self, width: int, height: int) -> tuple[Grid, int]:
        """The patches that the vision tower takes of a picture of so many pixels, as shown, and its embedding rows.

        A grid's time axis counts tiles in families that cut a picture in tiles. Raises ``UnsupportedPicture`` if the
        family refuses the picture.
        """

    def resized(self, grid: Grid) -> tuple[int, int] | None:
        """Width and height in pixels of the whole picture as the model sees it, in which some models say where things
        are; ``None`` where it sees tiles or a crop."""


@dataclass(frozen=True, slots=True)
class QwenGeometry:
    """Dynamic resolution of Qwen2-VL (arXiv:2409.12191, 2.1): the picture is resized to whole blocks of patches.

    A block is ``patch_size * merge_size`` pixels square and gives one row. ``min_pixels`` and ``max_pixels`` bound the
    resized picture's area; blocks are rounded up where a picture grows, and with a ``ceiling`` no picture may have more
    pixels than that all the same.
    """

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    ceiling: int | None = None

    def __post_init__(self) -> None:
        if min(self.patch_size, self.merge_size, self.min_pixels) < 1 or self.max_pixels < self.min_pixels:
            raise ConfigError(f"the picture settings make no sense: {self}")

    @classmethod
    def from_configs(cls, vision_config: Mapping[str, Any], processor: Mapping[str, Any]) -> QwenGeometry:
        """From ``config.json``'s ``vision_config`` and the image processor's settings, with transformers' defaults.

        The limits may be spelled ``size: {shortest_edge, longest_edge}`` or ``min_pixels``, ``max_pixels``; where both
        are given the latter count, as in transformers. Raises ``ConfigError`` if the two files contradict each other.
        """
        size = processor.get("size") or {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
        min_pixels = _first(processor.get("min_pixels"), size.get("shortest_edge"))
        max_pixels = _first(processor.get("max_pixels"), size.get("longest_edge"))
        if not min_pixels or not max_pixels:
            raise ConfigError(f"the image processor's size must give shortest_edge and longest_edge, got {dict(size)}")
        if processor.get("do_resize") is False:
            raise ConfigError("the image processor has do_resize off, but this family needs whole blocks of patches")
        patch_size, merge_size = processor.get("patch_size", 14), processor.get("merge_size", 2)
        expected = vision_config.get("patch_size", 14), vision_config.get("spatial_merge_size", 2)
        if (patch_size, merge_size) != expected:
            raise ConfigError(
                f"the image processor makes patches of {patch_size} merged by {merge_size}, "
                f"but the vision tower expects {expected[0]} merged by {expected[1]}"
            )
        return cls(patch_size, merge_size, min_pixels, max_pixels)

    def measure(self, width: int, height: int) -> tuple[Grid, int]:
        grid = self.grid(width, height)
        return grid, self.rows(grid)

    def grid(self, width: int, height: int) -> Grid:
        """Equal to transformers' ``smart_resize`` (models/qwen2_vl/image_processing_qwen2_vl.py) in units of patches.

        ``width`` and ``height`` are in pixels, as shown. Raises ``UnsupportedPicture`` where one side is more than 200
        times the other, or it would have more pixels than the ``ceiling``.
        """
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise UnsupportedPicture(
                f"the picture is {width}×{height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other, "
                "which this model does not take; crop it or cut it into pieces"
            )
        block = self.patch_size * self.merge_size
        rows, columns = round(height / block), round(width / block)
        if rows * columns * block**2 > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / shrink / block))
            columns = max(1, math.floor(width / shrink / block))
        elif rows * columns * block**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * grow / block)
            columns = math.ceil(width * grow / block)
        if self.ceiling is not None and rows * columns * block**2 > self.ceiling:
            raise UnsupportedPicture(
                f"enlarged to min_pixels={self.min_pixels:,}, the picture of {width}×{height} pixels has more than the "
                f"{self.ceiling:,} that this model takes: lower min_pixels"
            )
        return Grid(1, rows * self.merge_size, columns * self.merge_size)

    def rows(self, grid: Grid) -> int:
        """The number of embedding rows, and so of placeholder tokens, that a grid gives."""
        return grid.t * grid.h * grid.w // self.merge_size**2

    def resized(self, grid: Grid) -> tuple[int, int]:
        return grid.w * self.patch_size, grid.h * self.patch_size


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
