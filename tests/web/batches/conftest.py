from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web.batches.office import Clock

MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder that is not there yet; in memory where that is possible, since a disk takes its time to sync."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path / "data"
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as above:
        yield Path(above) / "data"


@pytest.fixture
def unix() -> Clock:
    return Clock()
