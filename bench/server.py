"""A server of ours in a process of its own, for a measurement."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def served(*flags: str, timeout: float = 300.0) -> Iterator[str]:
    """The URL of ``mmserve serve`` with ``flags`` on a free port, until the block ends.

    Raises ``RuntimeError`` with what it printed when it ends before it serves.
    """
    command: Sequence[str] = [sys.executable, "-m", "mmserve", "serve", "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    printed = []
    try:
        for line in process.stderr:
            printed.append(line)
            if " is served at " in line:
                yield line.rpartition(" ")[2].strip()
                break
        else:
            raise RuntimeError("the server did not start:\n" + "".join(printed))
    finally:
        process.terminate()
        process.communicate(timeout=timeout)
