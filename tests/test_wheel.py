"""The wheel carries all it needs: models.yaml, the page, the weights; and answers with no repository near it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_data_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for needed in (
        "mmserve/models.yaml",
        "mmserve/py.typed",
        "mmserve/assets/pocket-vl/model.safetensors",
        "mmserve/assets/examples/examples.json",
        "web/static/index.html",
        "kernels/attention.py",
        "vision/decode.py",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "training/"))]


def test_the_wheel_answers_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    where = "import mmserve, web; print(mmserve.__file__, web.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert all(path.startswith(str(tmp_path)) for path in found.stdout.split())
    demo = [sys.executable, "-m", "mmserve", "demo", "--once", "--port", "0"]
    run = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    lines = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
    assert lines["picture"].startswith(str(tmp_path))
    assert lines["answer"]
