"""What a decoder takes and what it promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from kernels.attention import AttentionPlan
from mmserve.types import MediaKind
from vision.encoder import PictureEncoder
from vision.pixels import PixelProcessor, picture_pixels

Item = TypeVar("Item")
Made = TypeVar("Made")
Taken = TypeVar("Taken", contravariant=True)


@dataclass(slots=True, eq=False)
class ForwardBatch:
    """One step's new tokens, of all sequences one after another; every tensor lies on the decoder's device.

    ``input_ids`` is int64 ``(T,)``, ``positions`` int64 ``(axes, T)`` (three axes for M-RoPE, else one), ``slots``
    int64 ``(T,)`` the KV slot of each new token, ``logits_index`` int64 ``(B,)`` the rows of T whose logits are wanted.
    ``media_rows`` ``(P, row_width)`` take the places ``media_index``, int64 ``(P,)``, of T; both are ``None`` where
    there is none. A row's first ``hidden_size`` values are its embedding; what stands behind is the family's own.
    """

    input_ids: Tensor
    positions: Tensor
    slots: Tensor
    attention: AttentionPlan
    logits_index: Tensor
    media_rows: Tensor | None = None
    media_index: Tensor | None = None


class Decoder(Protocol):
    """A language model that reads and writes a paged KV cache which its caller owns.

    ``row_width`` is the width of the media rows that it takes, ``hidden_size`` or more.
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


class MediaEncoder(Protocol[Taken]):
    """What makes rows of one kind of media; of pictures it is a ``vision.encoder.PictureEncoder``."""

    def encode(self, items: Sequence[Taken], /) -> list[Tensor]:
        """The rows of each, ``(rows, row_width)``, on the device. Each tensor owns its memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Tower(Generic[Item, Made]):
    """One kind of media's way to the decoder: ``prepare`` decodes an item to what ``encoder`` takes.

    ``prepare`` runs in any thread, and raises ``MediaError``. Kinds that share an encoder are encoded together.
    """

    prepare: Callable[[Item], Made]
    encoder: MediaEncoder[Made]


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, loaded: its decoder, and what turns media into the decoder's rows.

    ``encoder`` and ``pixels`` are those of pictures, ``None`` where the model sees none; ``others`` are the towers of
    the other kinds that it takes.
    """

    decoder: Decoder
    encoder: PictureEncoder | None = None
    pixels: PixelProcessor | None = None
    others: Mapping[MediaKind, Tower[Any, Any]] = field(default_factory=dict)

    @property
    def towers(self) -> Mapping[MediaKind, Tower[Any, Any]]:
        """All of them, by what they take."""
        if self.encoder is None or self.pixels is None:
            return self.others
        return {"image": Tower(picture_pixels(self.pixels), self.encoder), **self.others}
