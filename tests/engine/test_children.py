"""A process that serves this one: what it has of ours, and how its end is told."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmserve.engine.children import describe_exit, spawn

_CHILD = """
import os, socket, sys
from mmserve.engine.children import ignore_signals
with socket.socket(fileno=int(sys.argv[1])) as pair:
    print("nobody reads this")
    open_files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    pair.sendall(repr([sys.stdin.read(), len(open_files)]).encode() + b"\\n")
    pair.recv(1)
    ignore_signals()
    pair.sendall(b"still here")
    pair.recv(1)
"""


def test_it_has_the_socket_and_waits_for_its_parent_to_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "minds_the_pair.py").write_text(_CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    ours, theirs = socket.socketpair()
    kept, other = socket.socketpair()  # which a child has nothing to do with
    with ours, kept, other:
        with theirs:
            process = spawn("minds_the_pair", theirs)
        # What comes while it starts waits, and is then not meant for it.
        for number in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
        assert ours.recv(100) == b"['', 5]\n"  # the three, the pair and the folder that it lists
        ours.sendall(b".")
        assert ours.recv(100) == b"still here"
        process.send_signal(signal.SIGTERM)
        assert process.poll() is None
        ours.sendall(b".")
        assert process.wait(20) == 0
    assert capfd.readouterr().out == ""


def test_a_child_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(FileNotFoundError):
        spawn("nothing", theirs)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_exits_in_words() -> None:
    assert describe_exit(subprocess.run([sys.executable, "-c", "raise SystemExit(3)"]).returncode) == (
        "it ended with status 3"
    )
    assert describe_exit(-9) == "it was ended by SIGKILL, perhaps for want of memory"
    assert describe_exit(-11) == "it was ended by SIGSEGV"
    assert describe_exit(-63) == "it was ended by signal 63"
    assert "killed" in describe_exit(None)
