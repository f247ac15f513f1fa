"""``mmserve caption`` as a person uses it, over a tiny model in this process or a server of fakes."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmserve.caption import Progress
from mmserve.cli import main
from mmserve.cli_progress import ProgressLine, describe, duration
from tests.engine.pictures import png
from tests.web.fakes import FakeEngine, FakePrompts, say

COLOURS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in COLOURS:
        path = tmp_path / "pictures" / "sub" / f"{colour}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour))
    return tmp_path / "pictures"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(lambda request: say("a cat, a cat", request=request))


def questions(prompts: FakePrompts) -> set[str]:
    return {part.text for *_, user in prompts.built for part in user.parts if hasattr(part, "text")}


def test_kohyas_spelling_writes_texts(
    folder: Path, server: str, prompts: FakePrompts, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sub" / "red.txt").write_text("sofa, indoors")
    command = ["caption", str(folder), "--recursive", "--server", server, "--caption_extension", ".caption"]
    command += ["--prompt", "{name} of {directory}: {tags}", "--batch_size", "2"]
    assert main([*command, "--prefix", "sks, ", "--remove-duplicates"]) == 0
    assert (folder / "sub" / "red.caption").read_text() == "sks, a cat\n"
    assert questions(prompts) == {"red of sub: sofa, indoors", "green of sub: ", "blue of sub: "}
    assert "3 captioned" in capsys.readouterr().err
    assert main([*command, "--append_tags"]) == 0
    assert (folder / "sub" / "red.caption").read_text() == "sks, a cat, a cat, a cat\n"


def test_lists_patterns_and_stdin(
    folder: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "c.csv"
    assert main(["caption", "pictures/**/r*.png", "--server", server]) == 0
    assert (folder / "captions.jsonl").exists()
    monkeypatch.setattr(sys, "stdin", io.StringIO("pictures/sub/red.png\npictures/sub/gone.png\n"))
    assert main(["caption", "-", "pictures/sub", "--server", server, "--out", str(out)]) == 1
    files = [line.split(",")[0] for line in out.read_text().splitlines()[1:]]
    assert Counter(files) == Counter(f"pictures/sub/{colour}.png" for colour in COLOURS)
    assert "pictures/sub/gone.png: " in capsys.readouterr().err


def test_dry_run_asks_and_writes_nothing(folder: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sub" / "x.avif").touch()
    (folder / "sub" / "red.txt").write_text("done")
    before = sorted(folder.rglob("*"))
    assert main(["caption", str(folder / "sub"), "--sidecar", "--dry-run", "--prompt", "{name}\nof {directory}"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "blue.png\tblue of sub\ngreen.png\tgreen of sub\n"
    assert "2 pictures would be captioned, 1 are done" in printed.err
    assert "passed over, since .avif is not read (convert to PNG or JPEG): x.avif" in printed.err
    assert sorted(folder.rglob("*")) == before
    assert not engine.requests


def test_words_and_options_reach_the_engine(
    folder: Path, server: str, engine: FakeEngine, prompts: FakePrompts
) -> None:
    words = ["--must-not-include", "seems, possibly", "--must-include", "cat", "--start-with", "a", "--max-words", "9"]
    command = ["caption", str(folder / "sub"), "--server", server, "--system", "Be brief.", "--temperature", "0.5"]
    assert main([*command, "--seed", "7", *words]) == 0
    for request in engine.requests:
        assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.seed) == (128, 0.5, 7)
        constraint: Any = request.constraint
        assert constraint.must_not_include == ("seems", "possibly")
        assert (constraint.must_include, constraint.start_with, constraint.max_words) == (("cat",), "a", 9)
    assert all(messages[0].role == "system" for messages in prompts.built)


def test_a_schema_from_a_python_file(
    folder: Path, server: str, engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "shapes_of_this_test.py"
    source.write_text("from __future__ import annotations\nimport pydantic\n\n\n"
                      "class Part(pydantic.BaseModel):\n    n: int\n\n\n"
                      "class Item(pydantic.BaseModel):\n    part: Part\n")  # fmt: skip
    answers = iter(['{"part":{"n":1}}', '{"part":{"n":2}}', '{"part":'])
    engine.script = lambda request: say(next(answers), request=request)
    command = ["caption", str(folder / "sub"), "--server", server, "--max-tokens", "64"]
    assert main([*command, "--schema", f"{source}:Item"]) == 1
    lines = [json.loads(line) for line in (folder / "sub" / "captions.jsonl").read_text().splitlines()]
    assert {line["caption"] for line in lines} == {'{"part":{"n":1}}', '{"part":{"n":2}}'}
    assert "is not what was asked for" in capsys.readouterr().err
    assert all(request.constraint is not None for request in engine.requests)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "{nmae}"], "did you mean {name}"),
        (["--sidecar", "txt"], "--sidecar takes an ending such as .txt"),
        (["--append"], "--append adds to text files"),
        (["--out", "c.txt"], "--sidecar writes .txt files"),
        (["--caption-separator", " "], "more than white space"),
        (["--must-include", "cat, a|b"], "use --regex"),
        (["--schema", "{}", "--prefix", "x"], "not for JSON"),
        (["--schema", "nowhere.py:Item"], "there is no Python file nowhere.py"),
        (["--concurrency", "0"], "at least 1"),
        (["--max-tokens", "0"], "max_tokens must be between 1"),
        (["--schema", "{}", "--regex", "x"], "only one constraint"),
    ],
)
def test_what_cannot_be_meant(
    folder: Path, server: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(folder / "sub"), "--server", server, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_modes_exclude_one_another(folder: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["caption", str(folder), "--overwrite", "--append"])
    assert ended.value.code == 2


def test_in_this_process_says_what_a_server_says(checkpoint_path: Path, folder: Path) -> None:
    """Words are kept, and corrupt files are named, with no server between."""
    (folder / "sub" / "broken.png").write_bytes(png("noise")[:200])
    flags = ["--model", str(checkpoint_path), "--device", "cpu", "--kv-slots", "2048", "--max-tokens", "24"]
    command = ["caption", str(folder / "sub"), *flags, "--start-with", "It is", "--max-words", "6"]
    assert main(command) == 1
    lines = [json.loads(line) for line in (folder / "sub" / "captions.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == ["blue.png", "green.png", "red.png"]
    for line in lines:
        assert line["caption"].startswith("It is")
        assert len(line["caption"].split()) <= 6
        assert line["usage"]["image_tokens"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_a_ledger_that_goes_on(folder: Path, engine: FakeEngine, server: str) -> None:
    for i in range(40):
        (folder / f"{i}.png").write_bytes(png("noise", (8 + i, 8)))
    engine.script = lambda request: iter([0.05, *say("a cat", request=request)])
    out = folder / "captions.jsonl"
    command = [sys.executable, "-m", "mmserve", "caption", str(folder), "--server", server, "--concurrency", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 130
    assert printed == "mmserve: stopped; the same command goes on from here\n"
    done = [json.loads(line)["file"] for line in out.read_text().splitlines()]
    assert 5 <= len(done) < 40
    engine.script = lambda request: say("a cat", request=request)
    assert main(["caption", str(folder), "--server", server]) == 0
    files = [json.loads(line)["file"] for line in out.read_text().splitlines()]
    assert Counter(files) == Counter(f"{i}.png" for i in range(40))
    assert files[: len(done)] == done


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgress:
    HALF = Progress(200, skipped=20, captioned=70, copied=5, failed=10, seconds=40.0, prompt_tokens=1000,
                    cached_tokens=230, cached_pictures=3)  # fmt: skip

    def test_in_words(self) -> None:
        assert describe(self.HALF) == (
            "100/200 pictures, 2.0/s, 0:50 left, 10 failed, 23 % of prompts cached (3 pictures)"
        )
        assert describe(Progress(5)) == "0/5 pictures, 0.0/s"

    @pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")])
    def test_durations(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text

    def test_a_line_that_changes_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setenv("LINES", "24")
        stream, now = Terminal(), [0.0]
        with ProgressLine(stream, lambda: now[0]) as line:
            for i in range(100):
                line.show(Progress(100, captioned=i, seconds=1.0))
                now[0] += 0.01
        drawn = stream.getvalue().split("\r")[1:]
        assert 9 <= len(drawn) <= 12
        assert drawn[-1].startswith("\x1b[K[#######################.] 99/100 pictures")
        assert all(len(each.removeprefix("\x1b[K").rstrip("\n")) < 60 for each in drawn)
        assert stream.getvalue().count("\n") == 1

    def test_plain_lines_elsewhere(self) -> None:
        stream, now = io.StringIO(), [0.0]
        with ProgressLine(stream, lambda: now[0]) as line:
            for i in range(31):
                now[0] = float(i)
                line.show(Progress(100, captioned=i, seconds=1.0))
        assert [text.partition("/")[0] for text in stream.getvalue().splitlines()] == ["10", "20", "30"]
