"""A caption beside each picture, as trainers of image models read them: ``cat.jpg`` and ``cat.txt``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from mmserve.caption.ledger import Caption, LineLedger
from mmserve.errors import ConfigError


class SidecarLedger:
    """Captions as text files beside the pictures of ``folder``, or in ``out`` with the same subfolders.

    A sidecar is one line (trainers read the first), and appears whole or not at all. One that is there and not blank
    counts, whoever wrote it, and is never written again; unless there is a ``journal`` of what the run has done so far:
    then only that counts, and what is there is replaced, or kept before ``separator`` and the caption. A caption that a
    text ends with already is not appended again.
    """

    def __init__(
        self,
        folder: Path,
        out: Path | None = None,
        *,
        suffix: str = ".txt",
        journal: LineLedger | None = None,
        separator: str | None = None,
    ) -> None:
        self._root = folder if out is None else out
        self._apart = out is not None
        self._suffix = suffix
        self._journal = journal
        self._separator = separator

    def recorded(self, files: Sequence[str]) -> Mapping[str, Caption]:
        """Raises ConfigError when two of ``files`` would share one sidecar, or one would lie outside the folder."""
        owners: dict[Path, str] = {}
        for file in files:
            first = owners.setdefault(self._sidecar(file), file)
            if first != file:
                raise ConfigError(
                    f"{first} and {file} would both have their caption in {self._sidecar(file).name};"
                    " rename one of them, or write JSON Lines instead"
                )
        if self._journal is not None:
            if self._journal.last is not None:  # its journal's line came first; a crash may have come next
                self._put(self._journal.last)
            return self._journal.recorded(files)
        texts = {file: self._read(sidecar) for sidecar, file in owners.items()}
        return {file: Caption(file, text, "", None, "") for file, text in texts.items() if text}

    def write(self, caption: Caption) -> None:
        if self._journal is not None:
            self._journal.write(caption)
        self._put(caption)

    def _put(self, caption: Caption) -> None:
        sidecar = self._sidecar(caption.file)
        text = " ".join(caption.caption.splitlines())
        if self._separator is not None and (before := self._read(sidecar)):
            text = before if before.endswith(text) else before + self._separator + text
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        unfinished = sidecar.with_name(f".{sidecar.name}.part")
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, sidecar)

    def _sidecar(self, file: str) -> Path:
        path = PurePosixPath(file)
        if self._apart and (path.is_absolute() or ".." in path.parts):
            raise ConfigError(
                f"{file} does not lie below the working folder, so it has no place in {self._root};"
                " write beside each picture instead (no --out)"
            )
        return self._root / path.with_suffix(self._suffix)

    def _read(self, sidecar: Path) -> str:
        try:
            return sidecar.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""
