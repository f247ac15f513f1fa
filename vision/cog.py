"""How CogVLM (arXiv 2311.03079) and CogVLM2 (arXiv 2408.16500) cut pictures. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmserve.errors import ConfigError
from mmserve.types import Grid

BRACKETS = 2
"""Rows that are no part of the picture: a learned one before it (``boi``) and one behind it (``eoi``)."""


@dataclass(frozen=True, slots=True)
class CogGeometry:
    """Every picture is squeezed to one square of ``image`` pixels a side, whatever its shape, in patches of ``patch``
    pixels; blocks of ``block`` squared patches give a row each."""

    image: int
    patch: int
    block: int

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image // self.patch

    def measure(self, width: int, height: int) -> tuple[Grid, int]:  # noqa: ARG002 (all pictures become the same)
        return Grid(1, self.side, self.side), (self.side // self.block) ** 2 + BRACKETS

    def resized(self, _: Grid) -> tuple[int, int]:
        return self.image, self.image


def is_second(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` describes a CogVLM2: the first has as many key heads as heads, and says nothing of it."""
    return config.get("num_multi_query_heads") is not None


def cog_geometry(config: Mapping[str, Any]) -> CogGeometry:
    """From ``config.json``; no file of the published checkpoints says more. Raises ``ConfigError``."""
    vision = config.get("vision_config") or {}
    image, patch, positions = (vision.get(name) for name in ("image_size", "patch_size", "num_positions"))
    if not isinstance(image, int) or not isinstance(patch, int) or min(image, patch) < 1:
        raise ConfigError(f"config.json gives pictures of {image!r} pixels a side in patches of {patch!r}")
    geometry = CogGeometry(image, patch, 2 if is_second(config) else 1)
    if not geometry.side or geometry.side % geometry.block:
        raise ConfigError(
            f"config.json gives {geometry.side} patches a side, which are no blocks of {geometry.block} by "
            f"{geometry.block}"
        )
    if positions != geometry.side**2 + 1:
        raise ConfigError(
            f"config.json gives the vision tower {positions!r} positions, but a picture of {image} pixels a side has "
            f"{geometry.side**2} patches and a class token"
        )
    return geometry
