"""The layout of models that transformers itself computes; and which of them are known not to be served. Torch-free
until a layout is made: transformers' processors load torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmserve.checkpoint import Checkpoint, text_config
from mmserve.errors import ConfigError
from mmserve.prompt.layout import Layout, Rows, Segment
from mmserve.prompt.positions import mrope_positions, plain_positions
from mmserve.types import Picture

_BOTH_WAYS = "the tokens of a picture attend to each other in both directions, in a way that is not known here"
_WHOLE_PROMPT = "its whole prompt attends in both directions, so that no prefix of it can be computed or kept by itself"
_CROSS = "pictures enter its layers by cross-attention, and not as rows among its tokens"
_ENCODER_DECODER = "it is an encoder-decoder model, whose prompt is no prefix of its answer"

REFUSED: Mapping[str, str] = {
    "gemma3n": "its layers share keys and values, and take inputs of their own for each token",
    "gemma4": _BOTH_WAYS,
    "paligemma": _WHOLE_PROMPT,
    "git": _BOTH_WAYS,
    "mllama": _CROSS,
    "idefics": _CROSS,
    "evolla": _CROSS,
    "florence2": _ENCODER_DECODER,
    "pix2struct": _ENCODER_DECODER,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
}
"""What keeps a model from being served, by the ``model_type`` of its ``config.json``."""

BOTH_WAYS = frozenset({"gemma3"})
"""The models in which a picture's tokens see each other both ways, and else as all do."""

_ATTENTION = ("full_attention", "sliding_attention")


def general(checkpoint: Checkpoint) -> Layout:
    """What the checkpoint's own processor writes for a picture. Raises ``ConfigError`` and ``CheckpointError``."""
    check_served(checkpoint.config)
    from vision.general import PictureProcessor, ProcessorGeometry, architecture  # loads torch

    architecture(checkpoint.config)
    processor = PictureProcessor(checkpoint.path, checkpoint.image_token_id, patch_size(checkpoint.vision_config))
    geometry = ProcessorGeometry(processor.settings, processor)

    def expand(picture: Picture) -> Sequence[Segment]:
        shape = geometry.shape(picture.header.width, picture.header.height)
        segments: list[Segment] = [shape.before] if shape.before else []
        for id_, count in shape.runs:
            segments += [Rows(count)] if id_ == shape.row_id else [id_] * count
        return [*segments, shape.behind] if shape.behind else segments

    positions = plain_positions
    if has_axes(checkpoint.config):
        merge_size = checkpoint.vision_config.get("spatial_merge_size", 2)
        positions = partial(mrope_positions, merge_size=merge_size)
    return Layout(
        geometry,
        processor.row_id,
        mark=processor.mark,
        expand=expand,
        positions=positions,
        opens=True,
        whole_pictures=sees_both_ways(checkpoint.config),
    )


def check_served(config: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` where ``config.json`` tells that a model is not served."""
    kind, text = str(config.get("model_type")), text_config(config)
    reason = REFUSED.get(kind) or (_ENCODER_DECODER if config.get("is_encoder_decoder") else None) or _reason(text)
    if config.get("quantization_config"):
        reason = "its weights are quantised; take the checkpoint that is not"
    if reason is not None:
        raise ConfigError(f"models of type {kind} are not served: {reason}")


def sees_both_ways(config: Mapping[str, Any]) -> bool:
    """Whether a picture's tokens see each other both ways."""
    return str(config.get("model_type")) in BOTH_WAYS


def has_axes(config: Mapping[str, Any]) -> bool:
    """Whether rotary positions have several axes."""
    text = text_config(config)
    return any("mrope_section" in (text.get(name) or {}) for name in ("rope_parameters", "rope_scaling"))


def patch_size(vision_config: Mapping[str, Any]) -> int:
    """In pixels; transformers' most frequent default where ``config.json`` is silent."""
    size = vision_config.get("patch_size", 14)
    return int(size[0] if isinstance(size, list) else size)


def _reason(text: Mapping[str, Any]) -> str | None:
    others = sorted(set(text.get("layer_types") or ()).difference(_ATTENTION))
    if others:
        return f"its layers of kind {', '.join(others)} keep something else than keys and values of every token"
    if text.get("attn_logit_softcapping"):
        return "it caps the scores of attention (attn_logit_softcapping)"
    rope: Mapping[str, Any] = text.get("rope_parameters") or text.get("rope_scaling") or {}
    scaling = str(rope.get("rope_type") or rope.get("type"))
    if scaling in ("dynamic", "longrope"):
        return f"its rotary positions depend on how long a prompt is (rope scaling of type {scaling})"
    return None
