"""Pixels to embedding rows: what every family's encoder promises, and Qwen2-VL's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from vision.pixels import Pixels
from vision.projectors import PatchMerger

_PREFIXES = ("model.visual.", "visual.")
_MERGER = {"merger.ln_q.": "projector.norm.", "merger.mlp.0.": "projector.fc1.", "merger.mlp.2.": "projector.fc2."}


class PictureEncoder(Protocol):
    """A family's vision tower and projector."""

    @property
    def row_width(self) -> int:
        """The width of a row: the decoder's ``row_width``."""

    def encode(self, pictures: Sequence[Pixels]) -> list[torch.Tensor]:
        """The rows of several pictures in one pass, ``(rows, row_width)`` each, in the encoder's dtype and on its
        device. Each picture attends to itself alone, and each tensor owns its memory, so that dropping one frees it.
        """


class Qwen2VLEncoder(nn.Module):
    """Qwen2-VL's vision half: ``tower``, which ends before the merger, and ``projector``, which takes its place.

    Parameters are made on the meta device, without memory: a weight loader gives them theirs, their dtype and device.
    The tower's rotary frequencies are computed here; they are a float32 buffer and must stay that (rounded to bfloat16
    they mean other angles), so move the module with the loader, not with ``to(dtype)``.
    """

    def __init__(self, vision_config: Mapping[str, Any]) -> None:
        """``vision_config`` is that part of ``config.json``."""
        super().__init__()
        config = Qwen2VLVisionConfig(**{name: vision_config[name] for name in vision_config if name != "model_type"})
        with torch.device("meta"):
            tower = Qwen2VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa")
            self.projector = PatchMerger(config.embed_dim, config.hidden_size, config.spatial_merge_size)
        with torch.device("cpu"):
            tower.rotary_pos_emb = type(tower.rotary_pos_emb)(config)
        tower.merger = nn.Identity()
        self.tower = tower
        self.merge_size = int(config.spatial_merge_size)
        self.eval()

    @property
    def row_width(self) -> int:
        return int(self.projector.fc2.out_features)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Pixels]) -> list[torch.Tensor]:
        """As :meth:`PictureEncoder.encode` says. Raises ``ValueError`` where grids and patches do not agree."""
        if not pictures:
            return []
        grids, values = [each.grid for each in pictures], torch.cat([each.values for each in pictures])
        counts = [grid.t * grid.h * grid.w for grid in grids]
        if sum(counts) != len(values):
            raise ValueError(f"grids {grids} stand for {sum(counts)} patches, but {len(values)} were given")
        weight = self.projector.fc1.weight
        patches = values.to(weight.device, weight.dtype, non_blocking=True)
        features = self.tower(patches, grid_thw=torch.tensor(grids, device=weight.device)).last_hidden_state
        rows = self.projector(features)
        parts = torch.split(rows, [count // self.merge_size**2 for count in counts])
        return [part.clone() for part in parts] if len(parts) > 1 else list(parts)


def rename_qwen2_vl(checkpoint_name: str) -> str | None:
    """The :class:`Qwen2VLEncoder` parameter that a published weight belongs to; ``None`` if it is none of its own.

    Published Qwen2-VL weights are under ``visual.``, those saved by newer transformers under ``model.visual.``.
    """
    for prefix in _PREFIXES:
        if checkpoint_name.startswith(prefix):
            name = checkpoint_name.removeprefix(prefix)
            for published, ours in _MERGER.items():
                if name.startswith(published):
                    return ours + name.removeprefix(published)
            return "tower." + name
    return None
