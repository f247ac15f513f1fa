"""What ``import mmserve`` brings, and what it must not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import mmserve

HEAVY = ["torch", "torchvision", "transformers", "fastapi", "uvicorn", "PIL"]


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after ``statement``."""
    script = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", mmserve.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(mmserve, name)
    assert value is not None
    assert getattr(value, "__name__", name) == name
    assert getattr(mmserve, name) is value


def test_all_is_what_is_exported() -> None:
    assert len(set(mmserve.__all__)) == len(mmserve.__all__)
    assert mmserve.__all__ == sorted(mmserve.__all__, key=lambda name: (name.startswith("__"), name))
    assert set(mmserve._HOMES) == {name for name in mmserve.__all__ if not name.startswith("__")}
    assert set(mmserve.__all__) <= set(dir(mmserve))


def test_star_import_takes_every_public_name() -> None:
    found: dict[str, object] = {}
    exec("from mmserve import *", found)
    assert set(mmserve.__all__) <= found.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Cilent'"):
        _ = mmserve.Cilent
    assert not hasattr(mmserve, "torch")


def test_importing_the_package_loads_nothing_of_it() -> None:
    modules = loaded_by("import mmserve")
    assert not modules & {*HEAVY, "httpx", "numpy", "pydantic"}
    assert {name for name in modules if name.startswith("mmserve")} == {"mmserve"}


@pytest.mark.parametrize(
    "statement",
    [
        "import mmserve.client",
        "from mmserve import Client, AsyncClient, Answer",
        "import mmserve.caption",
        "from mmserve import Client; Client().close()",
    ],
)
def test_clients_load_nothing_heavy(statement: str) -> None:
    modules = loaded_by(statement)
    assert "httpx" in modules
    assert not modules & set(HEAVY)


def test_asking_with_bytes_needs_no_pillow() -> None:
    modules = loaded_by("import mmserve.client.pictures as p; p.read_pictures([b'abc'])")
    assert "PIL" not in modules
