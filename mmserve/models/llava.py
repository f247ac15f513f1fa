"""LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744), LLaVA-NeXT and LLaVA-OneVision (Li et al. 2024, arXiv 2408.03326).

One design at three sizes: a CLIP or SigLIP tower, two linear layers, and any of the language models in
``mmserve.models.config``. LLaVA-1.5 sees one square; the others see tiles too.
"""

from __future__ import annotations

import torch

from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Model
from mmserve.models.config import decoder_config, decoder_rename
from mmserve.models.layers import DecoderStack
from mmserve.models.loader import load_weights
from mmserve.models.ranks import Ranks
from vision.llava import LlavaEncoder
from vision.pixels import TilePixels
from vision.tiles import AnyResGeometry, anyres_geometry, tile_settings


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """LLaVA-1.5, with its weights. Raises ``ConfigError`` and ``CheckpointError``."""
    return _build(checkpoint, None, dtype, device, ranks)


def build_anyres(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """LLaVA-NeXT or LLaVA-OneVision, with its weights. Raises ``ConfigError`` and ``CheckpointError``."""
    return _build(checkpoint, anyres_geometry(checkpoint.config, checkpoint.processor), dtype, device, ranks)


def _build(
    checkpoint: Checkpoint, geometry: AnyResGeometry | None, dtype: torch.dtype, device: torch.device, ranks: Ranks
) -> Model:
    config = decoder_config(checkpoint.config, context=checkpoint.max_model_len, ranks=ranks)
    settings = tile_settings(checkpoint.config, checkpoint.processor)
    decoder = DecoderStack(config)
    encoder = LlavaEncoder(checkpoint.config, config.hidden_size, drops_first=settings.drops_first, geometry=geometry)
    pixels = TilePixels(checkpoint.path, settings.tile // settings.side)
    quantization, rename = checkpoint.quantization, decoder_rename(config)
    load_weights(decoder, checkpoint.path, rename, dtype=dtype, device=device, quantization=quantization)
    load_weights(encoder, checkpoint.path, encoder.rename, dtype=dtype, device=device)
    return Model(decoder, encoder, pixels)
