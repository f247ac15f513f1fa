"""Linear layers of a decoder with weights of eight bits (``kernels.quant``)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kernels.quant import quantise_into, quantised_linear
from mmserve.checkpoint import QUANTIZATIONS
from mmserve.errors import ConfigError
from mmserve.models.layers import MergedLinear, SplitLinear

DTYPES: Mapping[str, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""What ``Checkpoint.quantization`` stores weights as."""


class QuantisedLinear(nn.Module):
    """Takes the place of a linear layer on the meta device. ``weight`` is int8 or float8_e4m3fn ``(N, K)`` and
    ``scales`` float32 ``(N,)``; ``parts`` as in :class:`MergedLinear`, ``None`` for a plain layer; ``cuts`` as it has.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.parts = linear.parts if isinstance(linear, MergedLinear) else None
        self.cuts = linear.cuts if isinstance(linear, MergedLinear | SplitLinear) else {}
        empty = torch.empty(linear.weight.shape, dtype=dtype, device="meta")
        self.weight = nn.Parameter(empty, requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scales", torch.empty(linear.out_features, dtype=torch.float32, device="meta"))
        self.scales: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return quantised_linear(x, self.weight, self.scales, self.bias)


def quantise_layers(decoder: nn.Module, kind: str) -> None:
    """Let every linear layer in ``decoder.layers`` have weights of eight bits, before the loader fills them.

    Embedding, norms and LM head stay as they are. Raises ``ConfigError`` for a ``kind`` that is not known, and for a
    module without such layers.
    """
    dtype, layers = DTYPES.get(kind), getattr(decoder, "layers", None)
    if dtype is None:
        raise ConfigError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, not {kind!r}", param="quantization")
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"this model's decoder cannot be quantised to {kind}: leave quantization out")
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, QuantisedLinear(child, dtype))


def is_quantised(decoder: object) -> bool:
    """Whether any of its layers has weights of eight bits."""
    return isinstance(decoder, nn.Module) and any(isinstance(child, QuantisedLinear) for child in decoder.modules())


def fill(place: Tensor, scales: Tensor | None, value: Tensor) -> None:
    """Write a published tensor to a parameter, or a part of one, which has ``scales`` where it is quantised."""
    if scales is None:
        place.copy_(value)
    else:
        quantise_into(value, place, scales)
