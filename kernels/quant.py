"""Weights of eight bits: symmetric, with a scale for each output channel; activations stay as they are.

``int8`` rounds a row's weights to 255 evenly spaced values (Dettmers et al. 2022, arXiv 2208.07339, without its
outliers); ``fp8`` to floating-point numbers of four exponent and three mantissa bits, e4m3 without infinities
(Micikevicius et al. 2022, arXiv 2209.05433).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INT8_LARGEST, FP8_LARGEST = 127.0, 448.0

_PIECE = 1 << 24
"""Weights that are held in another form at a time, in values: what this needs besides is bounded by it."""


def quantise_into(weight: Tensor, values: Tensor, scales: Tensor) -> None:
    """Write ``weight`` ``(N, K)``, of any floating dtype, as ``values`` ``(N, K)``, int8 or float8_e4m3fn, and
    ``scales``, float32 ``(N,)``, so that ``values * scales[:, None]`` is near it. A row of zeros has scale 1."""
    largest = INT8_LARGEST if values.dtype is torch.int8 else FP8_LARGEST
    for rows in _row_pieces(weight):
        exact = weight[rows].to(values.device, torch.float32)
        scale = exact.abs().amax(1) / largest
        scale = torch.where(scale > 0, scale, 1.0)
        scaled = (exact / scale[:, None]).clamp_(-largest, largest)
        values[rows] = (scaled.round_() if values.dtype is torch.int8 else scaled).to(values.dtype)
        scales[rows] = scale


def quantised_linear(x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """``x (T, K) @ (values * scales[:, None]).T + bias`` in the dtype of ``x``: ``(T, N)``.

    The weights are turned back piece by piece, so that no whole matrix is held in the wider dtype.
    """
    pieces = [F.linear(x, values[rows].to(x.dtype).mul_(scales[rows, None])) for rows in _row_pieces(values)]
    out = pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)
    return out if bias is None else out.add_(bias)


def _row_pieces(matrix: Tensor) -> list[slice]:
    step = max(1, _PIECE // max(1, matrix.shape[1]))
    return [slice(start, start + step) for start in range(0, len(matrix), step)]
