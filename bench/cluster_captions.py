"""A folder captioned by engines on Ray, one of which is killed: every good picture once.

The pictures are drawn from a seed, and some are cut short. ``mmserve caption --ray`` captions them on a Ray of its own;
once a part of them is done, one of its workers is killed (SIGKILL). The file is then read without our help.

    python -m bench.cluster_captions --count 20000 --corrupt 20 --workers 2
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench.caption import MAX_TOKENS, MODEL, Folder, Result, judge, make_folder
from bench.server import family_of

_POLL_SECONDS = 0.2


@dataclass(slots=True)
class Killing:
    """What was killed: a worker's process, after so many ``lines``; and how many workers there were before."""

    pid: int = 0
    workers: int = 0
    lines: int = 0


def caption(folder: Folder, out: Path, workers: int, *, kill_at: int) -> tuple[Result, Killing]:
    """The command on ``folder``, one of whose workers is killed when ``out`` has ``kill_at`` lines."""
    command = [sys.executable, "-m", "mmserve", "caption", str(folder.root), "--recursive", "--out", str(out)]
    command += ["--max-tokens", str(MAX_TOKENS), "--temperature", "0", "--device", "cpu", "--tier-bytes", "0"]
    command += ["--ray", "--workers", str(workers), "--worker-cpus", "0.5"]
    result, killing = Result(), Killing()
    start = first = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process,  # Ray prints what it lost
    ):
        while process.poll() is None:
            lines = out.read_bytes().count(b"\n") if out.exists() else 0
            if not lines:
                first = time.monotonic()
            if not killing.pid and lines >= kill_at:
                found = workers_of(process.pid)
                killing = Killing(found[0], len(found), lines)
                os.kill(killing.pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        end = time.monotonic()
        errors.seek(0)
        said = errors.read()
    judge(folder, out, subprocess.CompletedProcess(command, process.returncode, "", said), result)
    result.seconds, result.rate = end - start, result.lines / (end - first)
    if not killing.pid:
        result.problems.append("the run was over before a worker could be killed")
    return result, killing


def workers_of(pid: int) -> list[int]:
    """The processes of Ray Data's actors below process ``pid``, which name themselves ``ray::...MapWorker...``."""
    found = []
    for one in family_of(pid):
        with contextlib.suppress(OSError):
            if "MapWorker" in Path(f"/proc/{one}/cmdline").read_text():
                found.append(one)
    return sorted(found)


def report(folder: Folder, result: Result, killing: Killing, workers: int) -> Sequence[str]:
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}"
    return [
        f"{MODEL}, {len(folder.files)} files of which {len(folder.corrupt)} are corrupt, {workers} workers, {machine}",
        f"  worker {killing.pid}, one of {killing.workers}, was killed after {killing.lines} captions",
        f"  {result.lines} captions of {len(folder.good)} good pictures, problems: {len(result.problems)}",
        *(f"    {problem}" for problem in result.problems[:20]),
        f"  {result.seconds:.0f} s; {result.rate:.1f} pictures/s from the first caption on",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--corrupt", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(Path(place) / "pictures", given.count, given.corrupt, 0, pictures=None, seed=given.seed)
        out = Path(place) / "captions.jsonl"
        result, killing = caption(folder, out, given.workers, kill_at=given.count // 4)
        print("\n".join(report(folder, result, killing, given.workers)))
    return 1 if result.problems else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
