"""The towers of models that take videos as blocks of frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Tower
from mmserve.prompt.video import video_geometry
from mmserve.types import MediaKind
from vision.encoder import PictureEncoder
from vision.video_pixels import BlockPixels


def video_tower(checkpoint: Checkpoint, encoder: PictureEncoder) -> Mapping[MediaKind, Tower[Any, Any]]:
    """The tower of pictures takes a block of frames as if it were one. Raises ``CheckpointError``."""
    geometry = video_geometry(checkpoint.vision_config, checkpoint.video_processor)
    return {"video": Tower(BlockPixels(checkpoint.path, geometry), encoder)}
