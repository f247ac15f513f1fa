"""A soak: a server lives through many random requests, cancels, disconnects, damage and flushes.

After a warm-up by the heaviest requests come thousands of every kind (:mod:`bench.soak_traffic`), 32 at a time, against
``mmserve serve`` with so few slots that requests push one another out all the time. At the end nothing may be lost:
every slot is free or cached, no request is left, and the process has not grown. Every request has a deadline, so the
soak ends by itself.

    python -m bench.soak --requests 20000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

import httpx

from bench.server import MEASURES_MEMORY, at_rest, memory_of, server, stats_of, what_is_left
from bench.soak_traffic import Traffic, Wrong
from mmserve.config import MIB, EngineConfig

DEADLINE = 120.0
"""Seconds that a request may take, from its first byte to the end of its answer."""

FLAGS = ("--device", "cpu", "--kv-slots", "1000", "--max-running", "16", "--step-tokens", "256")
TIER = ("--tier-bytes", str(4 * MIB))
SAMPLES = 40
JUDGED_FROM = 1000
"""With fewer requests than this there is no warm-up, and the size of the process is reported but not judged."""

MAX_GROWTH = 8 * MIB
"""How far own memory in the last quarter of a run may lie above that in the third, in bytes; the medians count, since
single samples fall into the peak of a large encoder run."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The server after ``requests`` requests: resident and anonymous bytes of its processes, rows it caches."""

    requests: int
    seconds: float
    resident: int
    anonymous: int
    encoder_bytes: int

    @property
    def own(self) -> int:
        """Anonymous memory without the rows that the encoder cache keeps within its bound."""
        return self.anonymous - self.encoder_bytes


@dataclass(slots=True)
class Result:
    """What happened. ``failures`` is empty after a soak that passed."""

    requests: int
    done: int = 0
    seconds: float = 0.0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    repeated: int = 0
    excused: int = 0
    slowest: float = 0.0
    stats: dict[str, float] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """Bytes by which own memory in the run's last quarter lies above that in its third quarter."""
        quarter = max(1, len(self.samples) // 4)
        third, last = self.samples[-2 * quarter : -quarter], self.samples[-quarter:]
        return median(s.own for s in last) - median(s.own for s in third)


def run(requests: int, *, concurrency: int = 32, seed: int = 0) -> Result:
    """Start a server, soak it, judge what is left and what it logged, and end it."""
    with server(*FLAGS, *TIER) as found:
        result = asyncio.run(soak(found.url, found.pid, requests, concurrency=concurrency, seed=seed))
        result.failures += [f"logged: {line}" for line in found.errors()]
    return result


async def soak(url: str, pid: int, requests: int, *, concurrency: int, seed: int) -> Result:
    """Send the requests, watch the process, and judge what is left."""
    result = Result(requests)
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=None) as http:
        traffic = Traffic(http, seed)
        if requests >= JUDGED_FROM:
            async with asyncio.timeout(5 * DEADLINE):
                await traffic.warm_up(concurrency)
        start = time.perf_counter()
        numbers = iter(range(requests))
        every = max(1, requests // SAMPLES)

        async def worker() -> None:
            for number in numbers:
                began = time.perf_counter()
                await _one(traffic, number, result)
                now = time.perf_counter()
                result.slowest = max(result.slowest, now - began)
                result.done += 1
                if result.done % every == 0:
                    result.samples.append(await _sample(http, pid, result.done, now - start))

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        result.seconds = time.perf_counter() - start
        result.seen, result.repeated, result.excused = traffic.seen, traffic.memory.repeated, traffic.memory.excused
        await _judge(http, result)
    return result


async def _one(traffic: Traffic, number: int, result: Result) -> None:
    try:
        async with asyncio.timeout(DEADLINE):
            await traffic.send(number)
    except (Wrong, httpx.HTTPError, TimeoutError, ValueError, KeyError) as error:
        result.failures.append(f"request {number}: {type(error).__name__} {error}")


async def _sample(http: httpx.AsyncClient, pid: int, requests: int, seconds: float) -> Sample:
    stats = await stats_of(http)
    return Sample(requests, seconds, *memory_of(pid), int(stats["encoder_cache_bytes"]))


async def _judge(http: httpx.AsyncClient, result: Result) -> None:
    """Whether what must hold after any traffic holds."""
    stats = await at_rest(http)
    result.stats = stats
    result.failures += [f"it does not hold that {sentence}" for sentence in what_is_left(stats)]
    for wanted, true in {
        "the encoder cache is within its bound": stats["encoder_cache_bytes"] <= EngineConfig().encoder_cache_bytes,
        "slots were short": stats["evicted_tokens"] > 0,
        "the caches were of use": stats["cached_tokens"] > 0 and stats["pictures_reused"] > 0,
        "the second tier is sound": stats["tier_damaged"] == 0,
        "memory is flat": result.requests < JUDGED_FROM or not MEASURES_MEMORY or result.growth < MAX_GROWTH,
    }.items():
        if not true:
            result.failures.append(f"it does not hold that {wanted}")
    await http.post("/flush_cache", timeout=DEADLINE)
    stats = await at_rest(http)
    if stats["slots_free"] != stats["slots_total"] or stats["encoder_cache_bytes"] or stats["tier_slots_cached"]:
        result.failures.append(f"a flush leaves something behind: {stats}")


def report(result: Result, flags: Mapping[str, object]) -> str:
    outcomes: Counter[str] = Counter()
    for (_, outcome), count in result.seen.items():
        outcomes[outcome] += count
    s = result.stats
    every = max(1, len(result.samples) // 10)
    series = ", ".join(
        f"{x.requests}: {x.resident / MIB:.0f}/{x.own / MIB:.1f}" for x in result.samples[every - 1 :: every]
    )
    return "\n".join(
        [
            f"soak: {result.requests} requests, {', '.join(f'{k} {v}' for k, v in flags.items())}",
            f"time          {result.seconds:.0f} s, {result.requests / result.seconds:.1f} requests/s, slowest "
            f"{result.slowest:.1f} s (deadline {DEADLINE:.0f} s)",
            f"outcomes      {', '.join(f'{name} {count}' for name, count in sorted(outcomes.items()))}",
            f"kinds         {', '.join(f'{n} {o} {c}' for (n, o), c in sorted(result.seen.items()))}",
            f"repeated      {result.repeated} greedy answers equal to the first one given, {result.excused} of them "
            "parted at a near tie",
            f"pressure      {s['evicted_tokens']:.0f} tokens evicted, {s['preemptions']:.0f} preemptions, "
            f"{s['tier_saved_tokens']:.0f} saved to the second tier, {s['tier_fetched_tokens']:.0f} fetched",
            f"caches        {s['cached_tokens']:.0f} of {s['prompt_tokens']:.0f} prompt tokens, "
            f"{s['pictures_reused']:.0f} of {s['pictures']:.0f} pictures",
            f"at the end    {s['slots_free']:.0f} slots free + {s['slots_cached']:.0f} cached = "
            f"{s['slots_total']:.0f}; {s['requests_running'] + s['requests_waiting']:.0f} requests left",
            f"memory        MiB resident/own after so many requests: {series}",
            f"growth        {result.growth / MIB:+.2f} MiB of own memory from the third quarter to the last"
            + ("" if MEASURES_MEMORY else " (not measured on this system)"),
            f"machine       {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}",
            f"failures      {len(result.failures)}",
            *result.failures[:20],
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the report here too")
    arguments = parser.parse_args()
    result = run(arguments.requests, concurrency=arguments.concurrency, seed=arguments.seed)
    text = report(result, {"concurrency": arguments.concurrency, "seed": arguments.seed})
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
