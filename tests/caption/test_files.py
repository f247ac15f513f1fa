"""Which files of a folder are pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmserve.caption import (
    find_pictures,
)
from mmserve.errors import (
    ConfigError,
)
from tests.caption.harness import paint


class TestFind:
    def test_by_suffix_in_the_order_of_names(self, tmp_path: Path) -> None:
        folder = paint(
            tmp_path,
            dict.fromkeys(
                ["b.JPG", "a.png", "c.txt", "d.jpeg", ".hidden.png", "猫.webp", "e.png.bak", "noext", "f.TIFF"], b""
            ),
        )
        (folder / "folder.png").mkdir()
        assert find_pictures(folder) == ["a.png", "b.JPG", "d.jpeg", "f.TIFF", "猫.webp"]

    def test_subfolders_when_asked(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, dict.fromkeys(["b/z.png", "b.png", "a/x/y.png", ".git/q.png", "c.png"], b""))
        assert find_pictures(folder) == ["b.png", "c.png"]
        assert find_pictures(folder, recursive=True) == ["a/x/y.png", "b.png", "b/z.png", "c.png"]

    def test_links_to_folders_are_not_followed(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"a.png": b""})
        (folder / "loop").symlink_to(folder, target_is_directory=True)
        assert find_pictures(folder, recursive=True) == ["a.png"]

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"there is no folder .*missing"):
            find_pictures(tmp_path / "missing")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        with pytest.raises(ConfigError, match=r"a\.png is not a folder"):
            find_pictures(tmp_path / "a.png")

    def test_nothing_found(self, tmp_path: Path) -> None:
        folder = paint(tmp_path, {"sub/a.png": b"", "b.txt": b""})
        with pytest.raises(ConfigError, match=r"there is no picture in .*\.png.*--recursive"):
            find_pictures(folder)
        with pytest.raises(ConfigError, match="there is no picture in"):
            find_pictures(folder / "..", recursive=False)
