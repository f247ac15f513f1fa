"""Which files are pictures, and which of them are meant."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mmserve.errors import ConfigError

PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings of the formats that the engine accepts (``vision.header``)."""

UNREAD_SUFFIXES = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl"})
"""Endings of pictures in formats that it refuses; they are named, so that nobody misses them silently."""

_LISTS = frozenset({"", ".list", ".lst", ".txt"})


@dataclass(frozen=True, slots=True)
class Pictures:
    """``files`` are names relative to ``root``, with ``/`` between parts (absolute where listed so), each once.

    ``passed_over`` are pictures in formats that are not read.
    """

    root: Path
    files: tuple[str, ...]
    passed_over: tuple[str, ...] = ()


def find_pictures(folder: Path, *, recursive: bool = False) -> list[str]:
    """Names of the pictures in ``folder``, relative to it and with ``/`` between parts, in the order of their names.

    A picture is known by its suffix, in either case. Names that begin with a dot are passed over, and links to
    folders are not followed. Raises ConfigError when the folder cannot be read or has no picture.
    """
    return list(pictures_in(folder, recursive=recursive).files)


def pictures_in(folder: Path, *, recursive: bool = False) -> Pictures:
    """:func:`find_pictures`, with what was passed over."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}")
    found = []
    for where, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
        found += [Path(where, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    hint = "" if recursive else "; its subfolders are searched only when that is asked for (--recursive)"
    return _sorted_out(folder, sorted(found), f"in {folder}", hint)


def select_pictures(sources: Sequence[str], *, recursive: bool = False, stdin: Iterable[str] = ()) -> Pictures:
    """The pictures that ``sources`` name: folders, picture files, patterns (``*``, ``?``, ``[…]``, ``**`` for folders
    below), and lists of files (a ``.txt`` with a path a line, relative to the working folder; ``-`` is ``stdin``).

    Names are relative to the one folder, or to the folder in which the one pattern begins; else to the working folder.
    A file named in a list or by itself is taken whatever its ending. Raises ConfigError where there is no picture.
    """
    if len(sources) == 1:
        [source] = sources
        path = Path(source)
        if path.is_dir():
            return pictures_in(path, recursive=recursive)
        if glob.has_magic(source) and not path.exists():
            root = _fixed_part(source)
            names = [Path(name).relative_to(root).as_posix() for name in _matches(source)]
            return _sorted_out(root, sorted(set(names)), f"that {source} fits")
        if path.is_file() and path.suffix.lower() not in _LISTS:
            return Pictures(path.parent, (path.name,))
    files: list[str] = []
    passed_over: list[str] = []
    for source in sources:
        part = _from_here(source, recursive, stdin)
        files += part.files
        passed_over += part.passed_over
    if not files:
        raise ConfigError(f"there is no picture in {', '.join(sources)}")
    return Pictures(Path(), tuple(dict.fromkeys(files)), tuple(dict.fromkeys(passed_over)))


def read_picture(path: Path) -> tuple[bytes, str]:
    """A file's bytes and their SHA-256 in hexadecimal. Raises OSError."""
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()


def _from_here(source: str, recursive: bool, stdin: Iterable[str]) -> Pictures:
    """What ``source`` names, relative to the working folder."""
    path = Path(source)
    here = Path()
    if source == "-":
        return Pictures(here, tuple(_lines(stdin)))
    if path.is_dir():
        found = pictures_in(path, recursive=recursive)
        files, passed_over = (
            tuple((path / name).as_posix() for name in names) for names in (found.files, found.passed_over)
        )
        return Pictures(here, files, passed_over)
    if path.is_file():
        if path.suffix.lower() not in _LISTS:
            return Pictures(here, (path.as_posix(),))
        try:
            return Pictures(here, tuple(_lines(path.read_text(encoding="utf-8-sig").splitlines())))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the list of files {source}: {error}") from None
    if glob.has_magic(source):
        return _sorted_out(here, sorted({Path(name).as_posix() for name in _matches(source)}), f"that {source} fits")
    raise ConfigError(f"there is no folder, picture or list of files {source}")


def _lines(lines: Iterable[str]) -> list[str]:
    return [Path(line.strip()).as_posix() for line in lines if line.strip()]


def _matches(pattern: str) -> list[str]:
    return [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]


def _fixed_part(pattern: str) -> Path:
    """The folders of ``pattern`` before its first part that is one."""
    fixed = Path()
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _sorted_out(root: Path, names: Sequence[str], where: str, hint: str = "") -> Pictures:
    """Raises ConfigError where none of ``names`` is a picture that can be read."""
    files = tuple(name for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES)
    unread = tuple(name for name in names if Path(name).suffix.lower() in UNREAD_SUFFIXES)
    if not files:
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        if unread:
            hint = f"; convert {unread[0]} and the like to PNG or JPEG first" + hint
        raise ConfigError(f"there is no picture {where} (looked for {kinds}){hint}")
    return Pictures(root, files, unread)


def _refuse(error: OSError) -> NoReturn:
    raise ConfigError(f"cannot read the folder {error.filename}: {error.strerror}") from error
