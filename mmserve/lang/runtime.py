"""Runtime: a server in a process of its own, for as long as a program needs it."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections import deque
from typing import Any

from mmserve.errors import ConfigError
from mmserve.lang.endpoint import RuntimeEndpoint

_READY = " is served at "


class Runtime(RuntimeEndpoint):
    """``mmserve serve`` with ``model_path`` on ``port`` (0 takes a free one), and the endpoint that speaks to it.

    ``flags`` are those of the command: ``max_running=8`` is ``--max-running 8``. The constructor returns once the
    server answers, and raises ``ConfigError`` with what it printed where it does not within ``timeout`` seconds.
    ``shutdown``, the end of a ``with`` block, and the end of this process end it.
    """

    def __init__(self, model_path: str, port: int = 0, *, timeout: float = 600.0, **flags: Any) -> None:
        command = [sys.executable, "-m", "mmserve", "serve", "--model", model_path, "--port", str(port)]
        for name, value in flags.items():
            option = "--" + name.replace("_", "-")
            command += [option] if value is True else [option, str(value)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._ended = weakref.finalize(self, _end, self._process)
        printed: deque[str] = deque(maxlen=50)
        ready = threading.Event()
        threading.Thread(target=_read, args=(self._process, printed, ready), daemon=True).start()
        found = ready.wait(timeout)
        url = next((line.rpartition(" ")[2].strip() for line in printed if _READY in line), None)
        if not found or url is None:
            self._ended()
            raise ConfigError("the server did not start; it printed:\n" + "".join(printed))
        self.url = url
        super().__init__(url)

    def shutdown(self) -> None:
        """End the server. May be called again."""
        self._ended()

    def close(self) -> None:
        super().close()
        self.shutdown()


def _read(process: subprocess.Popen[str], printed: deque[str], ready: threading.Event) -> None:
    """Read on for as long as the server lives, so that it never waits for a reader."""
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            printed.append(line)
            if _READY in line:
                ready.set()
    ready.set()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
