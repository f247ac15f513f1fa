"""The shape of a language model, from ``config.json``; and where its published weights go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmserve.checkpoint import text_config
from mmserve.errors import CheckpointError
from mmserve.models.layers import DecoderConfig
from mmserve.models.ranks import ALONE, Ranks
from mmserve.models.rope import read_rope


@dataclass(frozen=True, slots=True)
class _Kind:
    """What ``config.json`` leaves unsaid of a language model; a ``qkv_bias`` of ``None`` is left to its own field."""

    qkv_bias: bool | None = None
    qk_norm: bool = False


KINDS: Mapping[str, _Kind] = {
    "llama": _Kind(),
    "mistral": _Kind(qkv_bias=False),
    "qwen2": _Kind(qkv_bias=True),
    "qwen2_vl": _Kind(qkv_bias=True),
    "qwen2_vl_text": _Kind(qkv_bias=True),
    "qwen2_5_vl": _Kind(qkv_bias=True),
    "qwen2_5_vl_text": _Kind(qkv_bias=True),
    "qwen3": _Kind(qk_norm=True),
    "qwen3_vl_text": _Kind(qk_norm=True),
}
"""The language models that ``DecoderStack`` computes, by the ``model_type`` of their fields."""

PICTURE_PARTS = ("visual.", "vision_tower.", "multi_modal_projector.", "image_newline")
SOUND_PARTS = ("audio_tower.", "multi_modal_projector.")
"""How the names begin of tensors that belong to encoders, ``model.`` apart."""


def decoder_config(config: Mapping[str, Any], *, context: int | None = None, ranks: Ranks = ALONE) -> DecoderConfig:
    """The decoder's shape from ``config.json``, its fields flat or under ``text_config``, shared by ``ranks``.

    ``context`` is the most tokens that a sequence will have: a sliding window that is no shorter has no effect.
    Raises ``CheckpointError`` where a field is missing or asks for something that this decoder does not do.
    """
    text = text_config(config)
    kind = KINDS.get(str(text.get("model_type")))
    if kind is None:
        raise CheckpointError(
            f"config.json describes a language model of type {text.get('model_type')!r}; served are {', '.join(KINDS)}"
        )
    _refuse_unsupported(text, context)
    hidden, heads = _positive(text, "hidden_size"), _positive(text, "num_attention_heads")
    kv_heads = heads if text.get("num_key_value_heads") is None else _positive(text, "num_key_value_heads")
    if (text.get("head_dim") is None and hidden % heads) or heads % kv_heads:
        raise CheckpointError(f"config.json splits hidden_size {hidden} into {heads} heads over {kv_heads} unevenly")
    head_dim = hidden // heads if text.get("head_dim") is None else _positive(text, "head_dim")
    bias = bool(text.get("attention_bias"))
    return DecoderConfig(
        vocab_size=_positive(text, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(text, "intermediate_size"),
        num_layers=_positive(text, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-5)),
        rope=read_rope(text, head_dim),
        qkv_bias=bias if kind.qkv_bias is None else kind.qkv_bias,
        o_bias=bias and kind.qkv_bias is None,
        mlp_bias=bool(text.get("mlp_bias")),
        qk_norm=kind.qk_norm,
        # Saved by older transformers under text_config; either place counts.
        tie_word_embeddings=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        ranks=ranks,
    )


def decoder_name(name: str, *, tied: bool, parts: tuple[str, ...] = PICTURE_PARTS) -> str | None:
    """Where a published tensor goes in the decoder; ``None`` for an encoder's (``parts``) and for what is not needed.

    Knows the names of text-only and Qwen-VL models as published (``model.layers…``, ``visual.…``), of LLaVA as
    published (``language_model.model.layers…``) and of newer transformers (``model.language_model.layers…``).
    """
    name = name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")
    if name.endswith("rotary_emb.inv_freq") or name.startswith(parts):
        return None
    return None if tied and name == "lm_head.weight" else name


def decoder_rename(config: DecoderConfig, parts: tuple[str, ...] = PICTURE_PARTS) -> Callable[[str], str | None]:
    """:func:`decoder_name` for a decoder of this shape."""
    return lambda name: decoder_name(name, tied=config.tie_word_embeddings, parts=parts)


def check_row_width(made: int, taken: int) -> None:
    """Raise ``CheckpointError`` where a picture encoder makes rows of another width than the decoder takes."""
    if made != taken:
        raise CheckpointError(f"config.json gives pictures rows of width {made}, but the decoder takes {taken}")


def check_axes(config: DecoderConfig, axes: int) -> None:
    """Raise ``CheckpointError`` where rotary positions are not said to have so many axes."""
    if len(config.rope.section) != axes:
        raise CheckpointError(
            f"config.json must give mrope_section with {axes} parts in its rope parameters: positions have as many axes"
        )


def _positive(text: Mapping[str, Any], field: str) -> int:
    value = text.get(field)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json must give {field} as a positive integer, got {value!r}")
    return value


def _refuse_unsupported(text: Mapping[str, Any], context: int | None) -> None:
    if text.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json asks for hidden_act {text['hidden_act']!r}; only 'silu' is served")
    window = text.get("sliding_window")
    if _has_window(text) and window is not None and (context is None or context > window):
        raise CheckpointError(
            f"config.json asks for sliding-window attention over {window} tokens, which is not served: "
            f"set limits: {{max_model_len: {window}}} in models.yaml, and the window has no effect"
        )


def _has_window(text: Mapping[str, Any]) -> bool:
    """Whether any layer attends through the window: as transformers' configurations decide."""
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        return "sliding_attention" in kinds
    if "use_sliding_window" in text or str(text.get("model_type")).startswith("qwen"):
        layers = _positive(text, "num_hidden_layers")
        return bool(text.get("use_sliding_window")) and text.get("max_window_layers", 0) < layers
    return text.get("sliding_window") is not None
