"""The served families: one line each, beside ``mmserve.checkpoint.FAMILIES``, which names their architectures, and
``mmserve.prompt.layouts``, which has their torch-free halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from mmserve.checkpoint import TEXT_FAMILIES, Checkpoint
from mmserve.errors import CheckpointError, ConfigError
from mmserve.models import cogvlm, general, llava, qwen2_5_vl, qwen2_audio, qwen2_vl, qwen3_vl, text
from mmserve.models.batch import Model
from mmserve.models.quantised import is_quantised

Builder = Callable[[Checkpoint, torch.dtype, torch.device], Model]

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


def build_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Model:
    """A checkpoint with its weights loaded, in ``dtype`` on ``device``.

    Raises ``CheckpointError`` where the family is not served, or the weights are not what ``config.json`` says, and
    ``ConfigError`` where they do not fit or cannot be quantised.
    """
    builder = BUILDERS.get(checkpoint.family)
    if builder is None:
        raise CheckpointError(f"{checkpoint.name} is of family {checkpoint.family}; served are {', '.join(BUILDERS)}")
    model = builder(checkpoint, dtype, device)
    if checkpoint.quantization is not None and not is_quantised(model.decoder):
        raise ConfigError(
            f"{checkpoint.name} is of family {checkpoint.family}, whose weights cannot be quantised while loading: "
            "leave --quantization out"
        )
    return model
