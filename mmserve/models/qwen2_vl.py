"""Qwen2-VL (Wang et al. 2024, arXiv 2409.12191): a Qwen2 decoder whose rotary positions have three axes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from mmserve.checkpoint import Checkpoint, text_config
from mmserve.errors import CheckpointError
from mmserve.models.layers import DecoderConfig, DecoderStack
from mmserve.models.loader import load_weights
from vision.encoder import Qwen2VLEncoder, rename_qwen2_vl


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> tuple[DecoderStack, Qwen2VLEncoder]:
    """The decoder and the picture encoder with their weights. Raises ``CheckpointError``."""
    config = decoder_config(checkpoint.config)
    width = checkpoint.vision_config.get("hidden_size")
    if width != config.hidden_size:
        message = f"config.json gives pictures rows of width {width}, but the decoder takes {config.hidden_size}"
        raise CheckpointError(message)
    decoder, encoder = DecoderStack(config), Qwen2VLEncoder(checkpoint.vision_config)
    decoder_rename = partial(decoder_name, tied=config.tie_word_embeddings)
    load_weights(decoder, checkpoint.path, decoder_rename, dtype=dtype, device=device)
    load_weights(encoder, checkpoint.path, rename_qwen2_vl, dtype=dtype, device=device)
    return decoder, encoder


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder's shape from ``config.json``, its text fields flat (as published) or under ``text_config``.

    Raises ``CheckpointError`` where a field is missing or asks for something that this decoder does not do.
    """
    text = text_config(config)
    hidden, heads = _positive(text, "hidden_size"), _positive(text, "num_attention_heads")
    kv_heads = heads if text.get("num_key_value_heads") is None else _positive(text, "num_key_value_heads")
    if hidden % heads or heads % kv_heads:
        raise CheckpointError(f"config.json splits hidden_size {hidden} into {heads} heads over {kv_heads} unevenly")
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    section = tuple(rope.get("mrope_section", (16, 24, 24)))
    head_dim = hidden // heads
    if 2 * sum(section) != head_dim:
        raise CheckpointError(f"config.json's mrope_section {list(section)} does not fill half a head of {head_dim}")
    _refuse_unsupported(text, rope)
    return DecoderConfig(
        vocab_size=_positive(text, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(text, "intermediate_size"),
        num_layers=_positive(text, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-5)),
        rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))),
        mrope_section=section,
        qkv_bias=True,
        # Saved by older transformers under text_config; either place counts.
        tie_word_embeddings=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
    )


def decoder_name(name: str, *, tied: bool) -> str | None:
    """Where a published tensor goes in the decoder; ``None`` for the vision tower's and for what is not needed.

    Knows the published names (``model.layers…``, ``visual.…``) and those of newer transformers
    (``model.language_model.layers…``, ``model.visual.…``).
    """
    if name.startswith(("visual.", "model.visual.")) or name.endswith("rotary_emb.inv_freq"):
        return None
    if name == "lm_head.weight":
        return None if tied else name
    return name.removeprefix("model.").removeprefix("language_model.")


def _positive(text: Mapping[str, Any], field: str) -> int:
    value = text.get(field)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json must give {field} as a positive integer, got {value!r}")
    return value


def _refuse_unsupported(text: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise CheckpointError(f"config.json asks for rope scaling of type {kind!r}; Qwen2-VL is served with 'mrope'")
    if text.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json asks for hidden_act {text['hidden_act']!r}; only 'silu' is served")
    if text.get("use_sliding_window") and text.get("max_window_layers", 0) < _positive(text, "num_hidden_layers"):
        raise CheckpointError("config.json asks for sliding-window attention, which is not served for Qwen2-VL")
