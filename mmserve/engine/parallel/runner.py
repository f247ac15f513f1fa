"""TensorParallelRunner: a runner whose model lies on several devices, a process each.

Every rank has the same KV slots, with its own heads in them, and computes the same plans. Rank 0, in this process, has
the scheduler and chooses the tokens: it has all logits, so no other rank needs masks, penalties or seeds, and the next
plan tells them what was chosen.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

import torch

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.parallel.group import ProcessRanks
from mmserve.engine.parallel.messages import Arrived, Damaged, Ready, Slots, Step, without_choices
from mmserve.engine.parallel.workers import Workers
from mmserve.engine.plan import SchedulerOutput
from mmserve.engine.runner import Computed, Masks, Prepared, Runner, RunnerOutput, build_runner, pick_device
from mmserve.errors import ConfigError
from mmserve.models.families import check_shared
from mmserve.models.shared import EncodingFailed, blank, shares
from mmserve.types import ContentHash, MediaItem


class Ended(Protocol):
    """What can be told that a rank is gone."""

    def abort(self) -> None: ...


class TensorParallelRunner:
    """A ``mmserve.engine.engine.StepRunner`` over rank 0's runner and the other ranks' processes, which it owns.

    A rank that fails or dies, or an error of rank 0 in the middle of a step, leaves the ranks out of step: ``execute``
    raises ``EngineUnavailable`` then, and every time after. What fails alike on all ranks, or in choosing, which is
    rank 0's alone, is an ordinary error of one step.
    """

    def __init__(self, local: Runner, workers: Workers, ranks: Ended) -> None:
        self._local = local
        self._workers = workers
        self._size = 1 + len(workers.pids)
        self._prepared: dict[ContentHash, Prepared] = {}
        self.vocab_size = local.vocab_size
        workers.watch(ranks.abort)

    @property
    def num_slots(self) -> int:
        return self._local.num_slots

    @property
    def row_bytes(self) -> int:
        return self._local.row_bytes

    @property
    def tier_slots(self) -> int:
        return self._local.tier_slots

    @property
    def pids(self) -> list[int]:
        """The other ranks' processes."""
        return self._workers.pids

    def prepare(self, item: MediaItem) -> Prepared:
        return self._local.prepare(item)

    def put_prepared(self, content: ContentHash, prepared: Prepared) -> None:
        self._prepared[content] = prepared

    def execute(self, plan: SchedulerOutput, masks: Masks | None = None) -> RunnerOutput:
        steps = self._steps(plan)
        try:
            if not self._workers.alive:
                raise ConnectionError("a rank is gone")
            self._workers.tell(steps[1:])
            computed = self._compute(steps[0], plan)
        except EncodingFailed:
            raise
        except Exception as error:
            raise self._workers.explain(error) from error
        try:
            output = self._local.choose(plan, computed, masks)
        except Exception as error:
            if self._workers.alive:
                raise
            raise self._workers.explain(error) from error
        if not self._workers.alive:  # a GPU's results are worth nothing where a rank has left in between
            raise self._workers.explain(ConnectionError("a rank is gone"))
        return output

    def close(self) -> None:
        self._workers.close()
        self._local.close()

    def _compute(self, step: Step, plan: SchedulerOutput) -> Computed:
        for content, prepared in step.prepared:
            self._local.put_prepared(content, prepared)
        computed = self._local.compute(plan)
        if not plan.fetch:
            return computed
        # A sequence has its prefix back only where every rank has its part of it.
        damaged = frozenset[str]().union(*(each.sequence_ids for each in self._workers.hear(Damaged)))
        return dataclasses.replace(computed, damaged=computed.damaged | damaged)

    def _steps(self, plan: SchedulerOutput) -> list[Step]:
        """Each rank's message; rank 0's too, for what it encodes."""
        for content in plan.forget:
            self._prepared.pop(content, None)
        media = [(content, self._prepared.pop(content)) for content in plan.encode]
        given: dict[ContentHash, int] = {}
        for _, its in self._local.by_encoder(media):
            ranks = shares([prepared.values for _, prepared in its], self._size)
            given |= zip((content for content, _ in its), ranks, strict=True)
        lean = without_choices(plan)
        return [
            Step(
                lean,
                tuple(
                    (content, prepared if given[content] == rank else blank(prepared)) for content, prepared in media
                ),
            )
            for rank in range(self._size)
        ]


def build_parallel_runner(checkpoint: Checkpoint, config: EngineConfig) -> TensorParallelRunner:
    """Load a checkpoint over ``config.tp_size`` processes, this one among them, which load side by side.

    Raises ``ConfigError`` where the model cannot be shared, or there are too few GPUs, and what loading raises on any
    rank.
    """
    check_shared(checkpoint, config.tp_size)
    device = pick_device(config.device)
    _check_devices(device, config.tp_size)
    folder = Path(tempfile.mkdtemp(prefix="mmserve-ranks-"))
    try:
        workers = Workers(checkpoint, config, folder)
        try:
            workers.hear(Arrived)
            ranks = ProcessRanks(0, config.tp_size, folder, device)

            def agree(count: int) -> int:
                least: int = min([count, *(slots.count for slots in workers.hear(Slots))])
                workers.tell([Slots(least)] * (config.tp_size - 1))
                return least

            local = build_runner(checkpoint, config, ranks, agree)
            workers.hear(Ready)
        except BaseException:
            workers.close()
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return TensorParallelRunner(local, workers, ranks)


def _check_devices(device: torch.device, size: int) -> None:
    if device.type != "cuda":
        return
    left = torch.cuda.device_count() - (device.index or 0)
    if left < size:
        raise ConfigError(
            f"--tp {size} takes {size} GPUs, but there are {left} from {device} on; choose a smaller --tp",
            param="tp_size",
        )
