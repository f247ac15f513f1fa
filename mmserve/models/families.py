"""The served families: one line each, beside ``mmserve.checkpoint.FAMILIES``, which names their architectures, and
``mmserve.prompt.layouts``, which has their torch-free halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from mmserve.checkpoint import TEXT_FAMILIES, Checkpoint
from mmserve.errors import CheckpointError
from mmserve.models import general, llava, qwen2_vl, text
from mmserve.models.batch import Model

Builder = Callable[[Checkpoint, torch.dtype, torch.device], Model]

BUILDERS: Mapping[str, Builder] = {
    "qwen2_vl": qwen2_vl.build,
    "llava": llava.build,
    "llava_next": llava.build_anyres,
    "llava_onevision": llava.build_anyres,
    **dict.fromkeys(sorted(TEXT_FAMILIES), text.build),
    "general": general.build,
}
"""A family's name -> what loads a checkpoint of it."""


def build_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Model:
    """A checkpoint with its weights loaded, in ``dtype`` on ``device``.

    Raises ``CheckpointError`` where the family is not served, or the weights are not what ``config.json`` says.
    """
    builder = BUILDERS.get(checkpoint.family)
    if builder is None:
        raise CheckpointError(f"{checkpoint.name} is of family {checkpoint.family}; served are {', '.join(BUILDERS)}")
    return builder(checkpoint, dtype, device)
