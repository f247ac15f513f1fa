"""What a decoder takes and what it promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.attention import AttentionPlan
from vision.encoder import PictureEncoder
from vision.pixels import PixelProcessor


@dataclass(slots=True, eq=False)
class ForwardBatch:
    """One step's new tokens, of all sequences one after another; every tensor lies on the decoder's device.

    ``input_ids`` is int64 ``(T,)``, ``positions`` int64 ``(axes, T)`` (three axes for M-RoPE, else one), ``slots``
    int64 ``(T,)`` the KV slot of each new token, ``logits_index`` int64 ``(B,)`` the rows of T whose logits are wanted.
    ``picture_rows`` ``(P, row_width)`` take the places ``picture_index``, int64 ``(P,)``, of T; both are ``None`` where
    there is none. A row's first ``hidden_size`` values are its embedding; what stands behind is the family's own.
    """

    input_ids: Tensor
    positions: Tensor
    slots: Tensor
    attention: AttentionPlan
    logits_index: Tensor
    picture_rows: Tensor | None = None
    picture_index: Tensor | None = None


class Decoder(Protocol):
    """A language model that reads and writes a paged KV cache which its caller owns.

    ``row_width`` is the width of the picture rows that it takes, ``hidden_size`` or more.
    """

    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def row_width(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

    def forward(self, batch: ForwardBatch, k_caches: list[Tensor], v_caches: list[Tensor]) -> Tensor:
        """Logits ``(B, vocab_size)`` in float32 of the rows ``batch.logits_index``.

        ``k_caches`` and ``v_caches`` hold a tensor ``(S, num_kv_heads, head_dim)`` for each layer; the new tokens'
        keys and values are written into their ``batch.slots``.
        """


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, loaded: its decoder, and what turns decoded pictures into the decoder's rows.

    ``encoder`` and ``pixels`` are ``None`` where the model reads text only.
    """

    decoder: Decoder
    encoder: PictureEncoder | None = None
    pixels: PixelProcessor | None = None
