"""The process of a rank other than 0: ``python -m mmserve.engine.parallel.worker FD``.

It loads its share and computes the plans that come over the socket ``FD``. It ends when that socket ends, so it never
outlives the process that started it, whatever that died of.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from mmserve.engine.children import ignore_signals
from mmserve.engine.parallel.group import ProcessRanks
from mmserve.engine.parallel.messages import Arrived, Damaged, Failed, Ready, Slots, Start, Step, get, put
from mmserve.engine.runner import Runner, build_runner, pick_device
from mmserve.errors import MMServeError
from mmserve.models.shared import EncodingFailed
from mmserve.trim import trim_often

LEAVE_SECONDS = 2.0
"""For what is under way when the socket ends; it may wait for a rank that is gone. Short, since the next engine may be
starting, which measures how much memory is free."""


class Mail:
    """The socket to rank 0. A thread reads it, so that its end is seen while the device computes.

    ``leave`` is called ``LEAVE_SECONDS`` after that end.
    """

    def __init__(self, pipe: Connection, leave: Callable[[], None]) -> None:
        self._pipe, self._leave = pipe, leave
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._read, name="mmserve-rank-mail", daemon=True).start()

    def send(self, message: object) -> None:
        put(self._pipe, message)

    def next(self) -> Any:
        """The next message; raises ``EOFError`` where there will be none."""
        message = self._inbox.get()
        if message is None:
            raise EOFError
        return message

    def _read(self) -> None:
        try:
            while True:
                self._inbox.put(get(self._pipe))
        except (EOFError, OSError):
            self._inbox.put(None)
        time.sleep(LEAVE_SECONDS)
        self._leave()


def serve(mail: Mail, runner: Runner) -> None:
    """Compute steps until there are no more. What a step raises ends the process: the ranks are out of step then."""
    while True:
        step: Step = mail.next()
        for content, prepared in step.prepared:
            runner.put_prepared(content, prepared)
        try:
            computed = runner.compute(step.plan)
        except EncodingFailed:  # on every rank alike
            continue
        if step.plan.fetch:
            mail.send(Damaged(computed.damaged))


def run(mail: Mail) -> None:
    """Start as told, then serve. Raises ``EOFError`` at the end."""
    start: Start = mail.next()
    device = pick_device(start.config.device, start.rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mail.send(Arrived())
    ranks = ProcessRanks(start.rank, start.config.tp_size, Path(start.folder), device)

    def agree(count: int) -> int:
        mail.send(Slots(count))
        agreed: Slots = mail.next()
        return agreed.count

    runner = build_runner(start.checkpoint, start.config, ranks, agree)
    mail.send(Ready())
    try:
        serve(mail, runner)
    finally:
        runner.close()


def main(argv: list[str]) -> int:
    ignore_signals()
    os.set_inheritable(int(argv[0]), False)
    trim_often()
    return work(Mail(Connection(int(argv[0])), leave=lambda: os._exit(1)))


def work(mail: Mail) -> int:
    """All that a rank does; the exit status. An error is told to rank 0."""
    try:
        run(mail)
    except EOFError:
        return 0
    except Exception as error:
        told = error if isinstance(error, MMServeError) else MMServeError(f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # rank 0 may be gone, and may be why
            mail.send(Failed(told, traceback.format_exc()))
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # Nothing is left to clean up, and to take torch down in order takes seconds.
    sys.stderr.flush()
    os._exit(status)
