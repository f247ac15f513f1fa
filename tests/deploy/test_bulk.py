"""What a worker does and what becomes of its rows, without Ray."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserve.caption import PicturePrompts, Progress, open_jsonl
from mmserve.deploy.bulk import COLUMNS, Collector, Row, Worker
from mmserve.errors import CorruptPicture, EngineUnavailable
from tests.deploy.artist import OpenArtist


def asked(trace: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in trace.read_text().splitlines()]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "trace").touch()
    return tmp_path / "trace"


@pytest.fixture
def worker(trace: Path) -> Iterator[Worker]:
    worker = Worker(OpenArtist(trace), PicturePrompts("What?", Path()), frozenset({"done.png"}))
    yield worker
    worker.close()


def rows(batch: dict[str, list[Any]]) -> list[Row]:
    assert tuple(batch) == COLUMNS
    return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def test_a_batch_of_files(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a cat")
    found = rows(worker({"file": ["a.png", "b.png"], "path": [str(tmp_path / name) for name in ("a.png", "b.png")]}))
    assert [row["file"] for row in found] == ["a.png", "b.png"]
    assert found[0]["caption"] == " a caption of a cat\n"
    assert (found[0]["prompt_tokens"], found[0]["error"]) == (90, "")
    assert "No such file" in found[1]["error"]


def test_a_batch_of_bytes_as_ray_gives_them(worker: Worker, trace: Path) -> None:
    batch = {
        "file": np.array(["a", "bad", "done.png"], dtype=object),
        "bytes": np.array([b"one", b"bad one", b"three"], dtype=object),
    }
    found = rows(worker(batch))  # type: ignore[arg-type]
    assert [(row["file"], row["code"]) for row in found] == [("a", ""), ("bad", "corrupt_image")]
    assert sorted(asked(trace)) == ["bad one", "one"], "what has its caption was not asked about"


def test_a_batch_of_pictures_that_are_all_done_has_no_rows(worker: Worker) -> None:
    assert rows(worker({"file": ["done.png"], "bytes": [b"x"]})) == []


def test_what_would_meet_every_picture_ends_the_run(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object) -> None:
        raise EngineUnavailable("the engine has ended")

    monkeypatch.setattr("tests.deploy.artist.TracedArtist.ask", gone)
    with pytest.raises(EngineUnavailable):
        worker({"file": ["a"], "bytes": [b"x"]})


def row(file: str, caption: str = " a cat ", error: str = "") -> Row:
    counts = {name: number for number, name in enumerate(COLUMNS) if name.endswith("tokens") or "cached" in name}
    code = CorruptPicture.code if error else ""
    return {"file": file, "caption": caption, "model": "m", "sha256": "0" * 64, "error": error, "code": code, **counts}


def collector(ledger: Any, on_progress: Callable[[Progress], None] | None = None) -> Collector:
    return Collector(ledger, str.strip, itertools.count().__next__, total=3, on_progress=on_progress)


def test_of_rows_that_come_twice_the_first_is_kept(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with open_jsonl(tmp_path / "captions.jsonl") as ledger:
        collect = collector(ledger, seen.append)
        collect.take([row("a"), row("b", error="it is damaged"), row("a", "another")])
        collect.take([row("b", error="it is damaged"), row("c", "\ud800half")])
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [(line["file"], line["caption"]) for line in lines] == [("a", "a cat"), ("c", "?half")]
    assert collect.twice == 2
    assert [(type(f.error), f.file) for f in collect.failures] == [(CorruptPicture, "b")]
    assert [(p.captioned, p.failed, p.left) for p in seen] == [(1, 0, 2), (1, 1, 1), (2, 1, 0)]


def test_more_pictures_than_were_known_at_first_are_counted(tmp_path: Path) -> None:
    """How many there are in a store is known when they have been listed."""
    with open_jsonl(tmp_path / "captions.jsonl") as ledger:
        collect = Collector(ledger, str.strip, itertools.count().__next__, total=0, skipped=2)
        collect.take([row("a"), row("b")])
    assert (collect.progress().total, collect.progress().left) == (4, 0)
