"""What a server keeps of what it promised when the worst happens under load.

The engine's process is killed with SIGKILL, then stopped so that it hangs; the disk under running batches fills up; and
the server is told to end while clients wait.

    python -m bench.ordeal kill hang disk terminate
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from bench.crowd import Crowd, Outcome, counted, percentiles
from bench.server import Server, at_rest, family_of, server, what_is_left
from bench.wire import Broken, address_of, ask, get

CLIENTS = 64
WATCHDOG = 10.0
LINES = 1_000


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


async def disk(found: Server, filler: Path) -> Finding:
    """The disk under a running batch fills up, and has room again after ten seconds."""
    finding = Finding("the disk under a running batch is full for ten seconds")
    crowd = Crowd(address_of(found.url), 4)
    async with httpx.AsyncClient(base_url=found.url, timeout=60) as http:
        batch = await _submit(http, LINES)
        await _until(http, batch, lambda now: now["request_counts"]["completed"] >= LINES // 10)
        _fill(filler)
        running = asyncio.create_task(crowd.run())
        refused = await http.post("/v1/files", data={"purpose": "batch"}, files={"file": _lines(LINES)})
        await asyncio.sleep(10)
        during = (await http.get(f"/v1/batches/{batch}")).json()
        crowd.stop()
        await running
        filler.unlink()
        after = await _until(http, batch, lambda now: now["status"] not in ("in_progress", "finalizing"))
        output = (await http.get(f"/v1/files/{after['output_file_id']}/content")).text.splitlines()
        names = Counter(json.loads(line)["custom_id"] for line in output)
    finding.lines += [
        f"an upload then: {refused.status_code} {refused.json()['error']['code']}",
        f"the batch then: {during['status']}, {during['request_counts']['completed']} of {LINES} answered",
        f"questions beside it: {counted(crowd.outcomes)}",
        f"the batch in the end: {after['status']}, {len(names)} of {LINES} lines, each once",
    ]
    finding.expect(refused.status_code == 507, "an upload to a full disk is a 507")
    finding.expect(during["status"] == "in_progress", "the batch waits for room")
    finding.expect(after["status"] == "completed", "the batch is completed")
    finding.expect(len(names) == LINES and set(names.values()) == {1}, "every line is answered once")
    finding.expect(all(o.what == "answered" for o in crowd.outcomes), "questions are answered meanwhile")
    return finding


def _lines(count: int) -> bytes:
    bodies = [{"messages": [{"role": "user", "content": f"Say {i}."}], "max_tokens": 8} for i in range(count)]
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


async def _submit(http: httpx.AsyncClient, lines: int) -> str:
    file = (await http.post("/v1/files", data={"purpose": "batch"}, files={"file": _lines(lines)})).json()["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return str((await http.post("/v1/batches", json=asked)).json()["id"])


async def _until(http: httpx.AsyncClient, batch: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The batch once ``reached`` says so. Raises ``TimeoutError`` after two minutes."""
    async with asyncio.timeout(120):
        while True:
            now: dict[str, Any] = (await http.get(f"/v1/batches/{batch}")).json()
            if reached(now):
                return now
            await asyncio.sleep(0.1)


def _fill(path: Path) -> None:
    """Write until the disk is full, to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 9, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


@contextmanager
def small_disk() -> Iterator[Path]:
    """A disk of 8 MiB in memory. Raises ``RuntimeError`` where it may not be mounted (that takes root)."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            raise RuntimeError(f"a small disk cannot be mounted: {mounted.stderr.decode().strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def _failed(outcomes: list[Outcome]) -> list[str]:
    told = Counter(f"{outcome.kind}: {outcome.detail}" for outcome in outcomes if outcome.what == "failed")
    return [f"{count} times {detail}" for detail, count in told.most_common(10)]


ORDEALS = ("kill", "hang", "disk", "terminate")


def undergo(name: str) -> Finding:
    """One of ``ORDEALS``, by a server of its own."""
    with ExitStack() as stack:
        folder = stack.enter_context(small_disk()) if name == "disk" else None
        data = ["--data-folder", str(folder / "data")] if folder else []
        found = stack.enter_context(server("--watchdog-seconds", str(WATCHDOG), *data))
        try:
            if folder:
                return asyncio.run(disk(found, folder / "filler"))
            return asyncio.run({"kill": kill, "hang": hang, "terminate": terminate}[name](found))
        except (Broken, RuntimeError, TimeoutError, httpx.HTTPError) as error:
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
