"""A block's frames to the values that a Qwen-VL tower takes, by transformers' own video processor."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2VLVideoProcessor

from mmserve.errors import CheckpointError
from mmserve.types import Grid
from vision.frames import BlockReader, Frame
from vision.geometry import QwenGeometry
from vision.pixels import Pixels, check_grid
from vision.video import VideoBlock


class BlockPixels:
    """Patches of one block, as ``vision.pixels.QwenPixels`` makes them of a picture. Safe to call from several threads.

    The processor (torchvision backend) is read from a checkpoint folder, offline.
    """

    def __init__(self, checkpoint: Path, geometry: QwenGeometry) -> None:
        """Raises ``CheckpointError`` if the folder's processor files cannot be read."""
        self._reader = BlockReader()
        size = {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels}
        try:
            self._processor = Qwen2VLVideoProcessor.from_pretrained(checkpoint, local_files_only=True, size=size)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"the video processor in {checkpoint} cannot be read: {error}") from error
        self._options = {"do_sample_frames": False, "return_tensors": "pt", "size": size}
        if hasattr(self._processor, "cap_pixels_per_frame"):
            self._options["cap_pixels_per_frame"] = False  # a frame's size must not depend on how many there are

    def __call__(self, block: VideoBlock) -> Pixels:
        """Raises ``VideoError``, and ``MMServeError`` where the patches are not those that the prompt has room for."""
        return self.patches(self._reader.read(block), block.grid)

    def patches(self, frames: tuple[Frame, ...], grid: Grid) -> Pixels:
        video = torch.stack([torch.from_numpy(frame) for frame in frames]).permute(0, 3, 1, 2).contiguous()
        batch = self._processor(videos=[video], **self._options)
        (made,) = batch["video_grid_thw"].tolist()
        check_grid(Grid(*made), grid)
        return Pixels(batch["pixel_values_videos"], grid, (video.shape[3], video.shape[2]))
