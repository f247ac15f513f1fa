"""A caption as a line of JSON, or of CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from mmserve.caption.ledger import Caption, LineLedger
from mmserve.types import Usage


def open_jsonl(path: Path) -> LineLedger:
    """A ledger in JSON Lines: an object a picture, ``{"file", "caption", "model", "usage", "sha256"}``."""
    return LineLedger(path, JsonLines())


def open_csv(path: Path) -> LineLedger:
    """A ledger in CSV, with a head line. A row is one line: line breaks inside a caption become spaces."""
    return LineLedger(path, CsvRows())


class JsonLines:
    @property
    def head(self) -> bytes:
        return b""

    def encode(self, caption: Caption) -> bytes:
        usage = caption.usage
        wire = {
            "file": caption.file,
            "caption": caption.caption,
            "model": caption.model,
            "usage": None if usage is None else {name: getattr(usage, name) for name in _COUNTS},
            "sha256": caption.sha256,
        }
        try:
            return json.dumps(wire, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # a file name that is not UTF-8
            return json.dumps(wire).encode() + b"\n"

    def decode(self, line: bytes) -> Caption:
        wire: dict[str, Any] = json.loads(line)
        usage = wire["usage"]
        return _caption(
            file=wire["file"],
            caption=wire["caption"],
            model=wire["model"],
            counts=None if usage is None else [usage[name] for name in _COUNTS],
            sha256=wire["sha256"],
        )

    def begins(self, line: bytes) -> bool:
        start = b'{"file": "'
        return line.startswith(start) or start.startswith(line)


class CsvRows:
    @property
    def head(self) -> bytes:
        return _row(["file", "caption", "model", *_COUNTS, "sha256"])

    def encode(self, caption: Caption) -> bytes:
        usage = caption.usage
        counts = [""] * len(_COUNTS) if usage is None else [str(getattr(usage, name)) for name in _COUNTS]
        # The digest is last: its length tells a whole row from the beginning of one.
        return _row([caption.file, " ".join(caption.caption.splitlines()), caption.model, *counts, caption.sha256])

    def decode(self, line: bytes) -> Caption:
        [row] = csv.reader([line.decode("utf-8", "surrogateescape")], strict=True)
        file, caption, model, *counts, sha256 = row
        if len(counts) != len(_COUNTS):
            raise ValueError("not a row of ours")
        return _caption(file, caption, model, [int(count) for count in counts] if any(counts) else None, sha256)

    def begins(self, line: bytes) -> bool:
        return self.head.startswith(line)


_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "image_tokens")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _row(cells: list[str]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode("utf-8", "surrogateescape")


def _caption(file: object, caption: object, model: object, counts: list[Any] | None, sha256: object) -> Caption:
    if not (isinstance(file, str) and isinstance(caption, str) and isinstance(model, str) and isinstance(sha256, str)):
        raise TypeError("a caption's file, text, model and digest are text")
    if not all(isinstance(count, int) for count in counts or ()):
        raise TypeError("token counts are whole numbers")
    if not _SHA256.fullmatch(sha256):
        raise ValueError("not a SHA-256")
    return Caption(file, caption, model, None if counts is None else Usage(*counts), sha256)
