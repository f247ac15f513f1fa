"""Decoded picture to the values that a vision tower takes, by transformers' own image processors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, Qwen2VLImageProcessor

from mmserve.errors import CheckpointError, MMServeError
from mmserve.types import Detail, Grid, Picture
from vision.decode import decode
from vision.detail import within_limits
from vision.geometry import QwenGeometry


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """A picture ready for its family's encoder; whoever holds it owns the tensors, which lie on the host.

    ``values`` is float32, its first axis patches or tiles; ``size`` is the picture's width and height before it was
    resized. ``extras`` are whatever else the encoder takes, by its name.
    """

    values: Tensor
    grid: Grid
    size: tuple[int, int] = (0, 0)
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class PixelProcessor(Protocol):
    """Resizes, cuts and normalises pictures for one family. Safe to call from several threads at once."""

    def __call__(self, image: Image.Image, grid: Grid) -> Pixels:
        """The pixels of an RGB image, for which the prompt has room for ``grid``'s rows.

        Raises ``MMServeError`` if they come out as another grid.
        """


@runtime_checkable
class AdaptablePixels(Protocol):
    """A processor that works differently where more or less detail is wanted."""

    def adapted(self, detail: Detail) -> PixelProcessor: ...


def processor_for(processor: PixelProcessor, detail: Detail) -> PixelProcessor:
    """The processor for a picture of which so much detail is wanted; itself where the grid says all."""
    return processor.adapted(detail) if isinstance(processor, AdaptablePixels) else processor


def picture_pixels(processor: PixelProcessor) -> Callable[[Picture], Pixels]:
    """What decodes a picture and cuts it in patches; raises ``PictureError``."""

    def prepare(picture: Picture) -> Pixels:
        return processor_for(processor, picture.detail)(decode(picture.data, picture.header), picture.grid)

    return prepare


def check_grid(made: Grid, promised: Grid) -> None:
    """Raise ``MMServeError`` where pixels do not fit the placeholders that the prompt already holds."""
    if made != promised:
        raise MMServeError(f"the image processor made a grid of {tuple(made)} where {tuple(promised)} was promised")


class QwenPixels:
    """Patches for the Qwen-VL families.

    ``values`` has shape (patches, channels * temporal patch * patch * patch), ordered by blocks of ``merge_size``
    squared patches. The processor (torchvision backend) is read from a checkpoint folder, offline.
    """

    def __init__(self, checkpoint: Path, geometry: QwenGeometry) -> None:
        """Raises ``CheckpointError`` if the folder's processor files cannot be read."""
        self._geometry = geometry
        try:
            self._processor = Qwen2VLImageProcessor.from_pretrained(
                checkpoint, local_files_only=True, size=_limits(geometry)
            )
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"the image processor in {checkpoint} cannot be read: {error}") from error

    def __call__(self, image: Image.Image, grid: Grid) -> Pixels:
        batch = self._processor(images=[image], return_tensors="pt", do_convert_rgb=False, size=_limits(self._geometry))
        (sizes,) = batch["image_grid_thw"].tolist()
        check_grid(Grid(*sizes), grid)
        return Pixels(batch["pixel_values"], grid, image.size)

    def adapted(self, detail: Detail) -> Self:
        """With the limits that ``vision.detail.within_limits`` has for it. The processor is shared."""
        other = copy.copy(self)
        geometry = within_limits(self._geometry, detail)
        assert isinstance(geometry, QwenGeometry)
        other._geometry = geometry
        return other


def _limits(geometry: QwenGeometry) -> dict[str, int]:
    return {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}


class TilePixels:
    """Square tiles for the LLaVA families: ``values`` is (tiles, channels, side, side), the whole picture's first."""

    def __init__(self, checkpoint: Path, patch_size: int) -> None:
        """Raises ``CheckpointError`` if the folder's processor files cannot be read."""
        self._patch_size = patch_size
        try:
            self._processor = AutoImageProcessor.from_pretrained(checkpoint, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"the image processor in {checkpoint} cannot be read: {error}") from error

    def __call__(self, image: Image.Image, grid: Grid) -> Pixels:
        # LLaVA-OneVision's processor cuts no tiles of a picture that has another beside it: a single pixel will do.
        alone = grid.t > 1 or "batch_num_images" not in self._processor.model_input_names
        images = [image] if alone else [[image, Image.new("RGB", (1, 1))]]
        values: Tensor = self._processor(images=images, return_tensors="pt")["pixel_values"]
        values = values[0] if values.ndim == 5 else values[:1]
        if grid.t == 1:  # at low detail, without the tiles
            values = values[:1]
        tiles, _, height, width = values.shape
        check_grid(Grid(tiles, height // self._patch_size, width // self._patch_size), grid)
        return Pixels(values, grid, image.size)
