"""Models that read text only: Llama, Mistral, Qwen2 and Qwen3 are one decoder under different settings."""

from __future__ import annotations

import torch

from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Model
from mmserve.models.config import decoder_config, decoder_rename
from mmserve.models.layers import DecoderStack
from mmserve.models.loader import load_weights
from mmserve.models.ranks import Ranks


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """The decoder with its weights. Raises ``CheckpointError``."""
    config = decoder_config(checkpoint.config, context=checkpoint.max_model_len, ranks=ranks)
    decoder = DecoderStack(config)
    quantization, rename = checkpoint.quantization, decoder_rename(config)
    load_weights(decoder, checkpoint.path, rename, dtype=dtype, device=device, quantization=quantization)
    return Model(decoder)
