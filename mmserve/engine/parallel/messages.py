"""What rank 0 and the other ranks' processes say to each other, as pickles over a socket that only they have."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.plan import Chunk, SamplingRow, SchedulerOutput
from mmserve.engine.runner import Prepared
from mmserve.errors import MMServeError
from mmserve.sampling import SamplingParams
from mmserve.types import ContentHash


@dataclass(frozen=True, slots=True)
class Start:
    """To a rank, first of all: what it shall load, and the folder where all ranks meet."""

    checkpoint: Checkpoint
    config: EngineConfig
    rank: int
    folder: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """From a rank that has read ``Start`` and will go to meet the others."""


@dataclass(frozen=True, slots=True)
class Slots:
    """From a rank: how many KV slots it could have; to it: how many all have."""

    count: int


@dataclass(frozen=True, slots=True)
class Ready:
    """From a rank that waits for steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """To a rank: a plan, and what was prepared of the media in it (``mmserve.models.shared``)."""

    plan: SchedulerOutput
    prepared: tuple[tuple[ContentHash, Prepared], ...] = ()


@dataclass(frozen=True, slots=True)
class Damaged:
    """From a rank, after a plan that fetches: whose entries its second tier could not give back."""

    sequence_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Failed:
    """From a rank, last of all."""

    error: MMServeError
    traceback: str


def put(pipe: Connection, message: Any) -> None:
    """Send a message. Raises ``OSError`` where nobody is at the other end."""
    pipe.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def get(pipe: Connection) -> Any:
    """The next message. Raises ``EOFError`` or ``OSError`` where there will be none."""
    return pickle.loads(pipe.recv_bytes())


_CHOOSES = SamplingRow(SamplingParams(), 0, 0, np.empty(0, dtype=np.int64), ())


def without_choices(plan: SchedulerOutput) -> SchedulerOutput:
    """What the ranks need that choose nothing: where logits are wanted, but not how a token is found from them."""
    return dataclasses.replace(
        plan, prepare=(), prefill=tuple(map(_plain, plan.prefill)), decode=tuple(map(_plain, plan.decode))
    )


def _plain(chunk: Chunk) -> Chunk:
    return dataclasses.replace(chunk, row=None if chunk.row is None else _CHOOSES, targets=None)
