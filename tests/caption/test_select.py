"""Folders, patterns, lists and single pictures; and pictures in formats that are not read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmserve.caption import PICTURE_SUFFIXES, UNREAD_SUFFIXES, Pictures, caption_pictures, select_pictures
from mmserve.errors import ConfigError, UnsupportedPicture
from tests.caption.harness import paint
from vision.header import ACCEPTED, probe

NAMES = ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.png", "sub/.hidden.png", "e.avif", "sub/f.HEIC", "notes.txt"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = paint(tmp_path, dict.fromkeys(NAMES, b""))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_folder(here: Path) -> None:  # noqa: ARG001
    found = select_pictures(["pictures"])
    assert found == Pictures(Path("pictures"), ("a.png", "b.JPG"), ("e.avif",))
    found = select_pictures(["pictures/"], recursive=True)
    assert found.files == ("a.png", "b.JPG", "sub/c.webp", "sub/deep/d.png")
    assert found.passed_over == ("e.avif", "sub/f.HEIC")


@pytest.mark.parametrize(
    ("pattern", "root", "files"),
    [
        ("pictures/*.png", "pictures", ("a.png",)),
        ("pictures/**/*.png", "pictures", ("a.png", "sub/deep/d.png")),
        ("pictures/sub/*", "pictures/sub", ("c.webp",)),
        ("pict*/sub/?.webp", ".", ("pictures/sub/c.webp",)),
    ],
)
def test_a_pattern(here: Path, pattern: str, root: str, files: tuple[str, ...]) -> None:  # noqa: ARG001
    found = select_pictures([pattern])
    assert (found.root, found.files) == (Path(root), files)


def test_a_picture(here: Path) -> None:  # noqa: ARG001
    assert select_pictures(["pictures/sub/c.webp"]) == Pictures(Path("pictures/sub"), ("c.webp",))


def test_a_name_that_looks_like_a_pattern(here: Path) -> None:
    shutil.copy(here / "a.png", here / "a[1].png")
    assert select_pictures(["pictures/a[1].png"]).files == ("a[1].png",)


def test_several_are_named_from_here_and_each_once(here: Path) -> None:
    found = select_pictures(["pictures/a.png", "pictures", "pictures/sub/*.webp", str(here / "a.png")])
    assert found.root == Path()
    assert found.files == ("pictures/a.png", "pictures/b.JPG", "pictures/sub/c.webp", (here / "a.png").as_posix())
    assert found.passed_over == ("pictures/e.avif",)


def test_a_list_and_stdin(here: Path) -> None:
    Path("list.txt").write_text(f"\ufeffpictures/a.png\n\n {here}/b.JPG \nno-ending\n", encoding="utf-8")
    files = ("pictures/a.png", f"{here.as_posix()}/b.JPG", "no-ending")
    assert select_pictures(["list.txt"]) == Pictures(Path(), files)
    assert select_pictures(["-"], stdin=["pictures/a.png\n", "./pictures/a.png\n"]).files == ("pictures/a.png",)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["nowhere"], "no folder, picture or list of files nowhere"),
        (["pictures/*.gif"], "no picture that pictures"),
        (["empty.txt"], "there is no picture in empty.txt"),
        (["unread"], r"convert x\.avif and the like to PNG or JPEG first"),
        (["binary.txt"], "cannot read the list of files binary.txt"),
    ],
)
def test_nothing_found(here: Path, sources: list[str], message: str) -> None:  # noqa: ARG001
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("unread").mkdir()
    Path("unread/x.avif").touch()
    with pytest.raises(ConfigError, match=message):
        select_pictures(sources)


def test_endings_are_those_of_formats_that_the_engine_reads() -> None:
    from mmserve.config import Limits

    assert not PICTURE_SUFFIXES & UNREAD_SUFFIXES
    names = {"jfif": "jpeg", "jpg": "jpeg", "tif": "tiff"}
    assert {names.get(s[1:], s[1:]) for s in PICTURE_SUFFIXES} == {n.strip().lower() for n in
            ACCEPTED.replace(" or ", ", ").split(",")}  # fmt: skip
    with pytest.raises(UnsupportedPicture, match="AVIF"):
        probe(b"\0\0\0\x20ftypavif" + bytes(40), Limits())


def test_concurrency_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    import asyncio

    from mmserve.caption import PicturePrompts, open_jsonl
    from tests.caption.harness import Artist

    async def go() -> None:
        with open_jsonl(tmp_path / "c.jsonl") as ledger:
            await caption_pictures(
                Pictures(tmp_path, ("a.png",)), Artist(), ledger, prompts=PicturePrompts("x", tmp_path), concurrency=0
            )

    with pytest.raises(ConfigError, match="at least 1"):
        asyncio.run(go())
