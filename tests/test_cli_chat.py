"""``mmserve chat``: through pipes, and at a terminal as far as one can be played."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmserve.cli import main
from mmserve.errors import CorruptPicture
from mmserve.types import ImagePart, TextPart
from tests.web.fakes import FakeEngine, FakePrompts, eventually, forever, png, say


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a cat.png"
    path.write_bytes(png())
    return path


def turns(prompts: FakePrompts) -> list[list[tuple[str, list[str]]]]:
    """Each prompt as ``(role, parts)``; a picture is ``"*"``."""
    return [
        [
            (message.role, [part.text if isinstance(part, TextPart) else "*" for part in message.parts])
            for message in messages
            if all(isinstance(part, ImagePart | TextPart) for part in message.parts)
        ]
        for messages in prompts.built
    ]


def talk(monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return main(["chat", *arguments])


def test_a_pipe_gets_the_answers_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    engine: FakeEngine,
    prompts: FakePrompts,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = "What is it?\n\nAnd its colour?\n/quit\nNot asked.\n"
    assert talk(monkeypatch, lines, str(picture), "--server", server, "--system", "Be brief.", "--max-tokens", "9") == 0
    printed = capsys.readouterr()
    assert printed.out == "It is a cat.\nIt is a cat.\n"
    assert printed.err == ""
    first = [("system", ["Be brief."]), ("user", ["*", "What is it?"])]
    assert turns(prompts) == [
        first,
        [*first, ("assistant", ["It is a cat."]), ("user", ["And its colour?"])],
    ]
    assert {request.sampling.max_tokens for request in engine.requests} == {9}


def test_commands(
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    prompts: FakePrompts,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quoted = f"'{picture}'"
    lines = f"/image {quoted} {quoted}\nTwo?\n/new\n/image {quoted}\nOne?\n//slash\n/help\n"
    assert talk(monkeypatch, lines, "--server", server) == 0
    assert [conversation[-1] for conversation in turns(prompts)] == [
        ("user", ["*", "*", "Two?"]),
        ("user", ["*", "One?"]),
        ("user", ["/slash"]),
    ]
    assert len(turns(prompts)[1]) == 1
    assert "2 to be shown" in (notes := capsys.readouterr().err)
    assert "a new conversation" in notes
    assert "/image FILE" in notes


@pytest.mark.parametrize("line", ["/image nowhere.png", "/image", "/imagine x", "/image 'open"])
def test_commands_that_fail_are_said_and_the_talk_goes_on(
    monkeypatch: pytest.MonkeyPatch, server: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, f"{line}\nHello\n", "--server", server) == 1
    printed = capsys.readouterr()
    assert printed.out == "It is a cat.\n"
    assert printed.err.strip()


def test_a_question_that_fails_leaves_the_conversation(
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    engine: FakeEngine,
    prompts: FakePrompts,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers: Any = iter([lambda _: iter([CorruptPicture("torn")]), lambda request: say("fine", request=request)])
    engine.script = lambda request: next(answers)(request)
    assert talk(monkeypatch, "What?\n/new\nAgain?\n", str(picture), "--server", server) == 1
    printed = capsys.readouterr()
    assert printed.out == "fine\n"
    assert "mmserve: torn" in printed.err
    assert turns(prompts)[-1] == [("user", ["Again?"])]


def test_a_missing_picture_or_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "nowhere.png"]) == 1
    assert "no picture nowhere.png" in capsys.readouterr().err
    assert main(["chat", "--server", "http://127.0.0.1:1"]) == 1
    assert "is the server running" in capsys.readouterr().err


def test_without_a_server(
    monkeypatch: pytest.MonkeyPatch, checkpoint_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(checkpoint_path), "--device", "cpu", "--kv-slots", "2048", "--max-tokens", "4"]
    assert talk(monkeypatch, "What?\nWhy?\n", str(picture), *flags) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert talk(monkeypatch, "x\n", "--model", "no-such-model") == 1
    assert "models.yaml" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="terminals")
def test_at_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(
    server: str, engine: FakeEngine, prompts: FakePrompts
) -> None:
    main_end, program_end = pty.openpty()
    command = [sys.executable, "-m", "mmserve", "chat", "--server", server]
    process = subprocess.Popen(
        command, stdin=program_end, stdout=program_end, stderr=program_end, start_new_session=True
    )
    os.close(program_end)
    seen = bytearray()

    def until(text: bytes) -> None:
        deadline = time.monotonic() + 30
        while text not in seen:
            ready, _, _ = select.select([main_end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, bytes(seen)
            seen.extend(os.read(main_end, 4096))
        del seen[: seen.index(text) + len(text)]

    try:
        engine.script = forever
        until(b"> ")
        os.write(main_end, b"Count\n")
        until(b"w20 ")
        process.send_signal(signal.SIGINT)
        until(b"(stopped)")
        until(b"> ")
        eventually(lambda: not engine.running)
        engine.script = lambda request: say("fine", request=request)
        os.write(main_end, b"And now?\n")
        until(b"fine")
        until(b"> ")
        [user, said, then] = turns(prompts)[-1]
        assert user == ("user", ["Count"])
        assert said[1][0].startswith("w0 w1 ")
        assert then == ("user", ["And now?"])
        os.write(main_end, b"/quit\n")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main_end)
