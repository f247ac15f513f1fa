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
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

import httpx

from bench.soak_traffic import Traffic, Wrong
from mmserve.config import MIB, EngineConfig

DEADLINE = 120.0
"""Seconds that a request may take, from its first byte to the end of its answer."""

FLAGS = ("--device", "cpu", "--kv-slots", "1000", "--max-running", "16", "--step-tokens", "256")
TIER = ("--tier-bytes", str(4 * MIB))
MEASURES_MEMORY = sys.platform == "linux"
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


@contextmanager
def server(*flags: str) -> Iterator[tuple[str, int, Path]]:
    """URL, process id and log of ``mmserve serve`` until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        command = [sys.executable, "-m", "mmserve", "serve", "--port", "0", *flags]
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file)
        try:
            yield _address(process, log), process.pid, log
        finally:
            process.terminate()
            process.wait(60)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    give_up = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < give_up:
        found = re.search(r" is served at (\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise RuntimeError("the server did not start:\n" + log.read_text())


def memory_of(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes of a process and its descendants; zeros where the system has no ``/proc``."""
    resident = anonymous = 0
    pending = [pid] if MEASURES_MEMORY else []
    while pending:
        one = pending.pop()
        status = Path(f"/proc/{one}/status").read_text()
        resident += int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
        anonymous += int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            pending += map(int, children.read_text().split())
    return resident, anonymous


def run(requests: int, *, concurrency: int = 32, seed: int = 0) -> Result:
    """Start a server, soak it, judge what is left and what it logged, and end it."""
    with server(*FLAGS, *TIER) as (url, pid, log):
        result = asyncio.run(soak(url, pid, requests, concurrency=concurrency, seed=seed))
        result.failures += [f"logged: {line}" for line in log.read_text().splitlines() if line.startswith("ERROR")]
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


async def _stats(http: httpx.AsyncClient) -> dict[str, float]:
    found: dict[str, float] = (await http.get("/server_info", timeout=DEADLINE)).json()["stats"]
    return found


async def _sample(http: httpx.AsyncClient, pid: int, requests: int, seconds: float) -> Sample:
    stats = await _stats(http)
    return Sample(requests, seconds, *memory_of(pid), int(stats["encoder_cache_bytes"]))


async def _judge(http: httpx.AsyncClient, result: Result) -> None:
    """Whether what must hold after any traffic holds."""
    stats = await _at_rest(http)
    result.stats = stats
    ended = stats["requests_finished"] + stats["requests_failed"] + stats["requests_aborted"]
    for wanted, true in {
        "no request is left": stats["requests_running"] == stats["requests_waiting"] == 0,
        "every request ended once": stats["requests_added"] == ended,
        "every slot is free or cached": stats["slots_free"] + stats["slots_cached"] == stats["slots_total"],
        "nothing that is cached is locked": stats["slots_evictable"] == stats["slots_cached"],
        "no rows are held": stats["encoder_cache_held_bytes"] == 0,
        "the encoder cache is within its bound": stats["encoder_cache_bytes"] <= EngineConfig().encoder_cache_bytes,
        "no picture is in work": stats["pictures_in_work"] == 0,
        "slots were short": stats["evicted_tokens"] > 0,
        "the caches were of use": stats["cached_tokens"] > 0 and stats["pictures_reused"] > 0,
        "the second tier is sound": stats["tier_damaged"] == 0,
        "memory is flat": result.requests < JUDGED_FROM or not MEASURES_MEMORY or result.growth < MAX_GROWTH,
    }.items():
        if not true:
            result.failures.append(f"it does not hold that {wanted}")
    await http.post("/flush_cache", timeout=DEADLINE)
    stats = await _at_rest(http)
    if stats["slots_free"] != stats["slots_total"] or stats["encoder_cache_bytes"] or stats["tier_slots_cached"]:
        result.failures.append(f"a flush leaves something behind: {stats}")


async def _at_rest(http: httpx.AsyncClient) -> dict[str, float]:
    """The server's counters once nothing runs any more, or after ten seconds of waiting for that."""
    give_up = time.monotonic() + 10
    while True:
        stats = await _stats(http)
        busy = stats["requests_running"] or stats["requests_waiting"] or stats["pictures_in_work"]
        if not busy or time.monotonic() > give_up:
            return stats
        await asyncio.sleep(0.05)


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
