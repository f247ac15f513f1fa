"""The families' layouts, by name: one entry each, beside ``mmserve.models.families``, which has their torch halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from mmserve.checkpoint import TEXT_FAMILIES, Checkpoint
from mmserve.errors import ConfigError
from mmserve.prompt.cogvlm import cogvlm
from mmserve.prompt.general import general
from mmserve.prompt.layout import Layout, Medium
from mmserve.prompt.positions import mrope_positions
from mmserve.prompt.video import VideoReader, qwen_interval, video_geometry
from mmserve.sounds.decode import decoder_id
from mmserve.sounds.geometry import SoundGeometry
from mmserve.sounds.identity import sound_fingerprint
from mmserve.sounds.sound import SoundReader
from vision.detail import WholeGeometry, lower, within_limits
from vision.frames import BLOCK
from vision.geometry import QwenGeometry
from vision.tiles import SquareGeometry, anyres_geometry, square_geometry


def qwen_vl(checkpoint: Checkpoint) -> Layout:
    """Dynamic resolution, one run of rows between the template's own start and end tokens, positions on three axes."""
    geometry = QwenGeometry.from_configs(checkpoint.vision_config, checkpoint.processor)
    positions = partial(mrope_positions, merge_size=geometry.merge_size)
    return Layout(geometry, checkpoint.require_image_token(), positions=positions, adapt=within_limits)


def qwen_vl_video(checkpoint: Checkpoint) -> Layout:
    """The same with videos: their blocks' rows in one run."""
    vision, token = checkpoint.vision_config, checkpoint.config.get("video_token_id")
    if vision.get("temporal_patch_size", BLOCK) != BLOCK or not isinstance(token, int):
        return qwen_vl(checkpoint)
    read = VideoReader(checkpoint, video_geometry(vision, checkpoint.video_processor), qwen_interval(checkpoint))
    return dataclasses.replace(qwen_vl(checkpoint), others={"video": Medium(token, read)})


def llava(checkpoint: Checkpoint) -> Layout:
    """One square a picture."""
    geometry = square_geometry(checkpoint.config, checkpoint.processor)
    return Layout(geometry, checkpoint.require_image_token(), opens=True)


def llava_next(checkpoint: Checkpoint) -> Layout:
    """Tiles, whose lines end with rows that are learned newlines."""
    geometry = anyres_geometry(checkpoint.config, checkpoint.processor)
    adapt = lower(WholeGeometry(geometry.side))
    return Layout(geometry, checkpoint.require_image_token(), opens=True, adapt=adapt)


def llava_onevision(checkpoint: Checkpoint) -> Layout:
    """As LLaVA-NeXT's for a picture alone; one square and a newline for pictures among others."""
    geometry = anyres_geometry(checkpoint.config, checkpoint.processor)
    among_others = SquareGeometry(geometry.side, extra=1, padded=True)
    token, adapt = checkpoint.require_image_token(), lower(among_others)
    return Layout(geometry, token, among_others=among_others, opens=True, adapt=adapt)


def qwen2_audio(checkpoint: Checkpoint) -> Layout:
    """One run of rows a sound, between the template's own start and end tokens."""
    geometry = SoundGeometry.from_configs(checkpoint.audio_config, checkpoint.processor)

    def fingerprint() -> bytes:
        return sound_fingerprint(
            weights=checkpoint.fingerprint,
            audio_config=checkpoint.audio_config,
            processor=checkpoint.processor,
            geometry=geometry,
            decoder=decoder_id(),
        )

    return Layout(others={"audio": Medium(checkpoint.require_audio_token(), SoundReader(geometry, fingerprint))})


def text_only(_: Checkpoint) -> Layout:
    """No pictures."""
    return Layout()


LAYOUTS: Mapping[str, Callable[[Checkpoint], Layout]] = {
    "qwen2_vl": qwen_vl_video,
    "qwen2_5_vl": qwen_vl_video,
    "qwen3_vl": qwen_vl,
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "cogvlm": cogvlm,
    "qwen2_audio": qwen2_audio,
    **dict.fromkeys(sorted(TEXT_FAMILIES), text_only),
    "general": general,
}


def layout_for(checkpoint: Checkpoint) -> Layout:
    """The layout of a checkpoint's family. Raises ``ConfigError`` and ``CheckpointError``."""
    layout = LAYOUTS.get(checkpoint.family)
    if layout is None:
        raise ConfigError(f"no prompt layout is known for the model family {checkpoint.family!r}")
    return layout(checkpoint).limited(checkpoint.media)
