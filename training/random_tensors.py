"""Two small helpers for random numbers on a generator's device."""

from __future__ import annotations

from torch import Generator, Tensor, rand


def uniform(shape: int | tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Float32 in [low, high)."""
    return rand(shape, generator=generator, device=generator.device) * (high - low) + low


def chance(count: int, probability: float, generator: Generator) -> Tensor:
    """Bool ``[count]``, each True with ``probability``."""
    return rand(count, generator=generator, device=generator.device) < probability
