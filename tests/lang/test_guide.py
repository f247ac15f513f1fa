"""Every Python block of docs/language.md runs, in order, and says what the guide says it does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmserve as sgl
from mmserve.lang import default
from tests.lang.blocks import blocks_of
from tests.lang.conftest import EXAMPLES

GUIDE = Path(__file__).parent.parent.parent / "docs" / "language.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for picture in EXAMPLES.glob("*.png"):
        shutil.copy(picture, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[sgl.Engine]]:
    """The engines that the guide makes; closed at the end."""
    made: list[sgl.Engine] = []
    set_default = default.set_default_backend

    def noting(backend: Any) -> None:
        made.append(backend)
        set_default(backend)

    monkeypatch.setattr(sgl, "set_default_backend", noting)
    yield made
    for engine in made:
        engine.close()


@pytest.mark.usefixtures("folder")
def test_every_block_runs_and_prints_what_it_says(opened: list[sgl.Engine], capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "guide"}
    blocks = blocks_of(GUIDE)
    for block in blocks:
        block.run(names)
        printed = capsys.readouterr().out
        for line in block.source.splitlines():
            promise = line.partition("  # ")[2]
            if promise and "print(" in line:
                start, ellipsis, _ = promise.partition(" …")
                assert (start if ellipsis else promise + "\n") in printed, f"{GUIDE.name}: {line}"
    assert len(blocks) >= 14
    assert len(opened) == 1


def test_the_guide_has_an_example_for_each_use() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for heading in (
        "A picture, and follow-up questions",
        "Classify and route",
        "Extraction into a pydantic model",
        "Many questions about one picture, in parallel",
        "A résumé parser",
        "News to records",
    ):
        section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        assert "```python" in section, heading
