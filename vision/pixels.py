"""Decoded picture to the patches that a vision tower takes, by transformers' own image processor."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from mmserve.errors import CheckpointError, MMServeError
from mmserve.types import Grid
from vision.geometry import QwenGeometry


class QwenPixels:
    """Resize, normalise and cut pictures for the Qwen-VL families. Safe to call from several threads at once.

    Owns nothing of the pictures; the processor (torchvision backend) is read from a checkpoint folder, offline.
    """

    def __init__(self, checkpoint: Path, geometry: QwenGeometry) -> None:
        """Raises ``CheckpointError`` if the folder's processor files cannot be read."""
        self._geometry = geometry
        limits = {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}
        try:
            self._processor = Qwen2VLImageProcessor.from_pretrained(checkpoint, local_files_only=True, size=limits)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"the image processor in {checkpoint} cannot be read: {error}") from error

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, Grid]:
        """``(pixel_values, grid)`` of an RGB image.

        ``pixel_values`` is float32 on the CPU, of shape (patches, channels * temporal patch * patch * patch), ordered
        by blocks of ``merge_size`` squared patches; the caller owns it.
        """
        batch = self._processor(images=[image], return_tensors="pt", do_convert_rgb=False)
        (sizes,) = batch["image_grid_thw"].tolist()
        grid = Grid(*sizes)
        promised = self._geometry.grid(image.width, image.height)
        if grid != promised:  # the prompt already holds promised's number of placeholders
            raise MMServeError(f"the image processor made a grid of {tuple(grid)} where {tuple(promised)} was promised")
        pixels: torch.Tensor = batch["pixel_values"]
        return pixels, grid
