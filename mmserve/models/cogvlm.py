"""CogVLM (Wang et al. 2023, arXiv 2311.03079) and CogVLM2 (Hong et al. 2024, arXiv 2408.16500).

A Vicuna or Llama 3 whose layers have, beside their own weights, a second set for the tokens of pictures; both kinds
attend to each other. Parameters have the published names.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn

from kernels.attention import paged_attention
from kernels.kv import store_kv
from kernels.rope import apply_rope
from mmserve.checkpoint import Checkpoint
from mmserve.models.batch import Model
from mmserve.models.config import check_row_width, decoder_config, decoder_name
from mmserve.models.experts import Experts, routed
from mmserve.models.layers import (
    MLP,
    DecoderConfig,
    DecoderStack,
    RMSNorm,
    StepTables,
    split_inputs,
    split_outputs,
)
from mmserve.models.loader import load_weights
from mmserve.models.ranks import ALONE, Ranks
from vision.cog import cog_geometry, is_second
from vision.eva import CogEncoder, CogPixels

_VISION = "model.vision."


class ExpertAttention(nn.Module):
    """Rotary self-attention over the paged cache, with projections for pictures' tokens and for text's."""

    def __init__(self, config: DecoderConfig, *, picture_bias: bool) -> None:
        super().__init__()
        share, hidden = config.share, config.hidden_size
        self.heads, self.kv_heads, self.head_dim = share.heads, share.kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        self.vision_expert_query_key_value = split_outputs(hidden, share.merged, bias=picture_bias)
        self.language_expert_query_key_value = split_outputs(hidden, share.merged)
        self.vision_expert_dense = split_inputs(share.queries, hidden, config.ranks)
        self.language_expert_dense = split_inputs(share.queries, hidden, config.ranks)

    def forward(self, x: Tensor, step: StepTables, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """The heads' results ``(T, H * D)``, before :meth:`project`; writes the new tokens' keys and values."""
        merged = routed(x, step.experts, self.vision_expert_query_key_value, self.language_expert_query_key_value)
        heads, rotated = merged.view(len(x), -1, self.head_dim), self.heads + self.kv_heads
        qk = apply_rope(heads[:, :rotated], step.cos, step.sin)
        store_kv(qk[:, self.heads :], heads[:, rotated:], k_cache, v_cache, step.slots)
        out = paged_attention(qk[:, : self.heads], k_cache, v_cache, step.attention, self.scale)
        return out.reshape(len(x), -1)

    def project(self, attended: Tensor, experts: Experts | None) -> Tensor:
        """``(T, H * D)`` to ``(T, hidden_size)``."""
        return routed(attended, experts, self.vision_expert_dense, self.language_expert_dense)


class ExpertMLP(nn.Module):
    """A feed-forward for pictures' tokens, and one for text's."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.vision_mlp, self.language_mlp = MLP(config), MLP(config)

    def forward(self, x: Tensor, experts: Experts | None) -> Tensor:
        return routed(x, experts, self.vision_mlp, self.language_mlp)


class ExpertLayer(nn.Module):
    """``mmserve.models.layers.DecoderLayer`` with a visual expert beside the language model's weights."""

    def __init__(self, config: DecoderConfig, *, picture_bias: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ExpertAttention(config, picture_bias=picture_bias)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ExpertMLP(config)
        self.ranks = config.ranks

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        step: StepTables,
        k_cache: Tensor,
        v_cache: Tensor,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        normed, residual = self.input_layernorm(x, residual)
        attended, experts = self.self_attn(normed, step, k_cache, v_cache), step.experts
        if rows is not None:
            attended, residual = attended.index_select(0, rows), residual.index_select(0, rows)
            experts = None if experts is None else experts.select(rows)
        projected = self.ranks.sum(self.self_attn.project(attended, experts))
        normed, residual = self.post_attention_layernorm(projected, residual)
        return self.ranks.sum(self.mlp(normed, experts)), residual


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """The decoder and the picture encoder with their weights. Raises ``ConfigError`` and ``CheckpointError``."""
    decoder, encoder = modules(checkpoint, ranks)
    quantization = checkpoint.quantization
    load_weights(decoder, checkpoint.path, decoder_part, dtype=dtype, device=device, quantization=quantization)
    load_weights(encoder, checkpoint.path, encoder.rename, dtype=dtype, device=device)
    return Model(decoder, encoder, CogPixels(cog_geometry(checkpoint.config)))


def modules(checkpoint: Checkpoint, ranks: Ranks = ALONE) -> tuple[DecoderStack, CogEncoder]:
    """Decoder and picture encoder, their parameters without memory. Raises ``ConfigError`` and ``CheckpointError``."""
    given = checkpoint.config
    second = is_second(given)
    # What the published code has fixed, and its files therefore leave out.
    fixed = {
        "model_type": "llama",
        "num_key_value_heads": given.get("num_multi_query_heads"),
        "rope_theta": given.get("rope_theta") or (500_000.0 if second else 10_000.0),
    }
    config = decoder_config({**given, **fixed}, context=checkpoint.max_model_len, ranks=ranks)
    config = dataclasses.replace(config, marks_experts=True)
    decoder = DecoderStack(config, partial(ExpertLayer, picture_bias=second))
    encoder = CogEncoder(given, cog_geometry(given))
    check_row_width(encoder.row_width, config.row_width)
    return decoder, encoder


def decoder_part(name: str) -> str | None:
    """Where a published tensor goes in the decoder; ``None`` for the picture encoder's and for rotation tables."""
    return None if name.startswith(_VISION) else decoder_name(name, tied=False)
