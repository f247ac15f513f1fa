"""A trial before serving starts: whether a model that transformers computes gives the same logits over our cache.

A configuration does not say everything. So the model answers one prompt with a picture and one without, as
transformers runs it, and then over a paged cache: the first in two chunks, cut inside the picture, and the other
batched with the second chunk.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kernels.attention import plan_attention
from mmserve.models.batch import Decoder, ForwardBatch
from mmserve.prompt.positions import mrope_positions, plain_positions
from mmserve.types import ContentHash, ImageHeader, MediaRange, Picture, Prompt
from vision.encoder import PictureEncoder
from vision.general import PictureProcessor
from vision.pixels import PixelProcessor

SIZE = (76, 52)
"""Of the picture, in pixels."""

_BEFORE, _BEHIND, _OTHER = 7, 9, 12
"""How many tokens of text stand before the picture, behind it, and in the other prompt."""

_ROUNDING = {torch.float32: 1e-3}
"""How far logits may lie apart, as a part of their spread; for the other dtypes 0.1."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """New tokens of one prompt, ``ids`` ``(T,)`` and ``positions`` ``(axes, T)``, which use the last ``T`` of the
    slots ``context``; ``places``, of these tokens, take ``rows``."""

    ids: Tensor
    positions: Tensor
    context: Tensor
    places: Tensor
    rows: Tensor


class Trial:
    """Two prompts, of which transformers and we compute the logits that follow them."""

    def __init__(
        self,
        processor: PictureProcessor,
        *,
        merge_size: int | None,
        cuts: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """``merge_size`` is set where positions have three axes; ``cuts`` says that chunks may cut a picture."""
        noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        self._image = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
        self._grid, self._row_id = processor.shape(*SIZE).grid, processor.row_id
        self._merge_size, self._dtype, self._device = merge_size, dtype, device
        text = 40 + torch.arange(_BEFORE + _BEHIND + _OTHER)
        text += len(text) * int((text == self._row_id).any())
        made = processor.inputs(self._image)
        ids = made.pop("input_ids")[0]
        before, behind, self._other = torch.split(text, [_BEFORE, _BEHIND, _OTHER])
        self._ids = torch.cat((before, ids, behind))
        self._cuts = cuts
        self._types = {
            name: F.pad(made.pop(name), (_BEFORE, _BEHIND))
            for name in ("mm_token_type_ids", "token_type_ids")
            if name in made
        }
        made.pop("attention_mask", None)
        self._inputs = {name: each for name, each in made.items() if isinstance(each, Tensor)}

    @torch.inference_mode()
    def expected(self, model: Any, own: Mapping[str, str], ours: str) -> Tensor:
        """The logits ``(2, V)`` as transformers computes them with the model's ``own`` attention (its name, by part of
        the configuration). The model is left with ``ours``."""
        model.set_attn_implementation(dict(own))
        taken = inspect.signature(model.forward).parameters
        types = {name: each for name, each in self._types.items() if name != "token_type_ids" or name in taken}
        inputs = {
            name: each.to(self._device, self._dtype if each.is_floating_point() else None)
            for name, each in (self._inputs | types).items()
        }
        ids, other = self._ids[None].to(self._device), self._other[None].to(self._device)
        logits = [
            model(input_ids=ids, use_cache=False, **inputs).logits[0, -1],
            model(input_ids=other, use_cache=False).logits[0, -1],
        ]
        model.set_attn_implementation(dict.fromkeys(own, ours))
        return torch.stack(logits).float()

    @torch.inference_mode()
    def made(self, decoder: Decoder, encoder: PictureEncoder, pixels: PixelProcessor) -> Tensor:
        """The same logits over a paged cache. Raises ``ValueError`` where rows and their places do not agree."""
        (rows,) = encoder.encode([pixels(self._image, self._grid)])
        places = (self._ids == self._row_id).nonzero().flatten()
        if rows.shape != (len(places), decoder.row_width):
            raise ValueError(f"a picture gave rows of shape {tuple(rows.shape)} for {len(places)} places")
        length, cut = len(self._ids), int(places[len(places) // 2 if self._cuts else 0])
        slots = torch.randperm(length + len(self._other), generator=torch.Generator().manual_seed(0))
        whole, other = self._positions(self._ids, places), self._positions(self._other, places[:0])
        early = places < cut
        first = _Part(self._ids[:cut], whole[:, :cut], slots[:cut], places[early], rows[: int(early.sum())])
        second = _Part(self._ids[cut:], whole[:, cut:], slots[:length], places[~early] - cut, rows[int(early.sum()) :])
        beside = _Part(self._other, other, slots[length:], places[:0], rows[:0])
        shape = (len(slots), decoder.num_kv_heads, decoder.head_dim)
        k, v = (
            [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(decoder.num_layers)]
            for _ in range(2)
        )
        decoder.forward(self._batch([first]), k, v)
        return decoder.forward(self._batch([second, beside]), k, v)

    def difference(self, expected: Tensor, made: Tensor) -> float | None:
        """How far the logits lie apart, as a part of their spread; ``None`` where that is no more than rounding."""
        apart = float(((expected - made).pow(2).mean(-1).sqrt() / expected.std(-1)).max())
        return None if apart <= _ROUNDING.get(self._dtype, 0.1) else apart

    def _positions(self, ids: Tensor, places: Tensor) -> Tensor:
        prompt = Prompt(ids.numpy())
        if len(places):
            header = ImageHeader("PNG", *SIZE)
            picture = Picture(b"", header, ContentHash(b""), self._grid, len(places))
            prompt = Prompt(ids.numpy(), (picture,), (MediaRange(int(places[0]), int(places[-1]) + 1, 0),))
        found, _ = plain_positions(prompt) if self._merge_size is None else mrope_positions(prompt, self._merge_size)
        return torch.from_numpy(np.ascontiguousarray(found))

    def _batch(self, parts: Sequence[_Part]) -> ForwardBatch:
        counts = [len(part.ids) for part in parts]
        starts = np.cumsum([0, *counts]).tolist()
        places = torch.cat([part.places + start for part, start in zip(parts, starts, strict=False)])
        rows = torch.cat([part.rows for part in parts])
        new = [part.context[-count:] for part, count in zip(parts, counts, strict=True)]
        return ForwardBatch(
            input_ids=torch.cat([part.ids for part in parts]).to(self._device),
            positions=torch.cat([part.positions for part in parts], 1).to(self._device),
            slots=torch.cat(new).to(self._device),
            attention=plan_attention([part.context for part in parts], counts, self._device, self._dtype),
            logits_index=torch.tensor(starts[1:], device=self._device) - 1,
            media_rows=rows if len(rows) else None,
            media_index=places.to(self._device) if len(rows) else None,
        )
