"""What a decoder takes and what it promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.attention import AttentionPlan


@dataclass(slots=True, eq=False)
class ForwardBatch:
    """One step's new tokens, of all sequences one after another; every tensor lies on the decoder's device.

    ``input_ids`` is int64 ``(T,)``, ``positions`` int64 ``(3, T)``, ``slots`` int64 ``(T,)`` the KV slot of each new
    token, ``logits_index`` int64 ``(B,)`` the rows of T whose logits are wanted. ``picture_rows`` ``(P, hidden_size)``
    take the places ``picture_index``, int64 ``(P,)``, of T; both are ``None`` where there is none.
    """

    input_ids: Tensor
    positions: Tensor
    slots: Tensor
    attention: AttentionPlan
    logits_index: Tensor
    picture_rows: Tensor | None = None
    picture_index: Tensor | None = None


class Decoder(Protocol):
    """A language model that reads and writes a paged KV cache which its caller owns."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

    def forward(self, batch: ForwardBatch, k_caches: list[Tensor], v_caches: list[Tensor]) -> Tensor:
        """Logits ``(B, vocab_size)`` in float32 of the rows ``batch.logits_index``.

        ``k_caches`` and ``v_caches`` hold a tensor ``(S, num_kv_heads, head_dim)`` for each layer; the new tokens'
        keys and values are written into their ``batch.slots``.
        """
