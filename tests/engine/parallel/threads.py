"""Ranks as threads of this process, over gloo as elsewhere: the same code but for the start of processes."""

from __future__ import annotations

import multiprocessing
import subprocess
import threading
from typing import Any

from mmserve.engine.parallel.worker import Mail, work
from mmserve.engine.parallel.workers import _Worker


class RankThread:
    """Stands for a rank's process, a ``subprocess.Popen``."""

    pid = -1

    def __init__(self, pipe: Any) -> None:
        self._status: int | None = None
        self._thread = threading.Thread(target=self._run, args=(pipe,), daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        if self._status is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0.0)
        return self._status

    def kill(self) -> None:
        raise AssertionError("a thread cannot be killed: the rank hangs")

    def _run(self, pipe: Any) -> None:
        self._status = work(Mail(pipe, leave=pipe.close))


def spawn(rank: int) -> _Worker:
    """In place of ``mmserve.engine.parallel.workers._spawn``."""
    ours, theirs = multiprocessing.Pipe()
    return _Worker(rank, RankThread(theirs), ours)  # type: ignore[arg-type]
