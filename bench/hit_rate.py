"""How much of the prompts the prefix cache serves, on four workloads, beside what it could serve at best.

The real scheduler plans for a device that answers at once with tokens fixed in advance, on a pool of half the working
set (all distinct tokens of the trace's prompts and answers). *Queued*: all requests are there from the start, and
the optimum computes each distinct prefix once. *In flight*: they come in order, that many at a time, follow-ups
after the answers they quote; beside it, offline-optimal eviction in the order in which the scheduler admitted them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bench.optimum import farthest_next_use, optimum, trace_paths
from bench.traces import WORKLOADS, Query
from mmserve.config import EngineConfig
from mmserve.engine.scheduler import Scheduler

BAR = 0.96
CONFIG = EngineConfig(max_running=64, step_tokens=2048)
MODES: Mapping[str, int | None] = MappingProxyType({"queued": None, "32 in flight": 32, "256 in flight": 256})
"""How many requests the engine has at a time: fewer than it can run, and more. ``None`` for all."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a scheduler did with a trace. ``order`` are the requests as they were first admitted."""

    order: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    preemptions: int
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """A workload's result on a pool of ``slots``; ``best`` are the tokens that the cached ones are held against.

    ``best_after_answers`` is for *queued* alone, see ``Optimum.hits_after_answers``.
    """

    workload: str
    mode: str
    requests: int
    working_set: int
    slots: int
    best: int
    best_after_answers: int | None
    replay: Replay

    @property
    def ratio(self) -> float:
        return self.replay.cached_tokens / self.best


def replay(queries: Sequence[Query], slots: int, config: EngineConfig = CONFIG, in_flight: int | None = None) -> Replay:
    """Run a trace to its end, all of it queued at once or ``in_flight`` at a time in order of arrival.

    With ``in_flight``, a follow-up whose predecessor is unfinished is passed over.
    """
    start = time.perf_counter()
    scheduler = Scheduler(config, num_slots=slots, row_bytes=1)
    arriving = {one.request.id: one for one in queries}
    active: dict[str, Query] = {}
    unfinished = set(arriving)
    order: dict[str, None] = {}
    while arriving or active:
        while in_flight is None or len(active) < in_flight:
            ready = (q for q in arriving.values() if in_flight is None or q.after not in unfinished)
            one = next(ready, None)
            if one is None:
                break
            length = len(one.request.prompt)
            scheduler.add(one.request, np.arange(length, dtype=np.int64)[None], length)
            active[one.request.id] = arriving.pop(one.request.id)
        plan = scheduler.schedule()
        if not (plan.for_device or plan.prepare):
            raise RuntimeError("the scheduler hangs")
        scheduler.update(plan)
        for picture in plan.prepare:
            scheduler.prepared(picture.content)
        for chunk in plan.chunks:
            order.setdefault(chunk.sequence_id)
            seq = scheduler.get(chunk.sequence_id)
            if chunk.row is None or seq is None:
                continue
            answer = active[seq.id].answer
            scheduler.append(seq, [answer[len(seq.outputs)]])
            if len(seq.outputs) == len(answer):
                scheduler.end(seq)
                del active[seq.id]
                unfinished.remove(seq.id)
    c = scheduler.counters
    return Replay(
        tuple(order),
        c.prompt_tokens,
        c.cached_tokens,
        c.prefilled_tokens,
        c.preemptions,
        c.steps,
        time.perf_counter() - start,
    )


def measure(workload: str, mode: str, *, scale: float = 1.0, seed: int = 0, config: EngineConfig = CONFIG) -> Figures:
    """One workload in one of ``MODES``, on half its working set."""
    queries = WORKLOADS[workload](seed, scale)
    paths = trace_paths(queries)
    bound = optimum(paths.values())
    slots = bound.working_set // 2
    about = workload, mode, len(queries), bound.working_set, slots
    if MODES[mode] is None:
        return Figures(*about, bound.hits, bound.hits_after_answers, replay(queries, slots, config))
    result = replay(queries, slots, config, MODES[mode])
    return Figures(*about, farthest_next_use([paths[name] for name in result.order], slots), None, result)


def table(figures: Sequence[Figures]) -> str:
    lines = [
        f"{'workload':<16}{'mode':<14}{'requests':>9}{'working set':>12}{'prompt':>11}{'cached':>11}{'best':>11}"
        f"{'ratio':>9}{'answers 1st':>12}{'preempted':>10}{'steps':>7}{'s':>6}"
    ]
    for f in figures:
        r = f.replay
        strict = f"{r.cached_tokens / f.best_after_answers:.2%}" if f.best_after_answers else ""
        lines.append(
            f"{f.workload:<16}{f.mode:<14}{f.requests:>9,}{f.working_set:>12,}{r.prompt_tokens:>11,}"
            f"{r.cached_tokens:>11,}{f.best:>11,}{f.ratio:>9.2%}{strict:>12}{r.preemptions:>10}{r.steps:>7,}{r.seconds:>6.1f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of requests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = [
        measure(workload, mode, scale=arguments.scale, seed=arguments.seed) for mode in MODES for workload in WORKLOADS
    ]
    print(table(figures))
    print(f"max_running {CONFIG.max_running}, step_tokens {CONFIG.step_tokens}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(f) for f in figures], indent=1) + "\n", encoding="utf-8")
    return 1 if any(f.mode == "queued" and f.ratio < BAR for f in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
