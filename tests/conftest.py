"""Fixtures that several folders of tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from mmserve.checkpoint import Checkpoint
from mmserve.registry import load_registry
from tests.checkpoints import tiny_qwen2_vl

if TYPE_CHECKING:
    from tests.web.fakes import FakeEngine, FakePrompts


# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C and so would the programs that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device; the CPU twin runs everywhere"))


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Servers that tests start keep their files and batches here, and not in the home of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


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


@pytest.fixture
def engine() -> FakeEngine:
    """A stand-in that says "It is a cat."; give it another ``script`` for something else."""
    from tests.web.fakes import FakeEngine  # here, so that the tests of a GPU need no server

    return FakeEngine()


@pytest.fixture
def prompts() -> FakePrompts:
    from tests.web.fakes import FakePrompts

    return FakePrompts()


@pytest.fixture
def server(engine: FakeEngine, prompts: FakePrompts) -> Iterator[str]:
    """The base URL of a server over the stand-ins, with everything else as it is by default."""
    from tests.web.fakes import serve
    from web.service import ServedModel, Service

    with serve(Service(ServedModel("pocket-vl"), prompts, engine, 512)) as url:
        yield url
