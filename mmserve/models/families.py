"""The served families: one line each, beside ``mmserve.checkpoint.FAMILIES``, which names their architectures, and
``mmserve.prompt.layouts``, which has their torch-free halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch

from mmserve.checkpoint import GENERAL, TEXT_FAMILIES, Checkpoint
from mmserve.errors import CheckpointError, ConfigError
from mmserve.memory import head_counts
from mmserve.models import cogvlm, general, llava, qwen2_5_vl, qwen2_audio, qwen2_vl, qwen3_vl, text
from mmserve.models.batch import Model
from mmserve.models.quantised import is_quantised
from mmserve.models.ranks import ALONE, Ranks, check_heads
from mmserve.models.shared import SharedEncoder

Builder = Callable[[Checkpoint, torch.dtype, torch.device, Ranks], Model]

BUILDERS: Mapping[str, Builder] = {
    "qwen2_vl": qwen2_vl.build,
    "qwen2_5_vl": qwen2_5_vl.build,
    "qwen3_vl": qwen3_vl.build,
    "llava": llava.build,
    "llava_next": llava.build_anyres,
    "llava_onevision": llava.build_anyres,
    "cogvlm": cogvlm.build,
    "qwen2_audio": qwen2_audio.build,
    **dict.fromkeys(sorted(TEXT_FAMILIES), text.build),
    "general": general.build,
}
"""A family's name -> what loads a checkpoint of it."""


def build_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks = ALONE) -> Model:
    """A checkpoint with its weights loaded, in ``dtype`` on ``device``: of the decoder what is this rank's, and all of
    the picture encoder, which shares its work with the other ``ranks``.

    Raises ``CheckpointError`` where the family is not served, or the weights are not what ``config.json`` says, and
    ``ConfigError`` where they do not fit, or cannot be quantised or shared.
    """
    builder = BUILDERS.get(checkpoint.family)
    if builder is None:
        raise CheckpointError(f"{checkpoint.name} is of family {checkpoint.family}; served are {', '.join(BUILDERS)}")
    check_shared(checkpoint, ranks.size)
    model = builder(checkpoint, dtype, device, ranks)
    if checkpoint.quantization is not None and not is_quantised(model.decoder):
        raise ConfigError(
            f"{checkpoint.name} is of family {checkpoint.family}, whose weights cannot be quantised while loading: "
            "leave --quantization out"
        )
    return model if ranks.size == 1 else _shared(model, ranks, dtype, device)


def _shared(model: Model, ranks: Ranks, dtype: torch.dtype, device: torch.device) -> Model:
    """``model`` with encoders that share their work; towers that had one encoder in common still have."""
    encoders = {id(tower.encoder): tower.encoder for tower in model.towers.values()}
    width = model.decoder.row_width
    made = {key: SharedEncoder(encoder, width, ranks, dtype=dtype, device=device) for key, encoder in encoders.items()}
    others = {kind: dataclasses.replace(tower, encoder=made[id(tower.encoder)]) for kind, tower in model.others.items()}
    return dataclasses.replace(model, encoder=None if model.encoder is None else made[id(model.encoder)], others=others)


def check_shared(checkpoint: Checkpoint, size: int) -> None:
    """Raise ``ConfigError`` where so many processes cannot share this model. Reads no weights."""
    if size < 1:
        raise ConfigError(f"--tp must be 1 or more processes, not {size}", param="tp_size")
    if size == 1:
        return
    if checkpoint.family == GENERAL:
        raise ConfigError(
            f"{checkpoint.name} is computed by transformers (the general path), which cannot share it among processes: "
            "leave --tp out",
            param="tp_size",
        )
    check_heads(*head_counts(checkpoint.config), size)
