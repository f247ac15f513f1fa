"""Decoder layers that the families share: pre-norm, grouped-head attention over a paged cache, SwiGLU.

Parameters are made on the meta device, without memory; ``mmserve.models.loader`` gives them theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.activation import silu_and_mul
from kernels.attention import AttentionPlan, paged_attention
from kernels.embedding import scatter_rows
from kernels.kv import store_kv
from kernels.norm import add_rms_norm, rms_norm
from kernels.rope import apply_rope, mrope_axes, mrope_cos_sin
from mmserve.errors import CheckpointError
from mmserve.models.batch import ForwardBatch
from mmserve.models.experts import Experts
from mmserve.models.ranks import ALONE, Cut, HeadShare, Ranks, even, joined, nothing, share_heads
from mmserve.models.rope import RopeConfig


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a decoder.

    ``qk_norm`` puts a norm over each head of queries and keys before they are turned. Picture rows may carry more than
    an embedding: behind it come the features that the first ``deepstack`` layers add to the picture's tokens
    (Qwen3-VL, arXiv 2511.21631), ``hidden_size`` values a layer; then, with ``marks_experts``, one value that is not 0
    where the picture's expert takes the token (CogVLM, arXiv 2311.03079).

    All numbers are the whole model's, whoever the ``ranks`` are that share it.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    tie_word_embeddings: bool
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    deepstack: int = 0
    marks_experts: bool = False
    ranks: Ranks = ALONE

    @property
    def row_width(self) -> int:
        return self.hidden_size * (1 + self.deepstack) + self.marks_experts

    @property
    def share(self) -> HeadShare:
        """This rank's heads. Raises ``ConfigError`` where the ranks cannot share them."""
        return share_heads(self.num_heads, self.num_kv_heads, self.head_dim, self.ranks)


@dataclass(frozen=True, slots=True, eq=False)
class StepTables:
    """What every layer of one step shares: rotary tables, the new tokens' KV slots, and how they attend.

    ``experts`` says which tokens the picture's expert takes; ``None`` where it takes none.
    """

    cos: Tensor
    sin: Tensor
    slots: Tensor
    attention: AttentionPlan
    experts: Experts | None = None


class MergedLinear(nn.Linear):
    """Several projections of one input as one matrix.

    ``parts`` gives their published names in order, and what is taken of each one's outputs: all of so many, or a rank's
    cut. ``cuts`` are the latter by the names of tensors beside the module, as the loader wants them.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int | Cut], *, bias: bool) -> None:
        widths = {name: part if isinstance(part, int) else part.size for name, part in parts.items()}
        super().__init__(in_features, sum(widths.values()), bias=bias, device="meta")
        self.parts = widths
        cuts = {name: part for name, part in parts.items() if isinstance(part, Cut)}
        self.cuts = {f"{name}.{kind}": cut for name, cut in cuts.items() for kind in ("weight", "bias")}


class SplitLinear(nn.Linear):
    """A rank's part of a projection; ``cuts`` says what of its published ``weight`` and ``bias``."""

    def __init__(self, in_features: int, out_features: int, cuts: Mapping[str, Cut], *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias, device="meta")
        self.cuts = dict(cuts)


def split_outputs(in_features: int, outputs: Cut, *, bias: bool = False) -> SplitLinear:
    """A projection of which a rank makes some of the outputs."""
    return SplitLinear(in_features, outputs.size, {"weight": outputs, "bias": outputs}, bias=bias)


def split_inputs(inputs: Cut, out_features: int, ranks: Ranks, *, bias: bool = False) -> SplitLinear:
    """A projection of which a rank sees some of the inputs: the ranks' results must be added up.

    The bias is the first rank's alone, so that it is added once.
    """
    cuts = {"weight": inputs.along(1)}
    if bias and ranks.rank > 0:
        cuts["bias"] = nothing(out_features)
    return SplitLinear(inputs.size, out_features, cuts, bias=bias and ranks.rank == 0)


class SplitEmbedding(nn.Embedding):
    """A rank's rows of an embedding."""

    def __init__(self, rows: int, width: int, ranks: Ranks) -> None:
        self.cut = even(rows, ranks)
        super().__init__(self.cut.size, width, device="meta")
        self.cuts = {"weight": self.cut}
        self.ranks = ranks

    def forward(self, ids: Tensor) -> Tensor:
        """``(T,)`` to ``(T, width)``, whichever rank has each row."""
        if self.cut.everything:
            return super().forward(ids)
        ((start, stop),) = self.cut.ranges
        elsewhere = (ids < start) | (ids >= stop)
        rows = super().forward((ids - start).masked_fill(elsewhere, 0))
        return self.ranks.sum(rows.masked_fill(elsewhere[:, None], 0))


class RMSNorm(nn.Module):
    """RMSNorm, fused with the residual addition before it where there is one."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device="meta"))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of ``x + residual``, and that sum; ``(T, C)`` each."""
        if residual is None:
            return rms_norm(x, self.weight, self.eps), x
        return add_rms_norm(x, residual, self.weight, self.eps)


class Attention(nn.Module):
    """Rotary self-attention with grouped heads over the paged cache.

    Of several ranks each has some of the heads, and what ``o_proj`` makes of them must be added up.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        share = config.share
        self.heads, self.kv_heads, self.head_dim = share.heads, share.kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        parts = {"q_proj": share.queries, "k_proj": share.keys, "v_proj": share.keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.qkv_bias)
        self.o_proj = split_inputs(share.queries, config.hidden_size, config.ranks, bias=config.o_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, step: StepTables, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """The heads' results ``(T, H * D)``, before ``o_proj``; writes the new tokens' keys and values."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim)
        rotated = self.heads + self.kv_heads
        qk = heads[:, :rotated]
        if self.q_norm is not None and self.k_norm is not None:
            queries, _ = self.q_norm(qk[:, : self.heads], None)
            keys, _ = self.k_norm(qk[:, self.heads :], None)
            qk = torch.cat((queries, keys), 1)
        qk = apply_rope(qk, step.cos, step.sin)
        store_kv(qk[:, self.heads :], heads[:, rotated:], k_cache, v_cache, step.slots)
        out = paged_attention(qk[:, : self.heads], k_cache, v_cache, step.attention, self.scale)
        return out.reshape(x.shape[0], -1)


class MLP(nn.Module):
    """SwiGLU feed-forward. Of several ranks each has some of the channels, and the results must be added up."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        share = even(config.intermediate_size, config.ranks)
        self.gate_up_proj = MergedLinear(
            config.hidden_size, {"gate_proj": share, "up_proj": share}, bias=config.mlp_bias
        )
        self.down_proj = split_inputs(share, config.hidden_size, config.ranks, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(silu_and_mul(self.gate_up_proj(x)))
        return out


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
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
        """The layer's last addend and the stream before it; what follows adds them.

        With ``rows``, int64 ``(B,)``, only these tokens go on after attention: all that is needed of a last layer.
        """
        normed, residual = self.input_layernorm(x, residual)
        attended = self.self_attn(normed, step, k_cache, v_cache)
        if rows is not None:
            attended, residual = attended.index_select(0, rows), residual.index_select(0, rows)
        projected = self.ranks.sum(self.self_attn.o_proj(attended))
        normed, residual = self.post_attention_layernorm(projected, residual)
        return self.ranks.sum(self.mlp(normed)), residual


class DecoderStack(nn.Module):
    """Embedding, layers, norm and LM head: a ``mmserve.models.batch.Decoder``.

    ``make_layer`` makes a layer with the call signature of :class:`DecoderLayer`. ``num_kv_heads`` are those that this
    rank keeps.
    """

    def __init__(self, config: DecoderConfig, make_layer: Callable[[DecoderConfig], nn.Module] = DecoderLayer) -> None:
        super().__init__()
        if config.deepstack >= config.num_layers:  # what the last layer computes is not needed for every token
            raise CheckpointError(f"config.json gives {config.num_layers} layers, and {config.deepstack} take features")
        self.num_layers, self.num_kv_heads, self.head_dim = config.num_layers, config.share.kv_heads, config.head_dim
        self.hidden_size, self.vocab_size, self.row_width = config.hidden_size, config.vocab_size, config.row_width
        self.ranks = config.ranks
        self.embed_tokens = SplitEmbedding(config.vocab_size, config.hidden_size, config.ranks)
        self.layers = nn.ModuleList(make_layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = split_outputs(config.hidden_size, even(config.vocab_size, config.ranks))
        axes = mrope_axes(config.rope.section, interleaved=config.rope.interleaved)
        self.register_buffer("inv_freq", config.rope.inv_freq(), persistent=False)
        self.register_buffer("rope_axes", axes, persistent=False)
        self.inv_freq: Tensor
        self.rope_axes: Tensor
        self.rope_scale = config.rope.scale
        self.deepstack, self.marks_experts = config.deepstack, config.marks_experts

    def forward(self, batch: ForwardBatch, k_caches: list[Tensor], v_caches: list[Tensor]) -> Tensor:
        x = self.embed_tokens(batch.input_ids)
        rows, index = batch.media_rows, batch.media_index
        if rows is not None and index is not None:
            x = scatter_rows(x, rows[:, : self.hidden_size], index)
        cos, sin = mrope_cos_sin(batch.positions, self.inv_freq, self.rope_axes, x.dtype, self.rope_scale)
        step = StepTables(cos, sin, batch.slots, batch.attention, self._experts(batch))
        residual = None
        last = self.num_layers - 1
        for i, (layer, k_cache, v_cache) in enumerate(zip(self.layers, k_caches, v_caches, strict=True)):
            x, residual = layer(x, residual, step, k_cache, v_cache, batch.logits_index if i == last else None)
            if i < self.deepstack and rows is not None and index is not None:
                features = rows[:, self.hidden_size * (i + 1) : self.hidden_size * (i + 2)]
                x = x.index_add(0, index, features.to(x.dtype))
        x, _ = self.norm(x, residual)
        head = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return joined(F.linear(x, head), self.vocab_size, self.ranks).float()

    def _experts(self, batch: ForwardBatch) -> Experts | None:
        if not self.marks_experts or batch.media_rows is None or batch.media_index is None:
            return None
        mask = torch.zeros(len(batch.input_ids), dtype=torch.bool, device=batch.input_ids.device)
        return Experts(mask.index_copy_(0, batch.media_index, batch.media_rows[:, -1] != 0))
