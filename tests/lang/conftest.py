"""Fixtures of the language's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mmserve as sgl
from bench.server import served
from mmserve.lang import default
from tests.lang.fakes import FakeBackend

EXAMPLES = Path(sgl.__file__).parent / "assets" / "examples"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """The backend of programs that name none."""
    monkeypatch.setattr(default, "_chosen", [])
    backend = FakeBackend()
    sgl.set_default_backend(backend)
    return backend


@pytest.fixture(scope="package")
def engine() -> Iterator[sgl.Engine]:
    """The embedded model in this process; its invariants are checked after every step."""
    with sgl.Engine(model_path="pocket-vl", device="cpu", check_invariants=True) as engine:
        yield engine


@pytest.fixture(scope="package")
def server() -> Iterator[str]:
    """The URL of ``mmserve serve`` with the embedded model, in a process of its own."""
    with served("--device", "cpu") as url:
        yield url


@pytest.fixture
def endpoint(server: str) -> Iterator[sgl.RuntimeEndpoint]:
    with sgl.RuntimeEndpoint(server) as endpoint:
        yield endpoint
