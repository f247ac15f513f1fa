"""What a server keeps of what it promised when the worst happens under load.

The engine's process is killed with SIGKILL, then stopped so that it hangs; the disk under running batches fills up; and
the server is told to end while clients wait.

    python -m bench.ordeal kill hang disk terminate
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import httpx

from bench.crowd import Crowd, Outcome, counted, percentiles
from bench.server import Server, at_rest, family_of, server, what_is_left
from bench.wire import Broken, address_of, ask, get

CLIENTS = 64
WATCHDOG = 10.0


@dataclass(slots=True)
class Finding:
    """One ordeal: what was seen, a line each, and what must not have been."""

    name: str
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def expect(self, true: bool, sentence: str) -> None:
        if not true:
            self.failures.append(f"it does not hold that {sentence}")


def engine_of(pid: int) -> int:
    """The process of a server's engine: the one that has loaded torch."""
    engines = [one for one in family_of(pid) if "libtorch" in Path(f"/proc/{one}/maps").read_text()]
    if len(engines) != 1 or engines[0] == pid:
        raise RuntimeError(f"the engine of {pid} is not one process of its own: {engines}")
    return engines[0]


async def kill(found: Server) -> Finding:
    """SIGKILL to the engine, three times under load."""
    return await _outages(found, Finding("the engine is killed (SIGKILL) three times"), signal.SIGKILL, times=3)


async def hang(found: Server) -> Finding:
    """SIGSTOP to the engine: it neither answers nor dies."""
    name = f"the engine stops (SIGSTOP), --watchdog-seconds {WATCHDOG:.0f}"
    return await _outages(found, Finding(name), signal.SIGSTOP, times=1)


async def _outages(found: Server, finding: Finding, how: signal.Signals, times: int) -> Finding:
    crowd = Crowd(address_of(found.url), CLIENTS)
    running = asyncio.create_task(crowd.run())
    for _ in range(times):
        await asyncio.sleep(10)
        engine, at = engine_of(found.pid), crowd.now
        os.kill(engine, how)
        down, up = await _outage(crowd)
        finding.lines.append(f"/health said 503 after {down - at:.2f} s and 200 again after {up - at:.1f} s")
        finding.expect(engine_of(found.pid) != engine, "another engine took its place")
    back = crowd.now
    await asyncio.sleep(10)
    crowd.stop()
    await running
    finding.lines += [f"{CLIENTS} clients: {counted(crowd.outcomes)}", percentiles(crowd.outcomes)]
    finding.failures += _failed(crowd.outcomes)
    after = [outcome for outcome in crowd.outcomes if outcome.at > back]
    finding.expect(bool(after) and all(o.what == "answered" for o in after), "all is answered after the recovery")
    async with httpx.AsyncClient(base_url=found.url) as http:
        finding.failures += [f"it does not hold that {sentence}" for sentence in what_is_left(await at_rest(http))]
    return finding


async def _outage(crowd: Crowd) -> tuple[float, float]:
    """When ``/health`` first was not 200, and when it was again."""
    down = None
    while True:
        status = (await ask(crowd.address, get("/health"))).status
        if down is None and status != 200:
            down = crowd.now
        elif down is not None and status == 200:
            return down, crowd.now
        await asyncio.sleep(0.02)


async def terminate(found: Server) -> Finding:
    """SIGTERM to the server: who was asked before is answered; who comes after is told so, or finds no server."""
    finding = Finding("the server is told to end (SIGTERM)")
    crowd = Crowd(address_of(found.url), CLIENTS)
    running = asyncio.create_task(crowd.run())
    await asyncio.sleep(10)
    at = crowd.now
    found.process.terminate()
    status = await asyncio.to_thread(found.process.wait, 60)
    seconds = crowd.now - at
    crowd.stop()
    await running
    before = [outcome for outcome in crowd.outcomes if outcome.at < at]
    after = [outcome for outcome in crowd.outcomes if outcome.at >= at]
    cut = [outcome for outcome in before if outcome.at + outcome.seconds >= at]
    finding.lines += [
        f"exit status {status} after {seconds:.1f} s",
        f"under way then: {counted(cut)}",
        f"asked after it: {counted(after)} (failed: no connection, or one that was closed unread, as the server went)",
    ]
    finding.expect(status == 0, "the exit status is 0")
    finding.expect(bool(cut) and all(o.what == "answered" for o in before), "all that was under way is answered")
    finding.failures += _failed(
        [o for o in after if not o.detail.startswith(("no connection", "reset", "closed after 0"))]
    )
    return finding


def _failed(outcomes: list[Outcome]) -> list[str]:
    told = Counter(f"{outcome.kind}: {outcome.detail}" for outcome in outcomes if outcome.what == "failed")
    return [f"{count} times {detail}" for detail, count in told.most_common(10)]


ORDEALS: Mapping[str, Callable[[Server], Coroutine[None, None, Finding]]] = {
    "kill": kill,
    "hang": hang,
    "terminate": terminate,
}


def undergo(name: str) -> Finding:
    with server("--watchdog-seconds", str(WATCHDOG)) as found:
        try:
            return asyncio.run(ORDEALS[name](found))
        except (Broken, RuntimeError, httpx.HTTPError) as error:
            return Finding(name, failures=[f"{type(error).__name__}: {error}", *found.errors()[:5]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("ordeals", nargs="*", default=list(ORDEALS), choices=list(ORDEALS), metavar="ordeal")
    failed = False
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}")
    for name in parser.parse_args().ordeals:
        finding = undergo(name)
        print("", finding.name, *(f"  {line}" for line in finding.lines), sep="\n", flush=True)
        print(f"  failures: {len(finding.failures)}", *(f"    {line}" for line in finding.failures[:20]), sep="\n")
        failed = failed or bool(finding.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
