"""Captions beside their pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmserve.caption import (
    SidecarLedger,
)
from mmserve.errors import (
    ConfigError,
)
from tests.caption.harness import PICTURES, Artist, paint, run


class Killed(BaseException):
    """The end of the process, as far as the code can tell; a real KeyboardInterrupt would pass through event loops."""


class TestSidecars:
    def texts(self, root: Path) -> dict[str, str]:
        return {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.rglob("*")) if p.suffix == ".txt"}

    def test_beside_each_picture(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"a.png": b"A", "sub/b.tar.jpg": b"B"})
        run(folder, Artist(), SidecarLedger(folder), recursive=True)
        assert self.texts(folder) == {"a.txt": "a caption of A\n", "sub/b.tar.txt": "a caption of B\n"}

    def test_in_a_folder_of_their_own(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"a.png": b"A", "sub/b.jpg": b"B"})
        run(folder, Artist(), SidecarLedger(folder, tmp_path / "out"), recursive=True)
        assert self.texts(tmp_path / "out") == {"a.txt": "a caption of A\n", "sub/b.txt": "a caption of B\n"}
        assert self.texts(folder) == {}

    def test_with_another_suffix(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"a.png": b"A"})
        run(folder, Artist(), SidecarLedger(folder, suffix=".caption"))
        assert (folder / "a.caption").read_text() == "a caption of A\n"

    def test_those_that_are_there_stay(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, PICTURES)
        (folder / "b.txt").write_bytes(b"written by hand, caf\xe9")
        (folder / "c.txt").write_text(" \n")  # blank: nobody wrote a caption
        artist = Artist()
        report = run(folder, artist, SidecarLedger(folder))
        assert sorted(artist.asked) == [b"A", b"C", b"D"]
        assert (folder / "b.txt").read_bytes() == b"written by hand, caf\xe9"
        assert (folder / "c.txt").read_text() == "a caption of C\n"
        assert report.progress.skipped == 1

    def test_one_that_was_cut_short_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, ledger = paint(tmp_path, {"a.png": b"A"}), None

        def die(*_: object) -> None:
            raise Killed

        ledger = SidecarLedger(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            with pytest.raises(BaseExceptionGroup):
                run(folder, Artist(), ledger)
        assert self.texts(folder) == {}
        assert ledger.recorded(["a.png"]) == {}
        run(folder, Artist(), ledger)
        assert [p.name for p in sorted(folder.iterdir())] == ["a.png", "a.txt"]

    def test_copies_over_two_runs_are_captioned_once(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"b.png": b"same", "c.png": b"size"})
        run(folder, Artist(), SidecarLedger(folder))
        (folder / "a.png").write_bytes(b"same")
        artist = Artist()
        report = run(folder, artist, SidecarLedger(folder))
        assert artist.asked == []
        assert (folder / "a.txt").read_text() == "a caption of same\n"
        assert report.progress.copied == 1

    def test_two_pictures_with_one_sidecar(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"a.jpg": b"A", "a.png": b"B"})
        artist = Artist()
        with pytest.raises(ConfigError, match=r"a\.jpg and a\.png would both have their caption in a\.txt"):
            run(folder, artist, SidecarLedger(folder))
        assert artist.asked == []
