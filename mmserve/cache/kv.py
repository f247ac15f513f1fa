"""KVCache: the device memory that slots index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmserve.types import IntArray


class KVCache:
    """Keys and values of every layer, each ``(slots, kv_heads, head_dim)`` in ``dtype`` on ``device``.

    Zeroed once, so that rows nobody wrote yet are finite under an attention mask. The engine's runner owns it.
    """

    def __init__(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (slots, kv_heads, head_dim)
        self.keys: list[Tensor] = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values: list[Tensor] = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

    @property
    def slot_shape(self) -> tuple[int, int, int, int]:
        """One token's keys and values: (layers, 2, kv_heads, head_dim)."""
        return (len(self.keys), 2, *self.keys[0].shape[1:])

    def read(self, slots: IntArray) -> Tensor:
        """A copy of these slots, ``(n, layers, 2, kv_heads, head_dim)`` on the cache's device."""
        index = torch.from_numpy(slots).to(self.keys[0].device)
        pairs = [torch.stack([k.index_select(0, index), v.index_select(0, index)], dim=1) for k, v in self._layers()]
        return torch.stack(pairs, dim=1)

    def write(self, slots: IntArray, data: Tensor) -> None:
        """Put what ``read`` returned, on any device, into these slots."""
        index = torch.from_numpy(slots).to(self.keys[0].device)
        data = data.to(self.keys[0].device)
        for i, (k, v) in enumerate(self._layers()):
            k[index], v[index] = data[:, i, 0], data[:, i, 1]

    def _layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.keys, self.values, strict=True)

    @staticmethod
    def bytes_per_slot(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        return 2 * layers * kv_heads * head_dim * dtype.itemsize
