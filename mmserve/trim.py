"""Memory that was freed goes back to the system.

A server allocates and frees in many threads and sizes. glibc keeps what is freed in an arena for each thread, between
blocks that are still in use, and such a process seems to leak: some 300 MiB in four minutes of 256 clients, of which
``malloc_trim`` gives all back in some ten milliseconds.
"""

from __future__ import annotations

import ctypes
import threading

SECONDS = 30.0


def trim() -> bool:
    """Give free pages back. False where the C library cannot (it is not glibc)."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, Windows no such library
        return False
    malloc_trim(0)
    return True


def trim_often(seconds: float = SECONDS) -> None:
    """Begin to ``trim`` every ``seconds``, in a thread that ends with the process."""
    pause = threading.Event()

    def work() -> None:
        while trim():
            pause.wait(seconds)

    threading.Thread(target=work, name="mmserve-trim", daemon=True).start()
