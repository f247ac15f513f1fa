"""A server of ours in a process of its own, for a measurement, and what can be seen of it from outside."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

MEASURES_MEMORY = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Server:
    """``mmserve serve``: its address, its process, and the file that its log goes to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def errors(self) -> list[str]:
        """What it logged as errors."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("ERROR")]


@contextmanager
def server(*flags: str, timeout: float = 300.0) -> Iterator[Server]:
    """``mmserve serve`` with ``flags`` on a free port, until the block ends.

    Raises ``RuntimeError`` with what it printed when it ends before it serves, or does not serve within ``timeout``
    seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        command = [sys.executable, "-m", "mmserve", "serve", "--port", "0", *flags]
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file)
        try:
            yield Server(_address(process, log, timeout), process, log)
        finally:
            process.terminate()
            process.wait(timeout)


@contextmanager
def served(*flags: str, timeout: float = 300.0) -> Iterator[str]:
    """The URL of a ``server``."""
    with server(*flags, timeout=timeout) as found:
        yield found.url


def _address(process: subprocess.Popen[bytes], log: Path, timeout: float) -> str:
    give_up = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < give_up:
        found = re.search(r" is served at (\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise RuntimeError("the server did not start:\n" + log.read_text())


def family_of(pid: int) -> list[int]:
    """A process and its descendants; empty where the system has no ``/proc``."""
    found: list[int] = []
    pending = [pid] if MEASURES_MEMORY else []
    while pending:
        found.append(pending.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            pending += map(int, children.read_text().split())
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes of a process and its descendants; zeros where the system has no ``/proc``."""
    resident = anonymous = 0
    for one in family_of(pid):
        status = Path(f"/proc/{one}/status").read_text()
        resident += int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
        anonymous += int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    return resident, anonymous


async def stats_of(http: httpx.AsyncClient) -> dict[str, float]:
    """The engine's counters and gauges."""
    found: dict[str, float] = (await http.get("/server_info", timeout=120)).json()["stats"]
    return found


async def at_rest(http: httpx.AsyncClient) -> dict[str, float]:
    """The engine's counters once nothing runs any more, or after ten seconds of waiting for that."""
    give_up = time.monotonic() + 10
    while True:
        stats = await stats_of(http)
        busy = stats["requests_running"] or stats["requests_waiting"] or stats["pictures_in_work"]
        if not busy or time.monotonic() > give_up:
            return stats
        await asyncio.sleep(0.05)


def what_is_left(stats: Mapping[str, float]) -> list[str]:
    """Sentences that must hold of an engine that nobody asks anything, and do not."""
    ended = stats["requests_finished"] + stats["requests_failed"] + stats["requests_aborted"]
    held = {
        "no request is left": stats["requests_running"] == stats["requests_waiting"] == 0,
        "every request ended once": stats["requests_added"] == ended,
        "every slot is free or cached": stats["slots_free"] + stats["slots_cached"] == stats["slots_total"],
        "nothing that is cached is locked": stats["slots_evictable"] == stats["slots_cached"],
        "no rows are held": stats["encoder_cache_held_bytes"] == 0,
        "no picture is in work": stats["pictures_in_work"] == 0,
    }
    return [sentence for sentence, true in held.items() if not true]
