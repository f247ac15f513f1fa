"""The page's benchmark runs and tells what it says it does; how fast it is, is not for a test."""

from __future__ import annotations

import re

import pytest

from bench.page import main

pytestmark = pytest.mark.browser


def test_what_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["page", "--pictures", "3", "--loads", "1"])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  the page weighs \d+ kB .*", lines[1])
    assert re.fullmatch(r"  first contentful paint: median \d+ ms, worst \d+ ms of 1 loads", lines[2])
    assert [line.split(":")[0].strip() for line in lines[4:]] == [
        "adding the pictures",
        "captioning, scrolling and typing",
        "scrolling through the captions",
    ]
