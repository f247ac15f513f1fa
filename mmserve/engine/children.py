"""Starting a process that serves this one over a socket pair, and saying how it ended: the engine's, a rank's.

``subprocess`` rather than ``multiprocessing``: the child imports nothing of the command line, brings no process that
tracks resources, may have children itself, and inherits the one socket that it is given.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

_ENDING = {signal.SIGINT, signal.SIGTERM}


def spawn(module: str, sock: socket.socket) -> subprocess.Popen[bytes]:
    """``python -m module FD``: a child that has ``sock`` as its end of the pair, finds modules where this process does,
    and shares what this one logs to but not its output, which a caller may read.

    It is born with the signals that end a server blocked, until it calls :func:`ignore_signals`: what is sent to the
    whole group is for the parent, which drains first.
    """
    found = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    # -P: the working directory is searched only where this process searches it.
    command = [sys.executable, "-P", "-m", module, str(sock.fileno())]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": found},
            pass_fds=[sock.fileno()],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """In the child: what ends it is its parent's word, or the end of the pair."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def describe_exit(status: int | None) -> str:
    """``Popen.returncode`` in words."""
    if status is None:
        return "it does not end, though it was killed"
    if status >= 0:
        return f"it ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"it was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
