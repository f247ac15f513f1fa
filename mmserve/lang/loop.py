"""The event loop that computes what programs wait for: one daemon thread of this process, started on first use."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own.

    HTTP connections belong to one loop, and a program may use several backends and be read from any thread: so there is
    one loop for all.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="mmserve-programs", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work`` there and wait for it. The loop's own thread must not call this: it would wait for itself."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self) -> None:
        """Cancel what is running and end the thread; for the end of the process."""
        with contextlib.suppress(RuntimeError, TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop).result(timeout=2.0)
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():
            self.loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_lock = threading.Lock()
_running: dict[int, LoopThread] = {}  # by process: a forked child has none of its parent's threads


def program_loop() -> LoopThread:
    """This process's loop."""
    with _lock:
        found = _running.get(os.getpid())
        if found is None:
            found = _running[os.getpid()] = LoopThread()
            atexit.register(found.stop)
        return found
