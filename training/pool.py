"""Conversations as padded token arrays, and their expansion to batches with picture placeholders and positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.conversations import Conversation, segments
from training.model import token_id
from training.tokenizer import IMAGE_PAD, PAD


@dataclass(frozen=True)
class Pool:
    """Rows of one kind; all have the same number of pictures.

    ``ids`` int16 ``[n, length]``, right-padded, one placeholder a picture; ``learnt`` bool ``[n, length]``: tokens
    that the model must say; ``lengths`` int16 ``[n]``; ``scenes`` int16 ``[n, slots, 4]``: picture, shape, colour,
    cell. ``mean_length`` is that of the whole pool the rows were taken from.
    """

    ids: Tensor
    learnt: Tensor
    lengths: Tensor
    scenes: Tensor
    mean_length: float

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def slots(self) -> int:
        return self.scenes.shape[1]

    def to(self, device: torch.device) -> Pool:
        ids, learnt, lengths, scenes = (t.to(device) for t in (self.ids, self.learnt, self.lengths, self.scenes))
        return Pool(ids, learnt, lengths, scenes, self.mean_length)

    def take(self, rows: Tensor) -> Pool:
        """The rows named, cut to the longest of them."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        return replace(
            self,
            ids=self.ids[rows, :longest],
            learnt=self.learnt[rows, :longest],
            lengths=lengths,
            scenes=self.scenes[rows],
        )


@dataclass(frozen=True)
class Batch:
    """What the model reads: int64 ``ids`` and bool ``learnt`` ``[b, length]``, ``positions`` ``[3, b, length]``."""

    ids: Tensor
    learnt: Tensor
    positions: Tensor


def make_pool(conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerBase) -> Pool:
    """Tokenizes. Pieces repeat a lot, so each distinct one is tokenized once."""
    known: dict[str, list[int]] = {}
    rows, marks, scenes = [], [], []
    for conversation in conversations:
        ids: list[int] = []
        learnt: list[bool] = []
        for text, says in segments(conversation):
            if text not in known:
                known[text] = tokenizer.encode(text, add_special_tokens=False)
            ids += known[text]
            learnt += [says] * len(known[text])
        rows.append(ids)
        marks.append(learnt)
        scenes.append([(s.picture, s.label.shape, s.label.color, s.cell) for s in conversation.scenes])
    return _pad(rows, marks, scenes)


def _pad(rows: list[list[int]], marks: list[list[bool]], scenes: list[list[tuple[int, int, int, int]]]) -> Pool:
    lengths = np.array([len(row) for row in rows], dtype=np.int16)
    filled = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(filled.shape, token_id(PAD), dtype=np.int16)
    ids[filled] = np.fromiter(chain.from_iterable(rows), dtype=np.int16)
    learnt = np.zeros(filled.shape, dtype=np.bool_)
    learnt[filled] = np.fromiter(chain.from_iterable(marks), dtype=np.bool_)
    shown = torch.tensor(scenes, dtype=torch.int16).view(len(rows), len(scenes[0]), 4)
    mean = float(lengths.mean())
    return Pool(torch.from_numpy(ids), torch.from_numpy(learnt), torch.from_numpy(lengths), shown, mean)


def expand(pool: Pool, grids: list[tuple[int, int]]) -> Batch:
    """Repeats each placeholder as often as its picture has tokens, and gives every token its M-RoPE position.

    The positions are those of ``Qwen2VLModel.get_rope_index``: text counts on all three axes, a picture's tokens
    count rows and columns, and the text after it goes on from the larger of the two.

    Args:
        pool: the rows of this batch.
        grids: for each picture slot, ``(h, w)`` in tokens, the same for all rows.
    """
    ids = pool.ids.long()
    is_image = ids == token_id(IMAGE_PAD)
    slot = torch.where(is_image, is_image.cumsum(1), 0)
    heights, widths = _per_slot([g[0] for g in grids], slot), _per_slot([g[1] for g in grids], slot)
    counts = heights * widths
    steps = torch.maximum(heights, widths)
    starts = steps.cumsum(1) - steps
    firsts = counts.cumsum(1) - counts

    def repeat(values: Tensor) -> Tensor:
        return values.flatten().repeat_interleave(counts.flatten()).view(len(ids), -1)

    long_ids, long_widths, base = repeat(ids), repeat(widths), repeat(starts)
    inside = torch.arange(long_ids.shape[1], device=ids.device) - repeat(firsts)
    positions = torch.stack((base, base + inside // long_widths, base + inside % long_widths))
    return Batch(long_ids, repeat(pool.learnt), positions)


def _per_slot(sizes: list[int], slot: Tensor) -> Tensor:
    """``sizes`` of the token's picture; 1 for text, which is slot 0."""
    return torch.tensor([1, *sizes], device=slot.device)[slot]
