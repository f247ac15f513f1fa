"""Memory that a process freed is the system's again."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from mmserve.trim import trim, trim_often

CHILD = """
import ctypes, re, threading
from mmserve.trim import trim

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def work():  # 100 MiB, of which every sixteenth block stays
    blocks = [libc.malloc(1 << 16) for _ in range(1600)]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 16)
    for number, block in enumerate(blocks):
        if number % 16:
            libc.free(block)

before = own()
thread = threading.Thread(target=work)
thread.start(); thread.join()
held = own() - before
assert trim()
print(held, own() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_what_was_freed_goes_back() -> None:
    if not trim():
        pytest.skip("the C library is not glibc")
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    held, left = map(int, done.stdout.split())
    assert held > 80
    assert left < 20


def trimmers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mmserve-trim"]


def test_it_is_done_in_a_thread_that_nobody_waits_for() -> None:
    before = trimmers()
    trim_often(3600.0)
    mine = [thread for thread in trimmers() if thread not in before]
    assert len(mine) == trim()
    assert all(thread.daemon for thread in mine)
