"""The served families: one line each, beside ``mmserve.checkpoint.FAMILIES``, which names their architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from mmserve.checkpoint import Checkpoint
from mmserve.errors import CheckpointError
from mmserve.models import qwen2_vl
from mmserve.models.batch import Decoder
from vision.encoder import Qwen2VLEncoder

Builder = Callable[[Checkpoint, torch.dtype, torch.device], tuple[Decoder, Qwen2VLEncoder]]

BUILDERS: Mapping[str, Builder] = {
    "qwen2_vl": qwen2_vl.build,
}
"""A family's name -> what makes its decoder and picture encoder."""


def build_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> tuple[Decoder, Qwen2VLEncoder]:
    """The decoder and the picture encoder of a checkpoint, weights loaded, in ``dtype`` on ``device``.

    Raises ``CheckpointError`` where the family is not served, or the weights are not what ``config.json`` says.
    """
    builder = BUILDERS.get(checkpoint.family)
    if builder is None:
        raise CheckpointError(f"{checkpoint.name} is of family {checkpoint.family}; served are {', '.join(BUILDERS)}")
    return builder(checkpoint, dtype, device)
