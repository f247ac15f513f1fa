"""Where captions are written as they come, and what earlier runs wrote.

A ledger is one file, a caption a line (JSON Lines or CSV). A line is written by one call and counts once it is whole;
a line that a crash cut short is taken off when the ledger is opened again.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from mmserve.errors import ConfigError
from mmserve.types import Usage


@dataclass(frozen=True, slots=True)
class Caption:
    """The caption of one picture: ``file`` is relative to the folder, ``sha256`` that of its bytes, in hexadecimal.

    ``usage`` is None where nothing was asked: the bytes had their caption from another file. ``model`` and ``sha256``
    are empty where they are not known (sidecar files).
    """

    file: str
    caption: str
    model: str
    usage: Usage | None
    sha256: str


class Ledger(Protocol):
    """Keeps captions. ``recorded`` is a query; ``write`` returns once the caption is with the operating system."""

    def recorded(self, files: Sequence[str]) -> Mapping[str, Caption]:
        """What earlier runs left for any of ``files``, by file."""

    def write(self, caption: Caption) -> None:
        """Add a caption. Raises OSError, for example on a full disk."""


class LineFormat(Protocol):
    """A caption as a line."""

    @property
    def head(self) -> bytes:
        """The file's first line, or nothing."""

    def encode(self, caption: Caption) -> bytes:
        """The line, with its end and no other line end in it."""

    def decode(self, line: bytes) -> Caption:
        """Raises one of ``NOT_A_CAPTION`` for a line that is not a whole caption."""

    def begins(self, line: bytes) -> bool:
        """Whether ``line``, which has no end, may be the beginning of a file's first line as written here."""


NOT_A_CAPTION = (ValueError, LookupError, TypeError, AttributeError, csv.Error)


class LineLedger:
    """Captions as lines of one file, which it owns until ``close``; a second ledger on the file is refused meanwhile.

    Opening it repairs the end that a crash left. Lines in the middle that are not captions stay and do not count.
    Raises ConfigError when the file holds something else than captions, or cannot be opened.
    """

    def __init__(self, path: Path, form: LineFormat) -> None:
        self.path = path
        self._form = form
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        try:
            _lock(self._file.fileno(), path)
            self._recorded = self._take_over(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Bring everything to the disk and close the file. May be called again."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def recorded(self, files: Sequence[str]) -> Mapping[str, Caption]:
        return {file: self._recorded[file] for file in files if file in self._recorded}

    @property
    def last(self) -> Caption | None:
        """What earlier runs wrote last."""
        return next(reversed(self._recorded.values()), None)

    def write(self, caption: Caption) -> None:
        self._append(self._form.encode(caption))

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _take_over(self, path: Path) -> dict[str, Caption]:
        """What the file holds, its end repaired."""
        found = _scan(path, self._form)
        self._file.truncate(found.end)
        if found.end == 0:
            self._append(self._form.head)
        elif found.lacks_line_end:
            self._append(b"\n")
        return found.captions


def read_ledger(path: Path, form: LineFormat) -> Mapping[str, Caption]:
    """A ledger's captions by file, with nothing opened for writing; none where there is no file. Raises ConfigError."""
    try:
        return _scan(path, form).captions if path.exists() else {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Scan:
    """A ledger's captions (the last one of a file counts), and the byte after the last line that is kept."""

    captions: dict[str, Caption]
    end: int
    lacks_line_end: bool


def _scan(path: Path, form: LineFormat) -> _Scan:
    captions: dict[str, Caption] = {}
    end = 0
    ours = True  # until a line that is not: an empty file is fine
    torn = b""
    with open(path, "rb") as lines:
        for line in lines:
            caption = _decode(form, line)
            if caption is not None:
                captions.pop(caption.file, None)  # so that the order is that of the lines that count
                captions[caption.file] = caption
            elif not line.endswith(b"\n"):
                torn = line
                break
            elif line.strip() and not (end == 0 and _same_row(line, form.head)):
                ours = False
            end += len(line)
    if end == 0 and torn:
        ours = form.begins(torn)
    if not ours and not captions:
        raise ConfigError(f"{path} holds something else than captions; name another file, or move this one away")
    return _Scan(captions, end, lacks_line_end=end > 0 and not torn and not line.endswith(b"\n"))


def _decode(form: LineFormat, line: bytes) -> Caption | None:
    try:
        return form.decode(line)
    except NOT_A_CAPTION:
        return None


def _same_row(line: bytes, head: bytes) -> bool:
    """Whether ``line`` is ``head``, give or take the byte order mark and the line end of a spreadsheet program."""
    return bool(head) and line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") == head.rstrip(b"\n")


def _lock(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":  # no flock there; two runs on one ledger are then not noticed
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another run is writing {path}; wait for it, or name another file") from error
    except OSError:  # a file system without locks
        return
