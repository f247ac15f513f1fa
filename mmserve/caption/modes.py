"""What becomes of captions that are there already: they stay, or a run replaces or continues them.

A run that replaces or appends may be ended and repeated too: what it has done is in a file of its own until its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from mmserve.caption.formats import CsvRows, JsonLines, open_jsonl
from mmserve.caption.ledger import Caption, LineFormat, LineLedger, read_ledger
from mmserve.caption.sidecar import SidecarLedger
from mmserve.errors import ConfigError


class Mode(Enum):
    SKIP = "skip-existing"
    OVERWRITE = "overwrite"
    APPEND = "append"


class Recorded:
    """A ledger to look at only: what a file or a folder holds, without opening it for writing."""

    def __init__(self, captions: Mapping[str, Caption]) -> None:
        self._captions = captions

    def recorded(self, files: Sequence[str]) -> Mapping[str, Caption]:
        return {file: self._captions[file] for file in files if file in self._captions}

    def write(self, caption: Caption) -> None:
        raise AssertionError(f"nothing is written here, and {caption.file} was to be")


@contextmanager
def open_lines(path: Path, mode: Mode = Mode.SKIP) -> Iterator[LineLedger]:
    """The ledger ``path`` (``.jsonl`` or ``.csv``). Replaced, the old one stays until the new one is complete.

    Raises ConfigError as :class:`LineLedger` does, and for another ending.
    """
    form = _form(path, mode)
    if mode is Mode.SKIP:
        with LineLedger(path, form) as ledger:
            yield ledger
        return
    read_ledger(path, form)  # what is no ledger is not replaced
    unfinished = _unfinished(path)
    with LineLedger(unfinished, form) as ledger:
        yield ledger
    os.replace(unfinished, path)


def recorded_lines(path: Path, mode: Mode = Mode.SKIP) -> Recorded:
    """What :func:`open_lines` would start from."""
    form = _form(path, mode)
    known = read_ledger(path, form)
    return Recorded(known if mode is Mode.SKIP else read_ledger(_unfinished(path), form))


@contextmanager
def open_sidecars(
    root: Path, out: Path | None = None, *, suffix: str = ".txt", mode: Mode = Mode.SKIP, separator: str = ", "
) -> Iterator[SidecarLedger]:
    """Text files beside the pictures of ``root``, or below ``out``."""
    if mode is Mode.SKIP:
        yield SidecarLedger(root, out, suffix=suffix)
        return
    path = sidecar_journal(root, out, suffix, mode)
    between = separator if mode is Mode.APPEND else None
    with open_jsonl(path) as journal:
        yield SidecarLedger(root, out, suffix=suffix, journal=journal, separator=between)
    path.unlink()


def recorded_sidecars(
    root: Path, out: Path | None = None, *, suffix: str = ".txt", mode: Mode = Mode.SKIP
) -> SidecarLedger | Recorded:
    """What :func:`open_sidecars` would start from."""
    if mode is Mode.SKIP:
        return SidecarLedger(root, out, suffix=suffix)
    return Recorded(read_ledger(sidecar_journal(root, out, suffix, mode), JsonLines()))


def sidecar_journal(root: Path, out: Path | None, suffix: str, mode: Mode) -> Path:
    """Where a run that replaces or appends keeps what it has done, until its end."""
    return (root if out is None else out) / f".captions{suffix}.{mode.value}.jsonl"


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.stem}.unfinished{path.suffix}")


def _form(path: Path, mode: Mode) -> LineFormat:
    forms: Mapping[str, LineFormat] = {".jsonl": JsonLines(), ".csv": CsvRows()}
    if path.suffix not in forms:
        raise ConfigError(f"--out must end in .jsonl or .csv, not {path.suffix!r}; --sidecar writes .txt files")
    if mode is Mode.APPEND:
        raise ConfigError(
            f"--append adds to text files (--sidecar); {path.name} gets the lines that it lacks without it"
        )
    return forms[path.suffix]
