"""``mmserve deploy`` and ``mmserve caption --ray`` up to where Ray begins."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest

from mmserve.caption import Mode
from mmserve.caption.files import Pictures
from mmserve.cli import build_parser, main
from mmserve.cli_backend import plain_options
from mmserve.cli_bulk import OpenCaptioner, opened, source_of
from mmserve.cli_deploy import Builder, fleet_of
from mmserve.client import AllOptions
from mmserve.deploy.bulk import Store, Table, Workers
from mmserve.deploy.extra import require_ray
from mmserve.deploy.fleet import Fleet
from mmserve.deploy.routing import Bound
from mmserve.errors import ConfigError
from tests.engine.pictures import png
from tests.test_package import loaded_by


def parsed(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


@pytest.mark.parametrize("command", ["mmserve deploy", "mmserve caption --ray"])
def test_without_ray_one_sentence_says_how_to_get_it(command: str) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'mmserve\[ray\]'") as caught:
        require_ray(command, find=lambda _: None)
    assert caught.value.message.startswith(command)


@pytest.mark.parametrize("command", [["deploy"], ["caption", "{}", "--ray"]])
def test_the_commands_ask_for_ray_first(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(require_ray, "__defaults__", (lambda _: None,))
    assert main([part.format(tmp_path) for part in command]) == 1
    assert "pip install 'mmserve[ray]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_commands_needs_ray() -> None:
    modules = loaded_by("import mmserve, mmserve.cli, mmserve.deploy.front, mmserve.deploy.bulk, web.app")
    assert not {name for name in modules if name.partition(".")[0] in ("ray", "pyarrow")}
    assert "torch" not in loaded_by("import mmserve.deploy.front, mmserve.deploy.routing, mmserve.deploy.replica")


def test_options_become_a_fleet() -> None:
    assert fleet_of(parsed("deploy")) == Fleet()
    options = ["--replicas", "2-8", "--gpus", "0.5", "--cpus", "2", "--target-requests", "4", "--balance", "1.5"]
    fleet = fleet_of(parsed("deploy", *options, "--spare", "3", "--drain-seconds", "7"))
    assert (fleet.least, fleet.most, fleet.gpus, fleet.cpus, fleet.target_requests) == (2, 8, 0.5, 2.0, 4.0)
    assert (fleet.bound, fleet.drain_seconds) == (Bound(1.5, 3), 7.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicas", "many"], "--replicas takes a number"),
        (["--replicas", "3-1"], "3 to 1"),
        (["--replicas", "0"], "at least 1 replica"),
        (["--cpus", "0"], "some of a CPU"),
        (["--fronts", "0"], "at least 1 front"),
        (["--most-requests", "0"], "at least 1 request"),
        (["--balance", "0.5"], "at least 1"),
        (["--tp", "4", "--gpus", "2"], "--gpus 4"),
        (["--detach"], "--address"),
        (["--down"], "--address"),
    ],
)
def test_what_cannot_be_is_said_before_ray_is_started(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.anyio
async def test_a_replica_is_sent_the_options_and_builds_the_service(checkpoint_path: Path) -> None:
    arguments = parsed("deploy", "--model", str(checkpoint_path), "--device", "cpu", "--served-model-name", "tiny")
    builder: Builder = pickle.loads(pickle.dumps(Builder(plain_options(arguments))))
    async with builder() as service:
        assert service.model.name == "tiny"
        assert service.engine.ready


@pytest.mark.anyio
async def test_a_worker_is_sent_the_options_and_asks_its_own_engine(checkpoint_path: Path, tmp_path: Path) -> None:
    arguments = parsed("caption", str(tmp_path), "--model", str(checkpoint_path), "--device", "cpu")
    opener = pickle.loads(pickle.dumps(OpenCaptioner(plain_options(arguments), AllOptions(max_tokens=3))))
    async with opener() as captioner:
        answer = await captioner.ask(png("red"), "What is it?")
    assert answer.usage.image_tokens > 0


@pytest.mark.parametrize("other", [["--server", "http://127.0.0.1:1"], ["--sidecar"], ["--dry-run"]])
def test_what_ray_has_no_use_for_is_refused(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "photos", "--ray", *other]) == 1
    assert other[0] in capsys.readouterr().err


def test_a_folder_is_listed_here(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.heic").write_bytes(b"x")
    assert source_of(parsed("caption", str(tmp_path), "--ray")) == Pictures(tmp_path, ("a.png",), ("b.heic",))


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_what_is_in_the_ledger_needs_no_caption(name: str, tmp_path: Path) -> None:
    from tests.deploy.test_bulk import collector, row

    arguments = parsed("caption", str(tmp_path), "--ray", "--out", str(tmp_path / name))
    with opened(arguments, tmp_path) as (ledger, recorded):
        assert recorded == frozenset()
        collector(ledger).take([row("a.png")])
    with opened(arguments, tmp_path) as (_, recorded):
        assert recorded == {"a.png"}
    arguments.mode = Mode.OVERWRITE
    with opened(arguments, tmp_path) as (_, recorded):
        assert recorded == frozenset()


def test_tables_and_addresses_are_for_ray_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["caption", "--ray", "--picture-column", "bytes", "--name-column", "id"]
    assert source_of(parsed(*command, "in/part.parquet")) == Table("in/part.parquet", "bytes", "id")
    assert source_of(parsed(*command, "s3://bucket/photos")) == Store("s3://bucket/photos")
    with pytest.raises(ConfigError, match="name one"):
        source_of(parsed(*command, "s3://bucket/a", "s3://bucket/b"))
    assert main(["caption", "photos", "--ray", "--sidecar"]) == 1
    assert capsys.readouterr().out == ""


def test_no_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 worker"):
        Workers(0)
