"""transformers' answers on a checkpoint, and a paged cache around the decoder under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from kernels.attention import plan_attention
from mmserve.models.batch import Decoder, ForwardBatch

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
TEXTS = (
    "You are a helpful assistant. ",
    "What is in this picture? ",
    "How many red circles are there? ",
    "Which one is larger, the dog or the cat? ",
)
SIZES = ((90, 60), (28, 170), (140, 140), (57, 33), (200, 84))


@dataclass(frozen=True)
class Reference:
    """One prompt: ids ``(T,)``, positions ``(3, T)``, logits ``(T, V)``, the pictures' patches, sizes in patches,
    embedding rows ``(P, C)`` and places ``(P,)``, and the ids that greedy decoding adds."""

    ids: Tensor
    positions: Tensor
    logits: Tensor
    pixel_values: Tensor | None
    grids: list[list[int]]
    rows: Tensor
    places: Tensor
    generated: list[int]


class Transformers:
    """The reference implementation, in float32 with SDPA."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)

    @torch.inference_mode()
    def answer(self, pictures: int, *, seed: int = 0, new_tokens: int = 20) -> Reference:
        """What transformers makes of a prompt with this many random pictures."""
        inputs = self._inputs(pictures, seed)
        ids, pixels = inputs["input_ids"][0], inputs.get("pixel_values")
        seen: list[Tensor] = []
        hook = self.model.model.language_model.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
        )
        logits = self.model(**inputs).logits[0]
        hook.remove()
        positions = torch.arange(len(ids)).expand(3, -1) if seen[0] is None else seen[0][-3:, 0]
        rows = torch.empty(0, self.model.config.text_config.hidden_size)
        if pixels is not None:
            rows = torch.cat(tuple(self.model.model.get_image_features(pixels, inputs["image_grid_thw"]).pooler_output))
        # A fixed length, so that an early end of sequence does not make the comparison short.
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1)
        return Reference(
            ids=ids,
            positions=positions,
            logits=logits,
            pixel_values=pixels,
            grids=inputs["image_grid_thw"].tolist() if pixels is not None else [],
            rows=rows,
            places=(ids == self.model.config.image_token_id).nonzero().squeeze(1),
            generated=output[0, len(ids) :].tolist(),
        )

    def _inputs(self, pictures: int, seed: int) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        sizes = [SIZES[int(i)] for i in generator.integers(len(SIZES), size=pictures)]
        images = [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
        pieces = [TEXTS[int(i)] for i in generator.integers(len(TEXTS), size=pictures + 1)]
        text = PICTURE.join(pieces)
        return dict(self.processor(text=[text], images=images or None, return_tensors="pt"))


class Paged:
    """A decoder with a cache of its own, whose free slots are handed out in random order."""

    def __init__(self, decoder: Decoder, *, slots: int = 4000, seed: int = 0) -> None:
        self.decoder = decoder
        shape = (decoder.num_layers, slots, decoder.num_kv_heads, decoder.head_dim)
        self.k, self.v = (list(torch.full(shape, float("nan"))) for _ in range(2))
        self.free = torch.randperm(slots, generator=torch.Generator().manual_seed(seed)).tolist()

    @torch.inference_mode()
    def step(self, chunks: Sequence[tuple[Progress, int]], *, every_row: bool = False) -> list[Tensor]:
        """Run the next n tokens of each sequence together; the logits of each one's last row, or of every row."""
        counts = [count for _, count in chunks]
        for sequence, count in chunks:
            sequence.slots += [self.free.pop() for _ in range(count)]
        pieces = [sequence.piece(count) for sequence, count in chunks]
        starts = np.cumsum([0, *counts])
        places = torch.cat([piece[2] + int(start) for piece, start in zip(pieces, starts, strict=False)])
        rows = torch.cat([piece[3] for piece in pieces])
        slots = [torch.tensor(sequence.slots) for sequence, _ in chunks]
        batch = ForwardBatch(
            input_ids=torch.cat([piece[0] for piece in pieces]),
            positions=torch.cat([piece[1] for piece in pieces], 1),
            slots=torch.cat([own[-count:] for own, count in zip(slots, counts, strict=True)]),
            attention=plan_attention(slots, counts, "cpu"),
            logits_index=torch.arange(int(starts[-1])) if every_row else torch.from_numpy(starts[1:] - 1),
            media_rows=rows if len(rows) else None,
            media_index=places if len(rows) else None,
        )
        logits = self.decoder.forward(batch, self.k, self.v)
        for sequence, count in chunks:
            sequence.done += count
        return list(torch.split(logits, counts if every_row else [1] * len(counts)))


class Progress:
    """Tokens to run and how far they have been run."""

    def __init__(self, reference: Reference, rows: Tensor | None = None) -> None:
        self.ids, self.positions = reference.ids, reference.positions
        self.rows, self.places = reference.rows if rows is None else rows, reference.places
        self.slots: list[int] = []
        self.done = 0

    @property
    def left(self) -> int:
        return len(self.ids) - self.done

    def append(self, token: int) -> None:
        self.ids = torch.cat((self.ids, torch.tensor([token])))
        self.positions = torch.cat((self.positions, self.positions.max().expand(3, 1) + 1), 1)

    def piece(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next tokens' ids and positions, the places of picture rows among them, and these rows."""
        stop = self.done + count
        inside = (self.places >= self.done) & (self.places < stop)
        return (
            self.ids[self.done : stop],
            self.positions[:, self.done : stop],
            self.places[inside] - self.done,
            self.rows[inside],
        )
