"""How a caller's wish for detail changes the way a family cuts a picture. Torch-free.

A function of this kind stands in a family's ``Layout``. The geometry that it returns measures the picture and enters
its identity, so that pictures that were looked at differently never share rows; where a wish has no effect the geometry
is the same, and so is the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from mmserve.errors import InvalidField
from mmserve.types import Detail, Grid
from vision.geometry import Geometry, QwenGeometry

LOW_PIXELS = 512 * 512
"""The most pixels of a picture at low detail, where a family can choose: OpenAI's size."""

Adapt: TypeAlias = Callable[[Geometry, Detail], Geometry]
"""A family's geometry -> the one for a picture of which so much detail is wanted. Raises ``InvalidField``, whose
``param`` is ``detail``, ``min_pixels`` or ``max_pixels``."""


@dataclasses.dataclass(frozen=True, slots=True)
class WholeGeometry:
    """A picture as a whole, squeezed to one square of ``side`` squared patches, and a newline row behind it."""

    side: int

    def measure(self, width: int, height: int) -> tuple[Grid, int]:  # noqa: ARG002
        return Grid(1, self.side, self.side), self.side**2 + 1

    def resized(self, _: Grid) -> None:
        """The models that look so say nothing of places."""


def unchanged(geometry: Geometry, detail: Detail) -> Geometry:  # noqa: ARG001
    """For families that look at every picture in the same way."""
    return geometry


def lower(low: Geometry) -> Adapt:
    """For families that cut pictures in tiles: ``low`` leaves the tiles out; limits in pixels have no effect."""

    def adapt(geometry: Geometry, detail: Detail) -> Geometry:
        return low if detail.level == "low" else geometry

    return adapt


def within_limits(geometry: Geometry, detail: Detail) -> Geometry:
    """For families of dynamic resolution (:class:`QwenGeometry`): the limits asked for, within the model's own.

    ``low`` is a limit of ``LOW_PIXELS``; a limit that is given as a number counts before it, and before the model's own
    at the other end. Raises ``InvalidField`` for limits above the model's highest, or below a single row's pixels.
    """
    if not isinstance(geometry, QwenGeometry) or detail == Detail():
        return geometry
    most, block = geometry.max_pixels, (geometry.patch_size * geometry.merge_size) ** 2
    for name, value in (("min_pixels", detail.min_pixels), ("max_pixels", detail.max_pixels)):
        if value is not None and not block <= value <= most:
            raise InvalidField(
                f"{name} must be between {block:,} and {most:,} pixels for this model, got {value:,}", param=name
            )
    highest = detail.max_pixels or (min(most, LOW_PIXELS) if detail.level == "low" else most)
    lowest = detail.min_pixels or geometry.min_pixels
    if detail.min_pixels is not None and detail.max_pixels is None:
        highest = max(lowest, highest)
    lowest = min(lowest, highest)
    if (lowest, highest) == (geometry.min_pixels, geometry.max_pixels):
        return geometry
    return dataclasses.replace(geometry, min_pixels=lowest, max_pixels=highest, ceiling=most)
