"""How the LLaVA families cut pictures: one square, or tiles of the resolution that fits best. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmserve.errors import ConfigError, UnsupportedPicture
from mmserve.types import Grid

MAX_ASPECT_RATIO = 1000
"""Of pictures that are cropped after they were resized by their short side: a longer one would fill the memory."""

MAX_PADDED_SIDE = 16_384
"""In pixels, of pictures that are padded to a square before they are resized."""


TOWERS: Mapping[str, bool] = {"clip_vision_model": True, "siglip_vision_model": False}
"""The towers that are served, and whether a class token stands before their patches."""


@dataclass(frozen=True, slots=True)
class SquareGeometry:
    """Every picture becomes one square of ``side`` squared patches, and ``extra`` rows besides (class token, newline).

    ``padded`` says that it is padded to a square; else it is cropped, or squeezed, to one.
    """

    side: int
    extra: int
    padded: bool = False

    def measure(self, width: int, height: int) -> tuple[Grid, int]:
        long, short = max(width, height), min(width, height)
        if self.padded and long > MAX_PADDED_SIDE:
            raise UnsupportedPicture(
                f"the picture is {width}×{height} pixels: beside other pictures this model takes none with a side of "
                f"more than {MAX_PADDED_SIDE:,}; scale it down"
            )
        if not self.padded and long > MAX_ASPECT_RATIO * short:
            raise UnsupportedPicture(
                f"the picture is {width}×{height} pixels: one side is more than {MAX_ASPECT_RATIO:,} times the other, "
                "and this model would see its middle only; crop it or cut it into pieces"
            )
        return Grid(1, self.side, self.side), self.side**2 + self.extra

    def resized(self, _: Grid) -> None:
        """The model sees a middle, or a picture with borders."""


@dataclass(frozen=True, slots=True)
class AnyResGeometry:
    """The picture as a whole, squeezed to a square tile, and then in tiles at a resolution of its own (LLaVA-NeXT,
    "anyres"; LLaVA-OneVision, arXiv 2408.03326).

    ``tile`` is a tile's side in pixels and ``side`` in patches; ``resolutions`` are heights and widths in pixels, whole
    tiles each. What was padded is cut away again, and each line of patches ends with a newline row. Where more patches
    are left than ``most`` tiles have, they are scaled down (``most=0``: never).
    """

    tile: int
    side: int
    resolutions: tuple[tuple[int, int], ...]
    most: int = 0

    def __post_init__(self) -> None:
        cut = any(pixels < 1 or pixels % self.tile for resolution in self.resolutions for pixels in resolution)
        if not self.resolutions or cut:
            raise ConfigError(f"image_grid_pinpoints must be whole tiles of {self.tile} pixels, got {self.resolutions}")

    def measure(self, width: int, height: int) -> tuple[Grid, int]:
        down, across = self.tiles(width, height)
        lines, columns = self.shape(width, height)
        return Grid(1 + down * across, self.side, self.side), self.side**2 + lines * (columns + 1)

    def resized(self, _: Grid) -> None:
        """The model sees tiles."""

    def tiles(self, width: int, height: int) -> tuple[int, int]:
        """How many tiles the picture has, down and across: of the resolution that keeps the most of it and wastes the
        least (transformers' ``select_best_resolution``)."""
        best, most_kept, least_wasted = self.resolutions[0], 0, math.inf
        for high, wide in self.resolutions:
            scale = min(wide / width, high / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            wasted = wide * high - kept
            if kept > most_kept or (kept == most_kept and wasted < least_wasted):
                best, most_kept, least_wasted = (high, wide), kept, wasted
        return best[0] // self.tile, best[1] // self.tile

    def padding(self, width: int, height: int) -> tuple[int, int]:
        """How many lines of patches at the top and at the bottom, and columns at each side, hold no picture."""
        down, across = self.tiles(width, height)
        lines, columns = down * self.side, across * self.side
        if width / height > columns / lines:
            return (lines - int(round(height * (columns / width), 7))) // 2, 0
        return 0, (columns - int(round(width * (lines / height), 7))) // 2

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Lines and columns of patches that are kept."""
        down, across = self.tiles(width, height)
        above, beside = self.padding(width, height)
        lines, columns = down * self.side - 2 * above, across * self.side - 2 * beside
        if self.most:
            ratio = math.sqrt(lines * columns / (self.most * self.side**2))
            if ratio > 1.1:
                return int(lines // ratio), int(columns // ratio)
        return lines, columns


@dataclass(frozen=True, slots=True)
class TileSettings:
    """What ``config.json`` says of a LLaVA's tower: a tile's side in pixels and in patches, whether the tower makes a
    class token, and whether the first row is left out."""

    tile: int
    side: int
    class_token: bool
    drops_first: bool

    @property
    def extra(self) -> int:
        """Rows of a tile besides its patches'."""
        return self.class_token - self.drops_first


def tile_settings(config: Mapping[str, Any], processor: Mapping[str, Any]) -> TileSettings:
    """From ``config.json`` and the image processor's settings. Raises ``ConfigError`` if they contradict each other."""
    vision = config.get("vision_config") or {}
    class_token = TOWERS.get(str(vision.get("model_type")))
    if class_token is None:
        raise ConfigError(
            f"config.json asks for a vision tower of type {vision.get('model_type')!r}; served are {', '.join(TOWERS)}"
        )
    tile, patch = vision.get("image_size", 336), vision.get("patch_size", 14)
    if not all(isinstance(size, int) and size > 0 for size in (tile, patch)):
        raise ConfigError(f"config.json gives pictures of {tile!r} pixels a side in patches of {patch!r}")
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    made = crop or processor.get("size") or {"height": tile, "width": tile}
    sides = {made} if isinstance(made, int) else {made.get("height"), made.get("width"), made.get("shortest_edge")}
    if sides - {None} != {tile}:
        raise ConfigError(
            f"the image processor makes pictures of size {made}, but the vision tower takes {tile} a side"
        )
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ConfigError(f"vision_feature_select_strategy must be default or full, not {strategy!r}")
    return TileSettings(tile, tile // patch, class_token, strategy == "default")


def square_geometry(config: Mapping[str, Any], processor: Mapping[str, Any]) -> SquareGeometry:
    """LLaVA-1.5's. Raises ``ConfigError``."""
    settings = tile_settings(config, processor)
    return SquareGeometry(settings.side, settings.extra)


def anyres_geometry(config: Mapping[str, Any], processor: Mapping[str, Any]) -> AnyResGeometry:
    """LLaVA-NeXT's and LLaVA-OneVision's. Raises ``ConfigError``."""
    settings = tile_settings(config, processor)
    if settings.extra:
        raise ConfigError("vision_feature_select_strategy must leave a row for each patch, so that tiles fit together")
    found = config.get("image_grid_pinpoints") or processor.get("image_grid_pinpoints")
    if not found or processor.get("image_grid_pinpoints", found) != found:
        raise ConfigError("config.json and the image processor must give the same image_grid_pinpoints")
    limit = str(config.get("vision_aspect_ratio", "")).removeprefix("anyres").removeprefix("_max_") or "0"
    if not limit.isdigit():
        raise ConfigError(f"vision_aspect_ratio must be anyres or anyres_max_N, not {config['vision_aspect_ratio']!r}")
    return AnyResGeometry(settings.tile, settings.side, tuple((high, wide) for high, wide in found), int(limit))
