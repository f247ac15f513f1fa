"""How a child comes by its engine: values that are pickled here and called there; only the child loads torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig

if TYPE_CHECKING:
    from mmserve.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class BuildEngine:
    """``build_engine(checkpoint, config)``, later and elsewhere."""

    checkpoint: Checkpoint
    config: EngineConfig

    def __call__(self) -> Engine:
        from mmserve.engine.build import build_engine

        return build_engine(self.checkpoint, self.config)


def nothing() -> None:
    """Leave the child's logging as Python has it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """``build`` makes the engine and ``setup`` is called before it, to set logging up. Both are found by their name in
    the child: functions and classes of modules, ``functools.partial`` of these."""

    build: Callable[[], Engine]
    setup: Callable[[], None] = nothing
