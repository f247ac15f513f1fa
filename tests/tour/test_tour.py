"""docs/tour.md is what ``make tour`` made of the source as it stands, and its commands are commands of today."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from mmserve.cli import build_parser
from tests.web.fakes import FakeEngine, FakePrompts
from tour.__main__ import TOUR, parts
from tour.script import Command, Console, Program, Shot, render, without_output
from tour.shots import SHOTS
from web.app import create_app
from web.schemas import VqaFields
from web.service import ServedModel, Service

HINT = "docs/tour.md is older than its source: run make tour"
SHOTS_OF = TOUR.with_suffix("")


def commands() -> list[Command]:
    return [command for part in parts() if isinstance(part, Console) for command in part.commands]


def words_of(command: Command) -> list[list[str]]:
    """The programs of a pipeline with their arguments."""
    lexer = shlex.shlex(command.text.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|;&"):
            found.append([])
        else:
            found[-1].append(word)
    return found


def test_the_tour_has_the_words_and_commands_of_its_source() -> None:
    assert without_output(TOUR.read_text(encoding="utf-8")) == render(parts()), HINT


def test_every_program_and_most_commands_say_something() -> None:
    text = TOUR.read_text(encoding="utf-8")
    programs = sum(isinstance(part, Program) for part in parts())
    assert programs > 2
    assert len(re.findall(r"^```\n\n```text\n.+?^```$", text, re.DOTALL | re.MULTILINE)) == programs
    assert "Traceback" not in text
    assert "Internal Server Error" not in text


def test_the_pictures_are_there_and_light() -> None:
    wanted = [part.name for part in parts() if isinstance(part, Shot)]
    assert len(set(wanted)) == len(wanted) > 5
    assert {*wanted, "boxes"} == SHOTS.keys()
    files = sorted(SHOTS_OF.iterdir())
    assert [path.name for path in files] == sorted(f"{name}.webp" for name in wanted), HINT
    assert sum(path.stat().st_size for path in files) < 600_000
    for path in files:
        with Image.open(path) as picture:
            window = SHOTS[path.stem][0]
            assert picture.format == "WEBP"
            assert picture.size == (window.width * window.density, window.height * window.density)


def test_mmserves_commands_are_understood() -> None:
    asked = [words for command in commands() for words in words_of(command) if words[:1] == ["mmserve"]]
    seen = set()
    for name, *words in asked:
        assert name == "mmserve"
        redirected = next((i for i, word in enumerate(words) if word in (">", ">>")), len(words))
        if redirected < len(words) and words[redirected - 1] == "2":
            redirected -= 1
        arguments = build_parser().parse_args(words[:redirected])
        seen.add(arguments.command.__name__)
    assert seen == {"run_demo", "run_ask", "run_serve", "run_caption", "run_chat"}


def test_addresses_and_fields_are_the_servers() -> None:
    app = create_app(Service(ServedModel("m"), FakePrompts(), FakeEngine(), 512))
    paths = set(app.openapi()["paths"])
    curls = [words for command in commands() for words in words_of(command) if words[:1] == ["curl"]]
    assert len(curls) > 3
    fields = []
    for words in curls:
        [address] = [word for word in words if word.startswith("http://127.0.0.1:8000")]
        assert address.removeprefix("http://127.0.0.1:8000") in paths
        fields += [words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "-F"]
    assert set(fields) - {"image", *VqaFields.names()} == {"qestion"}, "one field is misspelt to show the refusal"


@pytest.mark.parametrize("program", [part for part in parts() if isinstance(part, Program)], ids=lambda p: p.text[:20])
def test_programs_import_what_there_is(program: Program) -> None:
    tree = ast.parse(program.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            assert all(hasattr(module, each.name) for each in node.names)


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TOUR.read_text(encoding="utf-8")):
        assert (TOUR.parent / Path(target)).exists(), target
