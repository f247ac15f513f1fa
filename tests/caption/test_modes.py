"""Captions that are there already: kept, replaced or continued; ended at any moment and repeated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from mmserve import Answer
from mmserve.caption import (
    Ledger,
    Mode,
    PicturePrompts,
    open_lines,
    open_sidecars,
    plan_captions,
    recorded_lines,
    recorded_sidecars,
    select_pictures,
)
from mmserve.caption.modes import sidecar_journal
from mmserve.errors import ConfigError, EngineUnavailable
from tests.caption.harness import PICTURES, USAGE, Artist, lines_of, paint, run

FILES = list(PICTURES)


class Second(Artist):
    """Says something else than the first run did, and dies after ``calls`` answers."""

    def __init__(self, calls: int | None = None) -> None:
        super().__init__()
        self._calls = calls

    async def ask(self, data: bytes, prompt: str, /) -> Answer:
        if len(self.asked) == self._calls:
            raise EngineUnavailable("gone")
        await super().ask(data, prompt)
        return Answer(f"second {data.decode()}", "stop", USAGE, "m")


Opened = Callable[[], AbstractContextManager[Ledger]]


def interrupted(folder: Path, open_: Opened, calls: int) -> Second:
    artist = Second(calls)
    with pytest.raises(EngineUnavailable), open_() as ledger:
        run(folder, artist, ledger, concurrency=1)
    return artist


def finished(folder: Path, open_: Opened, artist: Any = None) -> Any:
    artist = artist or Second()
    with open_() as ledger:
        run(folder, artist, ledger, concurrency=1)
    return artist


class TestLines:
    @pytest.mark.parametrize("ending", ["jsonl", "csv"])
    @pytest.mark.parametrize("calls", range(4))
    def test_overwriting_keeps_the_old_until_the_new_is_whole(self, tmp_path: Path, ending: str, calls: int) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / f"c.{ending}"
        finished(folder, lambda: open_lines(path), Artist())
        before = path.read_bytes()
        first = interrupted(folder, lambda: open_lines(path, Mode.OVERWRITE), calls)
        assert path.read_bytes() == before
        second = finished(folder, lambda: open_lines(path, Mode.OVERWRITE))
        assert sorted(first.asked + second.asked) == [b"A", b"B", b"C", b"D"]
        known = recorded_lines(path).recorded(FILES)
        assert {file: caption.caption for file, caption in known.items()} == {
            file: f"second {data.decode()}" for file, data in PICTURES.items()
        }
        assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]

    def test_nothing_else_is_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.csv"
        path.write_text("my,notes\n")
        with pytest.raises(ConfigError, match="something else"), open_lines(path, Mode.OVERWRITE):
            pass
        assert path.read_text() == "my,notes\n"

    def test_append_is_for_text_files(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ConfigError, match="--append adds to text files"),
            open_lines(tmp_path / "c.jsonl", Mode.APPEND),
        ):
            pass  # fmt: skip

    def test_another_ending(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ConfigError, match=r"must end in \.jsonl or \.csv, not '\.json'"),
            open_lines(tmp_path / "c.json"),
        ):
            pass  # fmt: skip


class TestSidecars:
    @pytest.mark.parametrize("mode", [Mode.OVERWRITE, Mode.APPEND])
    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("calls", range(4))
    def test_goes_on_where_it_was_ended(self, tmp_path: Path, mode: Mode, apart: bool, calls: int) -> None:
        folder = paint(tmp_path, PICTURES)
        out = tmp_path / "texts" if apart else None
        root = out or folder
        finished(folder, lambda: open_sidecars(folder, out), Artist())

        def open_() -> AbstractContextManager[Ledger]:
            return open_sidecars(folder, out, mode=mode, separator="; ")

        first = interrupted(folder, open_, calls)
        second = finished(folder, open_)
        assert sorted(first.asked + second.asked) == [b"A", b"B", b"C", b"D"]
        for file, data in PICTURES.items():
            old = f"a caption of {data.decode()}; " if mode is Mode.APPEND else ""
            assert (root / file).with_suffix(".txt").read_text() == f"{old}second {data.decode()}\n"
        assert not list(root.glob(".*"))

    @pytest.mark.parametrize("mode", [Mode.OVERWRITE, Mode.APPEND])
    @pytest.mark.parametrize("written", [False, True])
    def test_a_crash_between_the_journal_and_the_text(self, tmp_path: Path, mode: Mode, written: bool) -> None:
        folder = paint(tmp_path, {"a.png": b"A"})
        text = folder / "a.txt"
        text.write_text("old\n")
        with contextlib.suppress(EngineUnavailable), open_sidecars(folder, mode=mode) as ledger:
            run(folder, Second(), ledger)
            if not written:
                text.write_text("old\n")
            raise EngineUnavailable("gone")
        artist = finished(folder, lambda: open_sidecars(folder, mode=mode))
        assert artist.asked == []
        assert text.read_text() == ("second A\n" if mode is Mode.OVERWRITE else "old, second A\n")

    def test_what_a_text_ends_with_is_not_appended_again(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"a.png": b"A"})
        for _ in range(2):
            finished(folder, lambda: open_sidecars(folder, mode=Mode.APPEND))
        assert (folder / "a.txt").read_text() == "second A\n"

    def test_a_picture_elsewhere_has_no_place_below_out(self, tmp_path: Path) -> None:
        for file in (str(tmp_path / "a.png"), "../a.png"):
            with open_sidecars(tmp_path, tmp_path / "texts") as ledger, pytest.raises(ConfigError, match="no place"):
                ledger.recorded([file])

    def test_a_text_is_one_line(self, tmp_path: Path) -> None:
        class Poet(Artist):
            async def ask(self, data: bytes, prompt: str, /) -> Answer:  # noqa: ARG002
                return Answer("a cat\non a mat", "stop", USAGE, "m")

        folder = paint(tmp_path, {"a.png": b"A"})
        finished(folder, lambda: open_sidecars(folder), Poet())
        assert (folder / "a.txt").read_text() == "a cat on a mat\n"


class TestPlan:
    def plan(self, folder: Path, ledger: Ledger) -> list[tuple[str, str]]:
        pictures = select_pictures([str(folder)])
        return asyncio.run(plan_captions(pictures, ledger, prompts=PicturePrompts("{name}?", folder)))

    def test_what_is_left_and_nothing_is_touched(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, PICTURES), tmp_path / "c.jsonl"
        whole = [(file, f"{Path(file).stem}?") for file in PICTURES]
        assert self.plan(folder, recorded_lines(path)) == whole
        assert not path.exists()
        interrupted(folder, lambda: open_lines(path), 2)
        path.write_bytes(path.read_bytes() + b'{"file": "c.w')
        before = path.read_bytes()
        assert self.plan(folder, recorded_lines(path)) == whole[2:]
        (folder / "a.png").write_bytes(b"changed")
        assert self.plan(folder, recorded_lines(path)) == [whole[0], *whole[2:]]
        assert self.plan(folder, recorded_lines(path, Mode.OVERWRITE)) == whole
        assert path.read_bytes() == before
        assert len(lines_of_whole(path)) == 2

    def test_of_text_files(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, PICTURES)
        (folder / "a.txt").write_text("x")
        assert [file for file, _ in self.plan(folder, recorded_sidecars(folder))] == FILES[1:]
        assert len(self.plan(folder, recorded_sidecars(folder, mode=Mode.OVERWRITE))) == 4
        interrupted(folder, lambda: open_sidecars(folder, mode=Mode.OVERWRITE), 3)
        assert sidecar_journal(folder, None, ".txt", Mode.OVERWRITE).exists()
        assert len(self.plan(folder, recorded_sidecars(folder, mode=Mode.OVERWRITE))) == 1
        assert len(self.plan(folder, recorded_sidecars(folder, mode=Mode.APPEND))) == 4


def lines_of_whole(path: Path) -> list[Any]:
    """The lines before one that a crash cut short."""
    whole = path.with_suffix(".whole")
    whole.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n")
    return lines_of(whole)
