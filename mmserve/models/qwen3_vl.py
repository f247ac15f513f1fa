"""Qwen3-VL (Bai et al. 2025, arXiv 2511.21631), dense: a Qwen3 decoder on three axes, dealt out in turns, whose first
layers add features of the tower's layers to the pictures' tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Model
from mmserve.models.config import check_axes, check_row_width, decoder_config, decoder_rename
from mmserve.models.layers import DecoderConfig, DecoderStack
from mmserve.models.loader import load_weights
from mmserve.models.ranks import ALONE, Ranks
from vision.geometry import QwenGeometry
from vision.pixels import QwenPixels
from vision.qwen3_vl import Qwen3VLEncoder, deepstack_layers, rename_qwen3_vl


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """The decoder and the picture encoder with their weights. Raises ``ConfigError`` and ``CheckpointError``."""
    config = qwen3_vl_config(checkpoint.config, context=checkpoint.max_model_len, ranks=ranks)
    decoder, encoder = DecoderStack(config), Qwen3VLEncoder(checkpoint.vision_config)
    check_row_width(encoder.row_width, config.row_width)
    pixels = QwenPixels(checkpoint.path, QwenGeometry.from_configs(checkpoint.vision_config, checkpoint.processor))
    quantization, rename = checkpoint.quantization, decoder_rename(config)
    load_weights(decoder, checkpoint.path, rename, dtype=dtype, device=device, quantization=quantization)
    load_weights(encoder, checkpoint.path, rename_qwen3_vl, dtype=dtype, device=device)
    return Model(decoder, encoder, pixels)


def qwen3_vl_config(config: Mapping[str, Any], *, context: int | None = None, ranks: Ranks = ALONE) -> DecoderConfig:
    """The decoder's shape from ``config.json``; as ``decoder_config`` otherwise. Raises ``ConfigError`` too."""
    shape = decoder_config(config, context=context, ranks=ranks)
    check_axes(shape, 3)
    return dataclasses.replace(
        shape,
        # As in transformers: interleaved whatever mrope_interleaved says, and tied only where the outer field says so.
        rope=dataclasses.replace(shape.rope, interleaved=True),
        tie_word_embeddings=bool(config.get("tie_word_embeddings")),
        deepstack=len(deepstack_layers(config["vision_config"])),
    )
