"""Running the tour's commands: in a folder of their own, judged by their exit status, told without this machine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tour.commands import ROOT, Terminal, TourError
from tour.pictures import draw
from tour.script import Command
from tour.shots import SHOTS, boxed, gallery, take


def test_output_of_both_kinds_in_the_folder_of_the_tour(tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        assert terminal.run(Command("echo out; echo err >&2; touch made")) == "out\nerr\n"
    assert (tmp_path / "made").exists()


def test_exit_statuses_are_those_that_are_told(tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        assert terminal.run(Command("echo no; (exit 3)  # exit status 3")) == "no\n"
        for text in ("exit 1", "true  # exit status 1"):
            with pytest.raises(TourError, match="exit status"):
                terminal.run(Command(text))


def test_programs_see_the_tree_and_their_warnings_are_errors(tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        assert terminal.run_program("import mmserve; print(mmserve.__file__)") == "mmserve/__init__.py\n"
        with pytest.raises(TourError, match="DeprecationWarning"):
            terminal.run_program("import warnings; warnings.warn('old', DeprecationWarning)")


def test_places_and_ports_of_this_machine_are_not_told(tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        said = terminal.run(Command(f"echo {tmp_path}/a {ROOT}/b {terminal.url}/c http://127.0.0.1:8000/d"))
        assert said == "a b http://127.0.0.1:8000/c http://127.0.0.1:8000/d\n"
        client = "from mmserve import Client; print(Client().base_url)"
        assert terminal.run_program(client) == "http://127.0.0.1:8000\n"


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal, pytest.raises(TourError, match="no-such-model"):
        terminal.run(Command("mmserve serve --model ./no-such-model"))


def test_the_pictures_are_what_the_tour_says(tmp_path: Path) -> None:
    draw(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files) == 7
    assert files["red-circle.png"] == files["copy-of-red-circle.png"]
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(files.pop("damaged.png"))).load()
    for data in files.values():
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (64, 64)


def test_shots_that_there_are_none_of(tmp_path: Path) -> None:
    with pytest.raises(TourError, match="no shot"):
        take(None, "http://x", "nothing", tmp_path, tmp_path)  # type: ignore[arg-type]
    which = boxed()
    assert which is None or "<|box_start|>" in gallery()[which]["answer"]
    assert {"welcome", "boxes"} <= SHOTS.keys()
