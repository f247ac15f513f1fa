"""Ranks over torch.distributed: NCCL between GPUs, gloo between processes on CPUs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STUCK_SECONDS = 600.0
"""How long a rank waits in a step for one that lives and does not come."""


class ProcessRanks:
    """``mmserve.models.ranks.Ranks`` of processes that meet in a folder.

    A process group of its own, not torch's default one, so that a process can have several and nothing is left behind.
    They meet through a file: torch's store over TCP would listen on every address of the machine.
    """

    def __init__(self, rank: int, size: int, folder: Path, device: torch.device) -> None:
        """Waits until all of them are there; ``folder`` must be empty before the first, and known to them alone."""
        self.rank = rank
        self.size = size
        store = _torch().FileStore(str(folder / "ranks"), size)
        self._group = _nccl(store, rank, size) if device.type == "cuda" else _gloo(store, rank, size)

    def sum(self, x: Tensor) -> Tensor:
        if x.numel():
            self._group.allreduce([x]).wait()
        return x

    def gather(self, x: Tensor) -> Tensor:
        out = x.new_empty((self.size * len(x), *x.shape[1:]))
        if x.numel():
            self._group._allgather_base(out, x.contiguous()).wait()
        return out.view(self.size, *x.shape)

    def abort(self) -> None:
        """Make what waits for a rank that is gone fail or return, on this rank. Thread safe."""
        self._group.abort()


def _torch() -> Any:
    """torch.distributed, whose stubs lack most of what is used here."""
    return torch.distributed


def _gloo(store: Any, rank: int, size: int) -> Any:
    group = _torch().ProcessGroupGloo
    options = group._Options()
    options._timeout = timedelta(seconds=STUCK_SECONDS)
    options._devices = [group.create_device(hostname="127.0.0.1")]
    return group(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int) -> Any:
    group = _torch().ProcessGroupNCCL
    options = group.Options()
    options._timeout = timedelta(seconds=STUCK_SECONDS)
    return group(store, rank, size, options)
