"""The processes of the ranks 1, 2, …: started, told, watched and ended by rank 0's."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.children import spawn
from mmserve.engine.parallel.messages import Failed, Start, get, put
from mmserve.errors import EngineUnavailable, MMServeError

log = logging.getLogger(__name__)

END_SECONDS = 15.0
"""For a process to end that was told to; then it is killed."""

_LAST_WORDS_SECONDS = 1.0
"""For a rank that failed to say so, where rank 0 has felt it."""

_MODULE = "mmserve.engine.parallel.worker"


@dataclass(frozen=True, slots=True, eq=False)
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    pipe: Connection


class Workers:
    """One process for each rank but 0. The methods belong to one thread at a time."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, folder: Path) -> None:
        """Starts them; they load at once, and meet in ``folder``."""
        self._size = config.tp_size
        self._closing = False
        self._workers: list[_Worker] = []
        try:
            for rank in range(1, self._size):
                self._workers.append(_spawn(rank))
                put(self._workers[-1].pipe, Start(checkpoint, config, rank, str(folder)))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The processes' ids, in the order of their ranks."""
        return [worker.process.pid for worker in self._workers]

    @property
    def alive(self) -> bool:
        return all(worker.process.poll() is None for worker in self._workers)

    def tell(self, messages: Sequence[Any]) -> None:
        """Send each rank its message. Raises ``OSError`` where one is gone."""
        for worker, message in zip(self._workers, messages, strict=True):
            put(worker.pipe, message)

    def hear(self, kind: type[Any]) -> list[Any]:
        """A message of each rank, in order. Raises the error of a rank that failed instead, and
        ``EngineUnavailable`` for one that ended without a word."""
        return [self._hear(worker, kind) for worker in self._workers]

    def watch(self, on_end: Callable[[], None]) -> None:
        """Call ``on_end`` in another thread when a process ends before ``close``."""
        for worker in self._workers:
            name = f"mmserve-watch-{worker.rank}"
            threading.Thread(target=self._wait, args=(worker, on_end), name=name, daemon=True).start()

    def explain(self, error: Exception) -> EngineUnavailable:
        """Why a step could not be computed, where rank 0 saw ``error``: what became of the other ranks, if anything."""
        found = [(worker.rank, said) for worker in self._workers if (said := self._last_words(worker)) is not None]
        if not found:
            found = [(0, f"{type(error).__name__}: {error}")]
        return EngineUnavailable("; ".join(f"rank {rank} of {self._size} failed: {said}" for rank, said in found))

    def close(self) -> None:
        """End them: they see the end of their sockets. Where one has ended before, the others may wait for it in a step
        and have nothing to finish: they are killed."""
        broken = not self.alive
        self._closing = True
        for worker in self._workers:
            worker.pipe.close()
            if broken and worker.process.poll() is None:
                worker.process.kill()
        for worker in self._workers:
            try:
                worker.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("the process of rank %d does not end and is killed", worker.rank)
                worker.process.kill()
                worker.process.wait()

    def _last_words(self, worker: _Worker) -> str | None:
        """Why it ended; ``None`` where it did not."""
        try:
            while worker.pipe.poll(_LAST_WORDS_SECONDS):
                self._hear(worker, object)
        except MMServeError as fault:
            return fault.message
        except OSError:
            return _ended(worker)
        return None

    def _hear(self, worker: _Worker, kind: type[Any]) -> Any:
        try:
            message = get(worker.pipe)
        except (EOFError, OSError):
            raise EngineUnavailable(_ended(worker)) from None
        if isinstance(message, Failed):
            log.error("rank %d failed:\n%s", worker.rank, message.traceback)
            raise message.error
        assert isinstance(message, kind), f"rank {worker.rank} sent {message}"
        return message

    def _wait(self, worker: _Worker, on_end: Callable[[], None]) -> None:
        worker.process.wait()
        if not self._closing:
            on_end()


def _ended(worker: _Worker) -> str:
    """Why there is nothing to hear of a process any more."""
    try:
        status = worker.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return f"its process {worker.process.pid} has closed its socket"
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return f"its process {worker.process.pid} ended {how}"


def _spawn(rank: int) -> _Worker:
    ours, theirs = socket.socketpair()
    try:
        process = spawn(_MODULE, theirs)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return _Worker(rank, process, Connection(ours.detach()))
