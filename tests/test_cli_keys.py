"""``mmserve keys`` and the options of ``mmserve serve`` that concern safety."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from mmserve.cli import build_parser, main
from mmserve.cli_keys import VARIABLE
from mmserve.cli_safety import limits_of, secured
from mmserve.config import Limits
from mmserve.errors import ConfigError
from mmserve.keys import find_key, load_keys
from tests.web.fakes import FakeEngine, FakePrompts
from web.service import ServedModel, Service


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "keys.json"


def test_add_prints_the_key_and_nothing_else(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--requests-per-minute", "5", "--concurrency", "2", "--pictures-per-minute", "0", "--cache-group", "lab"]
    assert main(["keys", "add", "alice", "--keys-file", str(file), *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    key = find_key(load_keys(file), printed.out.strip())
    assert key is not None
    assert (key.name, key.admin, key.cache_group) == ("alice", False, "lab")
    assert (key.requests_per_minute, key.concurrency, key.pictures_per_minute) == (5, 2, 0)


def test_list_shows_names_and_limits_and_no_secret(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "add", "alice", "--keys-file", str(file)])
    main(["keys", "add", "root", "--admin", "--keys-file", str(file), "--concurrency", "0"])
    alice, root = capsys.readouterr().out.split()
    assert main(["keys", "list", "--keys-file", str(file)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["alice", "user"]
    assert second.split()[:2] == ["root", "admin"]
    assert "unlimited at a time" in second
    assert main(["keys", "list", "--json", "--keys-file", str(file)]) == 0
    shown = capsys.readouterr().out
    assert [entry["name"] for entry in json.loads(shown)] == ["alice", "root"]
    for text in (first, second, shown):
        assert alice not in text
        assert root not in text
        assert all(key.digest not in text for key in load_keys(file))


def test_revoke(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "add", "alice", "--keys-file", str(file)])
    assert main(["keys", "revoke", "alice", "--keys-file", str(file)]) == 0
    assert load_keys(file) == ()
    assert main(["keys", "revoke", "alice", "--keys-file", str(file)]) == 1
    assert "no key called" in capsys.readouterr().err


def test_the_file_may_come_from_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(file))
    assert main(["keys", "add", "alice"]) == 0
    assert [key.name for key in load_keys(file)] == ["alice"]
    assert build_parser().parse_args(["serve"]).keys_file == file


@pytest.mark.parametrize("command", [["add", "x"], ["list"], ["revoke", "x"]])
def test_without_a_file_it_is_said_what_to_give(
    file: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not file.exists()
    assert main(["keys", *command]) == 1
    assert "--keys-file" in capsys.readouterr().err


def arguments(*options: str) -> argparse.Namespace:
    return build_parser().parse_args(["serve", *options])


@pytest.fixture
def plain(engine: FakeEngine, prompts: FakePrompts) -> Service:
    return Service(ServedModel("m"), prompts, engine, max_model_len=512)


def test_everything_is_off_by_default(plain: Service, file: Path) -> None:
    assert not file.exists()
    safety = secured(plain, arguments()).safety
    assert (safety.keys, safety.remote, safety.origins) == (None, None, ())
    assert Limits(**limits_of(arguments())) == Limits()
    assert limits_of(build_parser().parse_args(["ask", "a.png", "What?"])) == {}


def test_options_reach_the_service(plain: Service, file: Path) -> None:
    main(["keys", "add", "alice", "--keys-file", str(file)])
    given = arguments(
        *("--keys-file", str(file), "--allow-remote-pictures", "--remote-domain", "*.example.org"),
        *("--cors-origin", "https://a.example", "--upload-idle-seconds", "7", "--max-body-bytes", "1000"),
        *("--max-parts", "9", "--max-field-bytes", "99", "--max-header-bytes", "4096"),
        *("--header-seconds", "3", "--upload-seconds", "20"),
    )
    service = secured(plain, given)
    assert service.safety.keys is not None
    assert service.safety.remote is not None
    assert service.safety.origins == ("https://a.example",)
    assert service.upload_idle_seconds == 7.0
    wanted = dataclasses.replace(
        Limits(),
        max_body_bytes=1000,
        max_parts=9,
        max_field_bytes=99,
        max_header_bytes=4096,
        header_seconds=3.0,
        upload_seconds=20.0,
    )
    assert Limits(**limits_of(given)) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--remote-domain", "example.org"], "give both"),
        (["--allow-remote-pictures", "--remote-domain", "https://example.org/"], "host name"),
        (["--allow-remote-pictures", "--remote-domain", "a.*.org"], "host name"),
        (["--cors-origin", "example.org"], "origin"),
        (["--cors-origin", "https://example.org/page"], "origin"),
        (["--keys-file", "/nowhere/keys.json"], "keys add"),
        (["--upload-idle-seconds", "0"], "more than 0"),
    ],
)
def test_options_that_cannot_be(plain: Service, file: Path, options: list[str], message: str) -> None:
    assert not file.exists()
    with pytest.raises(ConfigError, match=message):
        secured(plain, arguments(*options))


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-body-bytes"):
        limits_of(arguments("--max-body-bytes", "0"))


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("::1", False)])
def test_a_server_open_to_other_machines_without_keys_says_so(
    plain: Service, file: Path, host: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    secured(plain, arguments("--host", host))
    assert ("no API keys" in capsys.readouterr().err) == warned
    main(["keys", "add", "alice", "--keys-file", str(file)])
    capsys.readouterr()
    secured(plain, arguments("--host", host, "--keys-file", str(file)))
    assert capsys.readouterr().err == ""
