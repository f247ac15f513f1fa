"""The command line, as a person or a script uses it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from mmserve.cli import main
from tests.engine.pictures import png

SMALL = ["--device", "cpu", "--kv-slots", "2048"]


@pytest.fixture
def model(checkpoint_path: Path) -> list[str]:
    return ["--model", str(checkpoint_path), *SMALL]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(png("red"))
    return path


def test_ask_prints_nothing_but_the_answer(model: list[str], picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(picture), "What is it?", "--max-tokens", "5", *model]) == 0
    first = capsys.readouterr()
    assert first.out.strip()
    assert first.err == ""
    assert main(["ask", str(picture), "What is it?", "--max-tokens", "5", "--json", *model]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] + "\n" == first.out
    assert answer["usage"]["completion_tokens"] <= 5


def test_errors_are_one_sentence_on_stderr(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    assert main(["ask", str(text), "What is it?", *model]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mmserve: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "nowhere.png", "What?", *SMALL], "nowhere.png"),
        (["serve", "--model", "no-such-model"], "models.yaml"),
        (["caption", "nowhere", *SMALL], "no folder"),
        (["serve", "--device", "tpu"], "device"),
        (["serve", "--dtype", "int3", *SMALL], "dtype"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_taken_port_is_an_error_that_names_the_way_out(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", *model, "--port", str(taken.getsockname()[1])]) == 1
    assert "--port 0" in capsys.readouterr().err


def test_caption_writes_a_line_for_each_picture_and_continues(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("red", "blue", "green"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    (tmp_path / "broken.png").write_bytes(png("noise")[:200])
    command = ["caption", str(tmp_path), "--max-tokens", "4", *model]
    assert main(command) == 1
    assert "3 captioned" in (report := capsys.readouterr().err)
    assert "broken.png" in report
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == ["blue.png", "green.png", "red.png"]
    (tmp_path / "broken.png").unlink()
    assert main(command) == 0
    assert "0 captioned (0 of them copies), 3 done before" in capsys.readouterr().err


def test_captions_can_lie_beside_the_pictures(model: list[str], picture: Path) -> None:
    assert main(["caption", str(picture.parent), "--sidecar", "--max-tokens", "4", *model]) == 0
    assert picture.with_suffix(".txt").read_text().strip()


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "pocket-vl" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert "pocket-vl" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]


def test_help_and_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main(["ask"])
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
