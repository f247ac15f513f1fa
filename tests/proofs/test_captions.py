"""A folder of pictures, some corrupt and some copies, is captioned by a command that is killed: each good one once.

The small form runs with the tests; 5,000 pictures, whose rate is judged too, with ``make proof``. The same as a
command: ``python -m bench.caption``.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from bench.caption import Folder, Result, compare, draw, judge, make_folder, report, run_killed

SHARE = 0.9
"""The least part of the engine's own rate that captioning must reach."""


def test_a_killed_run_is_completed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 60, 3, 6, pictures=None, seed=1)
    result = run_killed(folder, tmp_path / "captions.jsonl", 1, seed=1, flags=["--device", "cpu", "--concurrency", "8"])
    print(report(folder, result, 8))
    assert result.problems == []
    assert 6 <= result.killed_at[0] < result.lines == 57


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_five_thousand_pictures(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 5000, 20, 100, pictures=None, seed=0)
    result = run_killed(folder, tmp_path / "captions.jsonl", 2, seed=0)
    asyncio.run(compare(folder, 32, result))
    print(report(folder, result, 32))
    assert result.problems == []
    assert result.share >= SHARE


def test_the_folder_is_what_it_says(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("a.png", "again.png"):
        (given / name).write_bytes(_png(draw(random.Random(5))))
    folder = make_folder(tmp_path / "made", 620, 5, 20, pictures=given, seed=3)
    on_disk = {path.relative_to(folder.root).as_posix(): path.read_bytes() for path in folder.root.rglob("*.png")}
    assert set(on_disk) == set(folder.files)
    assert len(folder.files) == 620
    digests = {name: hashlib.sha256(data).digest() for name, data in on_disk.items()}
    assert len({digests[name] for name in folder.good}) == len(folder.good) == 595
    assert all(digests[copy] == digests[original] for copy, original in folder.copies.items())
    assert (given / "a.png").read_bytes() in on_disk.values()
    for name in folder.corrupt:
        with pytest.raises(OSError, match="truncated"):
            Image.open(io.BytesIO(on_disk[name])).load()


def test_the_judge_finds_what_is_wrong(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ("a.png", "b.png"), ("x.png",), {"c.png": "a.png"})
    line: dict[str, object] = {"caption": "c", "usage": {}}
    good: list[dict[str, object]] = [
        {"file": "a.png", **line},
        {"file": "b.png", **line},
        {"file": "c.png", "caption": "c", "usage": None},
    ]

    def problems(lines: list[dict[str, object]], printed: str = "  x.png: damaged", status: int = 1) -> list[str]:
        out = tmp_path / "c.jsonl"
        out.write_text("".join(json.dumps(each) + "\n" for each in lines))
        result = Result()
        judge(folder, out, subprocess.CompletedProcess([], status, "", printed), result)
        return result.problems

    assert problems(good) == []
    assert problems([*good, good[0]])
    assert problems(good[:2])
    assert problems([*good[:2], {**good[2], "caption": "other"}])
    assert problems([*good[:2], {**good[2], "usage": {}}])
    assert problems([{**each, "caption": " "} for each in good])
    assert problems(good, "")
    assert problems(good, status=0)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
