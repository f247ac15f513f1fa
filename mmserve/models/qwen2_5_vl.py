"""Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923): Qwen2-VL's decoder behind a tower with window attention."""

from __future__ import annotations

import torch

from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Model
from mmserve.models.config import check_axes, check_row_width, decoder_config, decoder_rename
from mmserve.models.layers import DecoderStack
from mmserve.models.loader import load_weights
from mmserve.models.ranks import Ranks
from mmserve.models.video import video_tower
from vision.geometry import QwenGeometry
from vision.pixels import QwenPixels
from vision.qwen2_5_vl import Qwen25VLEncoder, rename_qwen2_5_vl


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """The decoder and the picture encoder with their weights. Raises ``ConfigError`` and ``CheckpointError``."""
    config = decoder_config(checkpoint.config, context=checkpoint.max_model_len, ranks=ranks)
    check_axes(config, 3)
    decoder, encoder = DecoderStack(config), Qwen25VLEncoder(checkpoint.vision_config)
    check_row_width(encoder.row_width, config.row_width)
    pixels = QwenPixels(checkpoint.path, QwenGeometry.from_configs(checkpoint.vision_config, checkpoint.processor))
    quantization, rename = checkpoint.quantization, decoder_rename(config)
    load_weights(decoder, checkpoint.path, rename, dtype=dtype, device=device, quantization=quantization)
    load_weights(encoder, checkpoint.path, rename_qwen2_5_vl, dtype=dtype, device=device)
    return Model(decoder, encoder, pixels, video_tower(checkpoint, encoder))
