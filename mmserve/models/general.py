"""The general path: vision-language models that transformers computes, over our paged cache.

transformers' own modules run; only their attention is ours, plugged in under a name of its own through transformers'
attention interface. It finds the step's KV memory in the keyword arguments that a model hands down to its layers. What
of a model cannot be seen in its configuration is found out by a trial before serving starts (``trial``).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from kernels.attention import AttentionPlan, paged_attention
from kernels.embedding import scatter_rows
from kernels.kv import store_kv
from kernels.window import reshaped
from mmserve.checkpoint import Checkpoint
from mmserve.errors import CheckpointError, ConfigError, MMServeError
from mmserve.models.batch import ForwardBatch, Model
from mmserve.models.loader import check_room, weight_files
from mmserve.models.ranks import Ranks
from mmserve.models.trial import Trial
from mmserve.prompt.general import check_served, has_axes, patch_size, sees_both_ways
from vision.general import PictureProcessor, ProcessorPixels, architecture
from vision.pixels import Pixels

ATTENTION = "mmserve_paged"
"""The name of :func:`paged` in transformers' attention interface."""

SMALL = 16
"""In patches: a picture that may have a single row."""


@dataclass(frozen=True, slots=True, eq=False)
class PagedStep:
    """What a layer's attention needs of one step. ``windows`` are the layers' sliding windows by config.json, ``None``
    for those that see everything, and ``plans`` the step's attention through each."""

    slots: Tensor
    k_caches: list[Tensor]
    v_caches: list[Tensor]
    windows: Sequence[int | None]
    plans: Mapping[int | None, AttentionPlan]


def paged(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    paged_step: PagedStep | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: ``query`` ``(1, H, T, D)``, ``key`` and ``value`` ``(1, Hkv, T, D)`` to
    ``(1, T, H, D)``. Stores the new keys and values. Raises ``ConfigError`` where more is asked for than causal
    attention."""
    if paged_step is None:
        raise ConfigError(f"{type(module).__name__} is not told where keys and values are kept")
    asked = [name for name in ("softcap", "s_aux", "position_bias", "cu_seq_lens_q") if others.get(name) is not None]
    if attention_mask is not None or asked or not getattr(module, "is_causal", True):
        raise ConfigError(f"{type(module).__name__} attends in another way than causally ({', '.join(asked)})")
    layer: int = module.layer_idx  # type: ignore[assignment]
    window = paged_step.windows[layer]
    if others.get("sliding_window") != window:
        raise ConfigError(
            f"layer {layer} attends through a window of {others.get('sliding_window')}, where config.json says {window}"
        )
    k_cache, v_cache = paged_step.k_caches[layer], paged_step.v_caches[layer]
    if key.shape[1::2] != k_cache.shape[1:] or value.shape[1::2] != v_cache.shape[1:]:
        raise ConfigError(
            f"layer {layer} makes keys of shape {tuple(key.shape[1::2])} and values of {tuple(value.shape[1::2])}, "
            f"where config.json promises {tuple(k_cache.shape[1:])}"
        )
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    store_kv(k, v, k_cache, v_cache, paged_step.slots)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return paged_attention(q.contiguous(), k_cache, v_cache, paged_step.plans[window], scale)[None], None


class GeneralDecoder:
    """A whole transformers model as a ``mmserve.models.batch.Decoder``."""

    def __init__(self, model: Any, *, axes: int, both_ways: bool = False) -> None:
        """``model`` has its weights; ``axes`` is how many its positions have, and ``both_ways`` says that a picture's
        tokens see each other."""
        text = model.config.get_text_config()
        self.model = model
        self.hidden_size = self.row_width = int(text.hidden_size)
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.num_layers = int(text.num_hidden_layers)
        self.num_kv_heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        self.head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        self._axes, self._both_ways = axes, both_ways
        self._windows = _windows(text)

    def forward(self, batch: ForwardBatch, k_caches: list[Tensor], v_caches: list[Tensor]) -> Tensor:
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        if batch.media_rows is not None and batch.media_index is not None:
            embeddings = scatter_rows(embeddings.clone(), batch.media_rows, batch.media_index)
        positions = batch.positions if self._axes == 1 else batch.positions[:, None]
        together = None
        if self._both_ways and batch.media_index is not None:
            together = torch.zeros_like(batch.input_ids, dtype=torch.bool).index_fill_(0, batch.media_index, True)
        plans = {window: reshaped(batch.attention, window, together, embeddings.dtype) for window in set(self._windows)}
        output = self.model(
            inputs_embeds=embeddings[None],
            position_ids=positions,
            use_cache=False,
            logits_to_keep=batch.logits_index,
            paged_step=PagedStep(batch.slots, k_caches, v_caches, self._windows, plans),
        )
        logits: Tensor = output.logits[0].float()
        return logits


class GeneralEncoder:
    """A ``vision.encoder.PictureEncoder``: a transformers model's own tower and projector, picture by picture."""

    def __init__(self, model: Any, row_width: int) -> None:
        """Raises ``ConfigError`` where the model has no such thing."""
        self.row_width = row_width
        inner = getattr(model, "model", model)
        features = getattr(inner, "get_image_features", None) or getattr(model, "get_image_features", None)
        if features is None:
            raise ConfigError(f"{type(model).__name__} is not served: it does not make rows of pictures by themselves")
        self._features = features
        self._takes = frozenset(inspect.signature(features).parameters) - {"kwargs"}
        self._device, self._dtype = model.device, model.dtype

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        return [self._encode(picture) for picture in pictures]

    def _encode(self, picture: Pixels) -> Tensor:
        # Some models drop the axis of a single row, and fail: a picture so small is encoded beside itself.
        times = 2 if math.prod(picture.grid) <= SMALL else 1
        taken = {name: value for name, value in picture.extras.items() if name in self._takes}
        extras = {name: torch.cat([value] * times).to(self._device) for name, value in taken.items()}
        values = torch.cat([picture.values] * times).to(self._device, self._dtype)
        made = self._features(pixel_values=values, return_dict=True, **extras)
        rows = getattr(made, "pooler_output", made)
        parts = rows if isinstance(rows, (list, tuple)) else [rows]
        flat = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        return flat[: len(flat) // times].clone()


def build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Model:
    """The model with its weights, tried out. Raises ``ConfigError`` and ``CheckpointError``."""
    assert ranks.size == 1, "mmserve.models.families refuses to share a model of transformers"
    check_served(checkpoint.config)
    processor = PictureProcessor(checkpoint.path, checkpoint.image_token_id, patch_size(checkpoint.vision_config))
    model = _load(checkpoint, dtype, device)
    check_served(model.config.to_dict())  # with what config.json leaves unsaid
    axes = 3 if has_axes(checkpoint.config) else 1
    both_ways = sees_both_ways(checkpoint.config)
    decoder = GeneralDecoder(model, axes=axes, both_ways=both_ways)
    encoder = GeneralEncoder(model, decoder.row_width)
    own = _plug_in(model)
    pixels = ProcessorPixels(processor)
    merge_size = int(checkpoint.vision_config.get("spatial_merge_size", 2)) if axes == 3 else None
    trial = Trial(processor, merge_size=merge_size, cuts=not both_ways, dtype=dtype, device=device)
    kind = type(model).__name__
    try:
        expected = trial.expected(model, own, ATTENTION)
        made = trial.made(decoder, encoder, pixels)
    except Exception as error:  # transformers' modules take other arguments, or ours raises ConfigError
        said = error.message if isinstance(error, MMServeError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{kind} is not served: {' '.join(said.split())[:300]}") from error
    difference = trial.difference(expected, made)
    if difference is not None:
        raise ConfigError(
            f"{kind} is not served: its answer to a small picture came out {difference:.2g} off what transformers "
            "computes, so its layers do something besides causal attention over rows and tokens"
        )
    return Model(decoder, encoder, pixels)


def _load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' model with every weight, by its own loader, which knows each model's published names."""
    files = weight_files(checkpoint.path)
    kind = architecture(checkpoint.config)
    check_room(sum(file.stat().st_size for file in files) * dtype.itemsize // _stored_size(checkpoint), device)
    try:
        model, told = kind.from_pretrained(
            checkpoint.path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise CheckpointError(f"transformers cannot load the weights in {checkpoint.path}: {line}") from error
    for name, fault in (("missing_keys", "lack"), ("unexpected_keys", "hold more than"), ("mismatched_keys", "misfit")):
        found = sorted(map(str, told.get(name) or ()))
        if found:
            others = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise CheckpointError(
                f"the weights in {checkpoint.path} {fault} what config.json asks for: {found[0]}{others}"
            )
    return model.to(device).eval()


def _stored_size(checkpoint: Checkpoint) -> int:
    """Bytes of a stored value."""
    stored = getattr(torch, checkpoint.dtype, torch.float32)
    return stored.itemsize if isinstance(stored, torch.dtype) else 4


def _windows(text: Any) -> tuple[int | None, ...]:
    """Each layer's sliding window, ``None`` for those that see everything; ``text`` is the language model's part."""
    window: int | None = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _plug_in(model: Any) -> Mapping[str, str]:
    """Give the language model our attention, and return what it had, by the name of its part of the configuration."""
    text = model.config.get_text_config()
    part = next((name for name in model.config.sub_configs if getattr(model.config, name, None) is text), None)
    if part is None:
        raise ConfigError(f"{type(model).__name__} is not served: its configuration has no part for a language model")
    own = {part: str(text._attn_implementation)}
    transformers.AttentionInterface.register(ATTENTION, paged)
    model.set_attn_implementation({part: ATTENTION})
    if text._attn_implementation != ATTENTION:
        raise ConfigError(f"{type(model).__name__} is not served: its attention cannot be replaced")
    return own
