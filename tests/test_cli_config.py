"""Settings by flag, environment and file: which wins, and what is said of those that are wrong."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pytest

from mmserve.cli import build_parser, main
from mmserve.cli_config import apply_settings
from mmserve.errors import ConfigError


def settled(argv: list[str], environ: dict[str, str] | None = None, config: Path | None = None) -> argparse.Namespace:
    parser = build_parser()
    apply_settings(parser.parse_args(["serve"]).settings, config, environ or {})
    return parser.parse_args(["serve", *argv])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mmserve.toml"
    path.write_text('model = "a"\nport = 1\nmax-queue = 7\nmax_pictures = 8\noffline = true\nlog-format = "json"\n')
    return path


def test_a_flag_wins_over_the_environment_and_that_over_the_file(file: Path) -> None:
    found = settled(["--port", "3"], {"MMSERVE_PORT": "2", "MMSERVE_MODEL": "b"}, file)
    assert (found.port, found.model, found.max_queue) == (3, "b", 7)
    assert (found.max_pictures, found.offline, found.log_format) == (8, True, "json")
    assert settled([], {"MMSERVE_CONFIG": str(file)}).port == 1
    assert settled([]).port == 8000


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("No", False), ("off", False)])
def test_switches_are_said_in_words(text: str, value: bool) -> None:
    assert settled([], {"MMSERVE_OFFLINE": text}).offline is value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max-queues = 1", "max-queues is not a setting; did you mean max-queue"),
        ("zzz = 1", "mmserve serve --help"),
        ("[engine]\nport = 1", "engine is not a setting"),
        ('port = "many"', "port does not take 'many'"),
        ("port = [1]", "single value"),
        ("port = true", "single value"),
        ("offline = 1", "true or false"),
        ('log-format = "xml"', "one of text, json"),
        ("config = 'x'", "config is not a setting"),
        ("port =", "not TOML"),
    ],
)
def test_a_file_s_mistake_names_the_file_and_the_key(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mmserve.toml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=r"mmserve\.toml") as error:
        settled([], config=path)
    assert message in error.value.message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MMSERVE_PORT", "many", "MMSERVE_PORT does not take 'many'"),
        ("MMSERVE_PORT", "tcp://10.0.0.1:8000", "enableServiceLinks"),
        ("MMSERVE_OFFLINE", "perhaps", "true or false"),
        ("MMSERVE_CONFIG", "/none.toml", "cannot be read"),
    ],
)
def test_a_variable_s_mistake_names_it(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        settled([], {name: value})
    assert message in error.value.message


def test_an_unknown_variable_only_warns(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    settled([], {"MMSERVE_SERVICE_HOST": "10.0.0.1", "MMSERVE_MAX_QUEU": "1", "MMSERVE_API_KEY": "k", "OTHER": "x"})
    assert "MMSERVE_SERVICE_HOST" in caplog.text
    assert "MMSERVE_MAX_QUEU is not a setting and is ignored; did you mean max-queue?" in caplog.text
    assert "MMSERVE_API_KEY" not in caplog.text
    assert "OTHER" not in caplog.text


def test_lists_are_lists(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--item", action="append", type=int)
    path = tmp_path / "a.toml"
    path.write_text("item = [1, 2]")
    apply_settings(parser, path, {})
    assert parser.parse_args([]).item == [1, 2]
    apply_settings(parser, None, {"MMSERVE_ITEM": "3, 4"})
    assert parser.parse_args([]).item == [3, 4]
    path.write_text("item = 1")
    with pytest.raises(ConfigError, match="takes a list"):
        apply_settings(parser, path, {})


def test_the_command_ends_with_one_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("prot = 1")
    assert main(["serve", "--config", str(file)]) == 1
    assert "did you mean port?" in capsys.readouterr().err
    monkeypatch.setenv("MMSERVE_PORT", "x")
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "mmserve: MMSERVE_PORT does not take 'x'\n"


def test_help_is_in_groups_and_every_option_says_something(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n{group}:\n" in text for group in ("model", "address", "engine", "limits", "operations"))
    parser = build_parser().parse_args(["serve"]).settings
    assert all(action.help for action in parser._actions)
