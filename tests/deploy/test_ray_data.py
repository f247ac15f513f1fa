"""Captions by Ray Data on a Ray of its own, by captioners without a model."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray.data", reason="Ray is an extra; make cluster installs it and runs these")

import pyarrow as pa
import pyarrow.parquet as pq

from mmserve.caption import Mode, PicturePrompts, Progress, open_jsonl
from mmserve.caption.files import pictures_in
from mmserve.deploy.bulk import Store, Table, Workers
from mmserve.deploy.cluster import Cluster, connected
from mmserve.deploy.parquet import open_parquet, read_captions
from mmserve.deploy.ray_data import caption_dataset
from mmserve.errors import ConfigError
from tests.deploy.artist import OpenArtist

pytestmark = pytest.mark.ray

WORKERS = Workers(2, cpus=0.2, batch=8)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(Cluster(None, 100_000_000, cpus=2)):
        yield


def paint(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05}.png").write_bytes(f"picture {number}".encode())
    return folder


class Killer:
    """Kills the process that wrote the trace's last line, once there are ``after`` captions."""

    def __init__(self, trace: Path, after: int) -> None:
        self._trace = trace
        self._after = after
        self.killed = 0

    def __call__(self, progress: Progress) -> None:
        if not self.killed and progress.captioned >= self._after:
            self.killed = int(self._trace.read_text().splitlines()[-1].split(" ")[0])
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.parametrize("count", [400, 20_000])
def test_every_picture_has_one_caption_though_a_worker_is_killed(tmp_path: Path, count: int) -> None:
    folder, trace, out = paint(tmp_path / "pictures", count), tmp_path / "trace", tmp_path / "captions.jsonl"
    (folder / "00007.png").write_bytes(b"bad")
    source, killer = pictures_in(folder), Killer(trace, after=count // 8)
    with open_jsonl(out) as ledger:
        prompts = PicturePrompts("What is {name}?", folder)
        report = caption_dataset(
            source, OpenArtist(trace), ledger, frozenset(), prompts=prompts, workers=WORKERS, on_progress=killer
        )
    assert killer.killed
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert Counter(line["file"] for line in lines) == Counter(set(source.files) - {"00007.png"})
    assert all(line["caption"] == f"a caption of picture {int(line['file'][:5])}" for line in lines)
    assert [failure.file for failure in report.failures] == ["00007.png"]
    assert (report.progress.captioned, report.progress.failed) == (count - 1, 1)
    traced = [line.split(" ", 1) for line in trace.read_text().splitlines()]
    assert len({pid for pid, _ in traced}) >= 2
    print(f"{count} pictures, {len(lines)} captions, {len(traced) - count} asked about again after a worker was killed")


def test_a_run_that_is_repeated_asks_for_what_is_missing(tmp_path: Path) -> None:
    folder, trace, out = paint(tmp_path / "pictures", 20), tmp_path / "trace", tmp_path / "captions.parquet"
    source, prompts = pictures_in(folder), PicturePrompts("What?", folder)
    for expected, done in ((20, 0), (1, 19), (0, 20)):
        trace.write_text("")
        with open_parquet(out) as (ledger, recorded):
            assert len(recorded) == done
            report = caption_dataset(source, OpenArtist(trace), ledger, recorded, prompts=prompts, workers=WORKERS)
        assert (report.progress.captioned, report.progress.skipped, report.failures) == (expected, done, ())
        assert len(trace.read_text().splitlines()) == expected
        if not done:
            table = pq.read_table(out)
            pq.write_table(table.slice(1), out)
    assert sorted(caption.file for caption in read_captions(out)) == list(source.files)


def test_pictures_in_parquet_and_below_an_address(tmp_path: Path) -> None:
    data = [b"one", b"two", b"three"]
    (tmp_path / "in").mkdir()
    structs = pa.array([{"bytes": each, "path": None} for each in data])
    pq.write_table(pa.table({"id": ["1", "2", "3"], "image": structs}), tmp_path / "in" / "part.parquet")
    folder = paint(tmp_path / "pictures", 3)
    prompts, trace = PicturePrompts("What?", Path()), tmp_path / "trace"
    sources: list[tuple[Table | Store, frozenset[str]]] = [
        (Table(str(tmp_path / "in"), "image", "id"), frozenset({"2"})),
        (Store(f"local://{folder}"), frozenset()),
    ]
    captions = []
    for number, (source, recorded) in enumerate(sources):
        with open_jsonl(tmp_path / f"{number}.jsonl") as ledger:
            caption_dataset(source, OpenArtist(trace), ledger, recorded, prompts=prompts, workers=WORKERS)
        lines = [json.loads(line) for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()]
        captions.append({Path(line["file"]).name: line["caption"] for line in lines})
    assert captions[0] == {"1": "a caption of one", "3": "a caption of three"}
    assert captions[1] == {f"0000{n}.png": f"a caption of picture {n}" for n in range(3)}
    missing = Table(str(tmp_path / "in"), "picture", "id")
    with open_jsonl(tmp_path / "none.jsonl") as ledger, pytest.raises(ConfigError, match="no column picture"):
        caption_dataset(missing, OpenArtist(trace), ledger, frozenset(), prompts=prompts, workers=WORKERS)


def test_a_parquet_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ConfigError, match="something else"), open_parquet(path):
        pass
    with open_parquet(path, Mode.OVERWRITE) as (_, recorded):
        assert recorded == frozenset()
    assert read_captions(path) == []
