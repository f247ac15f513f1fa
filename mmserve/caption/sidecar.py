"""A caption beside each picture, as trainers of image models read them: ``cat.jpg`` and ``cat.txt``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from mmserve.caption.ledger import Caption
from mmserve.errors import ConfigError


class SidecarLedger:
    """Captions as text files beside the pictures of ``folder``, or in ``out`` with the same subfolders.

    A sidecar appears whole or not at all. One that is there and not blank counts, whoever wrote it, and is never
    written again.
    """

    def __init__(self, folder: Path, out: Path | None = None, *, suffix: str = ".txt") -> None:
        self._root = folder if out is None else out
        self._suffix = suffix

    def recorded(self, files: Sequence[str]) -> Mapping[str, Caption]:
        """Raises ConfigError when two of ``files`` would share one sidecar."""
        owners: dict[Path, str] = {}
        for file in files:
            first = owners.setdefault(self._sidecar(file), file)
            if first != file:
                raise ConfigError(
                    f"{first} and {file} would both have their caption in {self._sidecar(file).name};"
                    " rename one of them, or write JSON Lines instead"
                )
        texts = {file: self._read(sidecar) for sidecar, file in owners.items()}
        return {file: Caption(file, text, "", None, "") for file, text in texts.items() if text}

    def write(self, caption: Caption) -> None:
        sidecar = self._sidecar(caption.file)
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        unfinished = sidecar.with_name(f".{sidecar.name}.part")
        unfinished.write_text(caption.caption + "\n", encoding="utf-8")
        os.replace(unfinished, sidecar)

    def _sidecar(self, file: str) -> Path:
        return self._root / PurePosixPath(file).with_suffix(self._suffix)

    def _read(self, sidecar: Path) -> str:
        try:
            return sidecar.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""
