"""Storing new keys and values in the cache."""

from __future__ import annotations

from torch import Tensor


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Write ``k`` and ``v``, ``(T, Hkv, D)``, into rows ``slots``, int64 ``(T,)``, of ``(S, Hkv, D)`` caches, in place.

    ``slots`` are distinct. All tensors have one dtype.
    """
    k_cache.index_copy_(0, slots, k)
    v_cache.index_copy_(0, slots, v)
