"""What is asked about each picture, and captions after the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmserve.caption import Finish, PicturePrompts
from mmserve.errors import InvalidField
from tests.caption.harness import Artist, lines_of, paint, run_jsonl


class TestPrompts:
    def test_name_directory_and_tags(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"cats/tom.png": b"A", "b.png": b"B"})
        (folder / "cats" / "tom.txt").write_text("grey cat,  sofa ,\nindoors\n", encoding="utf-8")
        prompts = PicturePrompts("{name}|{directory}|{folder}|{tags}", folder)
        assert prompts.of("cats/tom.png") == "tom|cats|cats|grey cat, sofa, indoors"
        assert prompts.of("b.png") == "b|pictures|pictures|"

    def test_another_ending_for_tags(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"a.png": b"A"})
        (folder / "a.tags").write_bytes(b"caf\xe9")
        assert PicturePrompts("{tags}", folder, tags_suffix=".tags").of("a.png") == "caf\ufffd"

    def test_unknown_places(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidField, match=r"\{tag\}; did you mean \{tags\}"):
            PicturePrompts("{tag}", tmp_path)

    def test_the_run_asks_them(self, tmp_path: Path) -> None:
        folder, artist = paint(tmp_path, {"x/a.png": b"A", "x/b.png": b"B"}), Artist()
        run_jsonl(folder, artist, tmp_path / "c.jsonl", prompt="{name} of {directory}", recursive=True)
        assert artist.prompts == {"a of x", "b of x"}

    def test_the_same_bytes_under_another_prompt_are_asked_again(self, tmp_path: Path) -> None:
        folder, path = paint(tmp_path, {"a.png": b"same", "b.png": b"same"}), tmp_path / "c.jsonl"
        artist = Artist()
        run_jsonl(folder, artist, path, prompt="{name}?", concurrency=2)
        assert artist.asked == [b"same"] * 2
        (folder / "c.png").write_bytes(b"same")
        report = run_jsonl(folder, artist, path, prompt="{name}?")
        assert artist.asked == [b"same"] * 3
        assert (report.progress.skipped, report.progress.copied) == (2, 0)
        (folder / "d.png").write_bytes(b"same")
        assert run_jsonl(folder, artist, path, prompt="{directory}?").progress.copied == 1
        assert len(lines_of(path)) == 4


class TestFinish:
    def test_prefix_and_postfix(self) -> None:
        assert Finish("sks, ", ", photo")(" a cat\n") == "sks, a cat, photo"

    def test_what_repeats_is_dropped(self) -> None:
        finish = Finish(unique=True)
        assert finish("cat, Sofa, cat,sofa,  dog , cat,,") == "cat, Sofa, dog"
        assert Finish(separator="; ", unique=True)("a;b; a") == "a; b"
        assert Finish()("cat, cat") == "cat, cat"
