"""A server under load: many clients at once for minutes, a part of which leave, and slow uploads beside them.

Nothing may fail, nothing may hang, memory must be flat, and no slot may stay behind. Whether slow uploads slow the
others is told by turns with and without them.

    python -m bench.load --seconds 600 --concurrency 256
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version

import httpx

from bench.crowd import Crowd, Outcome, counted, judge, percentiles
from bench.questions import large_upload
from bench.server import at_rest, memory_of, server, stats_of, what_is_left
from bench.wire import Broken, address_of, ask
from mmserve.config import MIB

TURNS = 10
"""Turns of the run: slow uploads run in every second one."""

MAX_GROWTH = 16 * MIB
"""How far the least own memory (without cached rows) of a run's last quarter may lie above that of the third, in bytes.

What is above the least is memory that was freed and not yet given back, or is a step's for a moment."""


@dataclass(slots=True)
class Result:
    seconds: float
    crowd: Crowd
    slow: list[Outcome] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    """Anonymous memory of the server's processes without cached rows, in bytes, at even times."""
    resident: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Bytes from the least own memory of the third quarter to that of the last."""
        quarter = max(1, len(self.own) // 4)
        return min(self.own[-quarter:]) - min(self.own[-2 * quarter : -quarter])

    @property
    def failures(self) -> list[str]:
        told = Counter(f"{o.kind}: {o.detail}" for o in [*self.crowd.outcomes, *self.slow] if o.what == "failed")
        found = [f"{count} times {detail}" for detail, count in told.most_common()]
        unavailable = sum(o.what == "unavailable" for o in self.crowd.outcomes)
        found += [f"{unavailable} times the engine was unavailable"] if unavailable else []
        found += [f"it does not hold that {sentence}" for sentence in self.left]
        if self.seconds >= 300 and self.growth > MAX_GROWTH:
            found.append(f"own memory grew by {self.growth / MIB:.1f} MiB")
        return found

    def beside(self, slow: bool) -> list[Outcome]:
        """Questions asked in turns with, or without, slow uploads."""
        turn = self.seconds / TURNS
        return [o for o in self.crowd.outcomes if o.at < self.seconds and (int(o.at / turn) % 2 == 1) == slow]


async def load(url: str, pid: int, *, seconds: float, concurrency: int, leaving: float, uploads: int) -> Result:
    crowd = Crowd(address_of(url), concurrency, leaving=leaving)
    result = Result(seconds, crowd)
    running = asyncio.create_task(crowd.run())
    uploading = asyncio.create_task(_uploads(result, uploads))
    async with httpx.AsyncClient(base_url=url) as http:
        while crowd.now < seconds:
            await asyncio.sleep(min(seconds / 120, seconds - crowd.now))
            resident, anonymous = memory_of(pid)
            result.resident.append(resident)
            result.own.append(anonymous - (await stats_of(http))["encoder_cache_bytes"])
        crowd.stop()
        await asyncio.gather(running, uploading)
        result.left = what_is_left(await at_rest(http))
    return result


async def _uploads(result: Result, count: int) -> None:
    """``count`` uploads at a time in every second turn, each taking the whole turn."""
    crowd, turn = result.crowd, result.seconds / TURNS
    question = large_upload()

    async def one() -> Outcome:
        at, pieces = crowd.now, 200
        try:
            what, detail = judge(
                question, await ask(crowd.address, question.request, drip=turn / pieces, pieces=pieces)
            )
        except Broken as error:
            what, detail = "failed", str(error)
        return Outcome(question.kind, what, at, crowd.now - at, detail)

    for number in range(1, TURNS, 2):
        await asyncio.sleep(max(0.0, number * turn - crowd.now))
        result.slow += await asyncio.gather(*(one() for _ in range(count)))


def report(result: Result, flags: str) -> str:
    kinds = sorted({outcome.kind for outcome in result.crowd.outcomes})
    part = max(1, len(result.own) // 10)
    tenths = [slice(at, at + part) for at in range(0, len(result.own), part)]
    series = ", ".join(f"{min(result.own[at]) / MIB:.0f}-{max(result.own[at]) / MIB:.0f}" for at in tenths)
    most = max(result.resident, default=0)
    done = [outcome for outcome in result.crowd.outcomes if outcome.what == "answered"]
    return "\n".join(
        [
            f"load: {flags}",
            f"outcomes      {counted(result.crowd.outcomes)}; {len(done) / result.seconds:.1f} answers/s",
            f"latency       {percentiles(result.crowd.outcomes)}",
            *(f"  {kind:<11} {percentiles(o for o in result.crowd.outcomes if o.kind == kind)}" for kind in kinds),
            f"slow uploads  {counted(result.slow)}",
            f"  without     {percentiles(result.beside(slow=False))}",
            f"  beside them {percentiles(result.beside(slow=True))}",
            f"memory        own, MiB, least and most of each tenth: {series}; resident at most {most / MIB:.0f}",
            f"growth        {result.growth / MIB:+.1f} MiB own memory from the third quarter's least to the last's",
            f"machine       {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}",
            f"failures      {len(result.failures)}",
            *result.failures[:20],
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--leaving", type=float, default=0.3, help="part of questions whose client goes away")
    parser.add_argument("--uploads", type=int, default=100, help="slow uploads at a time")
    arguments = parser.parse_args()
    settings = vars(arguments)
    with server() as found:
        result = asyncio.run(load(found.url, found.pid, **settings))
        result.left += [f"nothing is logged: {line}" for line in found.errors()]
    print(report(result, ", ".join(f"{name} {value:g}" for name, value in settings.items())))
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
