"""Downloads: what is fetched, from where a broken one goes on, and what is said when one cannot be had."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from mmserve import hub
from mmserve.errors import CheckpointError, ModelNotFound
from mmserve.hub import fetch, find, is_whole
from tests.checkpoints import tiny_text
from tests.fake_hub import COMMIT, FakeHub

LARGE = "large.safetensors"
"""Larger than the pieces of ten million bytes in which huggingface_hub writes."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what repositories have besides that is never to be fetched."""
    folder = tiny_text(tmp_path_factory.mktemp("hub") / "files", "qwen2")
    for name in ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "original/params.json", "onnx/a.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never")
    (folder / LARGE).write_bytes(bytes(12_000_000))
    return folder


@pytest.fixture
def server(files: Path) -> Iterator[FakeHub]:
    with FakeHub(files).running() as running:
        yield running


def download(
    server: FakeHub, cache: Path, name: str = "owner/name", **variables: str
) -> subprocess.CompletedProcess[str]:
    """``mmserve models download`` in a process of its own, since huggingface_hub reads its variables once."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment = kept | own | variables
    command = [sys.executable, "-m", "mmserve", "models", "download", name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_download_has_what_is_served_and_nothing_else_and_goes_on_where_it_broke(
    server: FakeHub, files: Path, tmp_path: Path
) -> None:
    server.breaks = {LARGE: [11_000_000]}
    done = download(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fetching owner/name" in done.stderr
    folder = Path(done.stdout.strip())
    wanted = {file.name for file in files.iterdir() if file.suffix == ".json"} | {LARGE, "model.safetensors"}
    assert {file.name for file in folder.iterdir()} == wanted
    assert all((folder / name).read_bytes() == (files / name).read_bytes() for name in wanted)
    ranges = [range_ for method, path, range_ in server.asked if method == "GET" and path.endswith(LARGE)]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert int((ranges[1] or "").removeprefix("bytes=").partition("-")[0]) > 10_000_000

    server.asked.clear()
    again = download(server, tmp_path)
    assert again.stdout == done.stdout
    assert server.sent() == [] or "tree" in server.sent()[0]  # the list of files at most, and none of them
    pinned = download(server, tmp_path, f"owner/name@{COMMIT}")
    server.asked.clear()
    assert download(server, tmp_path, f"owner/name@{COMMIT}").stdout == pinned.stdout == done.stdout
    assert server.asked == []
    offline = download(server, tmp_path, HF_HUB_OFFLINE="1")
    assert (offline.stdout, server.asked) == (done.stdout, [])


def test_what_was_whole_before_the_end_of_a_download_is_kept(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    server.breaks = {"model.safetensors": [1000] * 100}
    ended = download(server, tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "owner/name could not be fetched (" in ended.stderr
    assert "what has arrived is kept, so try again later" in ended.stderr
    assert "Traceback" not in ended.stderr
    server.breaks = {}
    server.asked.clear()
    assert download(server, tmp_path).returncode == 0
    names = [path.rpartition("/")[2] for method, path, _ in server.asked if method == "GET" and "resolve" in path]
    assert names == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("owner/other", "no public Hugging Face repository owner/other: check the spelling"),
        ("owner/name@v9", "owner/name has no revision 'v9': give a branch, a tag or a commit"),
    ],
)
def test_names_that_the_hub_does_not_know(server: FakeHub, tmp_path: Path, name: str, says: str) -> None:
    ended = download(server, tmp_path, name)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_gated_repository_and_no_network(server: FakeHub, tmp_path: Path) -> None:
    server.gated = True
    ended = download(server, tmp_path)
    assert "ask for consent: give it at https://huggingface.co/owner/name, then set HF_TOKEN" in ended.stderr
    server.url = "http://127.0.0.1:9"  # discard: nobody listens
    ended = download(server, tmp_path)
    assert "huggingface.co cannot be reached: connect to the internet" in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = download(server, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to download it: unset that" in ended.stderr


# -- sentences --------------------------------------------------------------------------------------------------


def response(status: int) -> Any:
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/api"))


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    def fail_with(error: Exception) -> None:
        def snapshot_download(*_: Any, local_files_only: bool = False, **__: Any) -> str:
            raise errors.LocalEntryNotFoundError("not here") if local_files_only else error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    return fail_with


@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (full, CheckpointError, r"the disk under .* is full: make room there, or set HF_HOME"),
        (lambda: errors.LocalEntryNotFoundError("no"), CheckpointError, "cannot be reached: connect"),
        (lambda: errors.RepositoryNotFoundError("no", response=response(404)), ModelNotFound, "check the spelling"),
        (lambda: errors.GatedRepoError("no", response=response(403)), CheckpointError, "ask for consent"),
        (lambda: errors.RevisionNotFoundError("no", response=response(404)), ModelNotFound, "no revision None"),
        (
            lambda: errors.HfHubHTTPError("busy\nmore", response=response(503)),
            CheckpointError,
            r"fetched \(busy\): what",
        ),
        (lambda: ValueError("bad name"), CheckpointError, "bad name"),
        (lambda: RuntimeError(), CheckpointError, r"could not be fetched \(RuntimeError\)"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    failing: Callable[[Exception], None], error: Callable[[], Exception], expected: type[Exception], says: str
) -> None:
    failing(error())
    with pytest.raises(expected, match=says) as caught:
        fetch("owner/missing")
    assert "\n" not in str(caught.value)


def test_offline_asks_nobody(failing: Callable[[Exception], None]) -> None:
    failing(AssertionError("the network was asked"))
    with pytest.raises(CheckpointError, match=r"owner/missing is not on this machine.*downloads are off \(--offline\)"):
        fetch("owner/missing", offline=True)


def test_too_little_disk_is_said_before_anything_is_fetched(
    failing: Callable[[Exception], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(AssertionError("the network was asked"))
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "not" / "made")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 1_500_000_000))
    with pytest.raises(CheckpointError, match=r"owner/name takes 4\.4 GB, but the disk under .*made has 1\.5 GB free"):
        fetch("owner/name", size=4_400_000_000)
    with pytest.raises(CheckpointError, match="the network was asked"):
        fetch("owner/name", size=1_500_000_000)
    blobs = tmp_path / "not" / "made" / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "part").write_bytes(bytes(1000))
    with pytest.raises(CheckpointError, match="the network was asked"):  # what has arrived counts
        fetch("owner/name", size=1_500_001_000)


def test_a_repository_without_safetensors_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"without all of its \.safetensors weights"):
        fetch("owner/name")


class TestWhole:
    def index(self, folder: Path, text: str) -> None:
        (folder / "model.safetensors.index.json").write_text(text)

    def test_configuration_and_weights_are_both_needed(self, tmp_path: Path) -> None:
        assert not is_whole(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        assert not is_whole(tmp_path)
        (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")  # as an interrupted download may leave it
        assert not is_whole(tmp_path)
        (tmp_path / "blob").write_bytes(b"")
        assert is_whole(tmp_path)

    def test_every_part_that_the_index_names(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        self.index(tmp_path, json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
        (tmp_path / "1.safetensors").write_bytes(b"")
        assert not is_whole(tmp_path)
        (tmp_path / "2.safetensors").write_bytes(b"")
        assert is_whole(tmp_path)
        for damaged in ("", "[]", "{}", '{"weight_map": 3}'):
            self.index(tmp_path, damaged)
            assert not is_whole(tmp_path)

    def test_find_takes_nothing_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
        assert find("owner/name") is None
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert find("owner/name") == tmp_path
