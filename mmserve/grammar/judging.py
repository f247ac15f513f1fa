"""Judging in a process of its own, under a deadline.

A caller's schema may make any validator run for ever or use up memory (a regular expression that backtracks, choices
inside choices), and Python's ``re`` does not let other threads run meanwhile. A process can be ended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from mmserve.grammar.spec import Constraint

STARTUP_SECONDS = 30.0
MEMORY_BYTES = 2 * 1024**3


class JudgeProcess:
    """``judge`` with an end: what takes longer than ``seconds`` is ``None``, nobody can tell.

    The process starts with the first question, answers one at a time, and is replaced when it had to be ended. Thread
    safe; a call blocks its thread.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __call__(self, constraint: Constraint, text: str) -> bool | None:
        with self._lock:
            try:
                pipe = self._pipe or self._start()
                pipe.send((constraint, text))
                if pipe.poll(self._seconds):
                    verdict: bool | None = pipe.recv()
                    return verdict
            except (EOFError, OSError):
                pass  # it ran out of memory, or was ended from outside
            self._end()
            return None

    def close(self) -> None:
        with self._lock:
            self._end()

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="mmserve-judge", daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = ours
        if not ours.poll(STARTUP_SECONDS):
            raise EOFError
        ours.recv()
        return ours

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _serve(pipe: Connection) -> None:
    """The process: constraints and texts come in, verdicts go out, until the pipe ends."""
    from mmserve.grammar.judge import judge

    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    pipe.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            constraint, text = pipe.recv()
            try:
                verdict = judge(constraint, text)
            except Exception:
                verdict = None
            pipe.send(verdict)
