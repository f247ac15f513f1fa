"""Qwen2-Audio (Chu et al. 2024, arXiv 2407.10759): whisper's encoder and one linear layer before a Qwen2 decoder."""

from __future__ import annotations

import torch

from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Model, Tower
from mmserve.models.config import SOUND_PARTS, decoder_config, decoder_rename
from mmserve.models.layers import DecoderStack
from mmserve.models.loader import load_weights
from mmserve.models.ranks import Ranks
from mmserve.sounds.decode import decode
from mmserve.sounds.encoder import SoundEncoder, rename
from mmserve.sounds.features import MelProcessor, Mels
from mmserve.sounds.geometry import SoundGeometry
from mmserve.sounds.sound import Sound


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """The decoder and the sound encoder with their weights. Raises ``CheckpointError``."""
    config = decoder_config(checkpoint.config, context=checkpoint.max_model_len, ranks=ranks)
    decoder, encoder = DecoderStack(config), SoundEncoder(checkpoint.audio_config, config.hidden_size)
    geometry = SoundGeometry.from_configs(checkpoint.audio_config, checkpoint.processor)
    mels = MelProcessor(checkpoint.processor, geometry)

    def prepare(sound: Sound) -> Mels:
        return mels(decode(sound.data, sound.header, geometry, sound.samples))

    quantization, weights_of = checkpoint.quantization, decoder_rename(config, SOUND_PARTS)
    load_weights(decoder, checkpoint.path, weights_of, dtype=dtype, device=device, quantization=quantization)
    load_weights(encoder, checkpoint.path, rename, dtype=dtype, device=device)
    return Model(decoder, others={"audio": Tower(prepare, encoder)})
