"""A plugin for pytest (``-p tests.deploy.through_serve``): tests that start ``mmserve serve`` with the embedded model
meet three replicas of it on a Ray of its own instead, behind Ray Serve."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import bench.server

_ALIKE = ["--replicas", "3", "--cpus", "0.2", "--port", "8457", "--object-store-bytes", "200000000"]


@contextmanager
def _deployed(*flags: str, **_: object) -> Iterator[str]:
    command = [sys.executable, "-m", "mmserve", "deploy", *_ALIKE, *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield next(found[1] for line in process.stderr if (found := re.search(r" is served at (\S+)", line)))
        finally:
            process.terminate()
            process.communicate(timeout=120)


def pytest_configure() -> None:
    """Before any test is imported, so that all of them get this."""
    pytest.MonkeyPatch().setattr(bench.server, "served", _deployed)
