"""Ranks without processes: threads that meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Numbered:
    """A rank that meets nobody: enough to see what it would hold."""

    rank: int
    size: int

    def sum(self, x: Tensor) -> Tensor:
        raise AssertionError(f"nobody is there to add {x.shape} to")

    def gather(self, x: Tensor) -> Tensor:
        raise AssertionError(f"nobody is there to put beside {x.shape}")


class ThreadRanks:
    """``mmserve.models.ranks.Ranks`` of one of ``size`` threads; ``table`` and ``barrier`` are common to all."""

    def __init__(self, rank: int, table: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(table)
        self._table, self._barrier = table, barrier

    def sum(self, x: Tensor) -> Tensor:
        return self.gather(x).sum(0, dtype=x.dtype)

    def gather(self, x: Tensor) -> Tensor:
        self._table[self.rank] = x
        self._barrier.wait()
        assert len({(each.shape, each.dtype) for each in self._table}) == 1
        together = torch.stack(self._table)
        self._barrier.wait()
        return together


def on_each(size: int, work: Callable[[ThreadRanks], T]) -> list[T]:
    """What each rank's ``work`` returns; raises what one of them raises."""
    table, barrier = [torch.empty(0)] * size, threading.Barrier(size, timeout=30)

    def run(rank: int) -> T:
        try:
            return work(ThreadRanks(rank, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
