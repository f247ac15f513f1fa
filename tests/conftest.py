"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmserve.checkpoint import Checkpoint
from mmserve.registry import load_registry
from tests.checkpoints import tiny_qwen2_vl


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device; the CPU twin runs everywhere"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2-VL."""
    return tiny_qwen2_vl(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def checkpoint(checkpoint_path: Path) -> Checkpoint:
    return load_registry().resolve(str(checkpoint_path))


@pytest.fixture(scope="session")
def pocket_vl() -> Checkpoint:
    """The embedded model."""
    return load_registry().resolve("pocket-vl")
