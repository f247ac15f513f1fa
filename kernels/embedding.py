"""Putting the rows of pictures among the embeddings of tokens."""

from __future__ import annotations

from torch import Tensor


def scatter_rows(hidden: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Replace rows ``index``, int64 ``(P,)``, of ``hidden`` ``(T, C)`` by ``rows`` ``(P, C)``, in place.

    ``index`` holds distinct values. ``rows`` may have another dtype and is rounded. Returns ``hidden``.
    """
    return hidden.index_copy_(0, index, rows.to(hidden.dtype))
