"""Qwen2-VL (Wang et al. 2024, arXiv 2409.12191): a Qwen2 decoder whose rotary positions have three axes."""

from __future__ import annotations

import torch

from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Model
from mmserve.models.config import check_axes, check_row_width, decoder_config, decoder_rename
from mmserve.models.layers import DecoderStack
from mmserve.models.loader import load_weights
from mmserve.models.ranks import Ranks
from mmserve.models.video import video_tower
from vision.encoder import Qwen2VLEncoder, rename_qwen2_vl
from vision.geometry import QwenGeometry
from vision.pixels import QwenPixels


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """The decoder and the picture encoder with their weights. Raises ``CheckpointError``."""
    config = decoder_config(checkpoint.config, context=checkpoint.max_model_len, ranks=ranks)
    decoder, encoder = DecoderStack(config), Qwen2VLEncoder(checkpoint.vision_config)
    check_row_width(encoder.row_width, config.row_width)
    check_axes(config, 3)
    pixels = QwenPixels(checkpoint.path, QwenGeometry.from_configs(checkpoint.vision_config, checkpoint.processor))
    quantization, rename = checkpoint.quantization, decoder_rename(config)
    load_weights(decoder, checkpoint.path, rename, dtype=dtype, device=device, quantization=quantization)
    load_weights(encoder, checkpoint.path, rename_qwen2_vl, dtype=dtype, device=device)
    return Model(decoder, encoder, pixels, video_tower(checkpoint, encoder))
