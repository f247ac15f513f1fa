"""A captioner that needs no model, folders of pictures that need no decoder, and ledgers read without this package."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mmserve import Answer
from mmserve.caption import (
    Ledger,
    Report,
    caption_folder,
    open_jsonl,
)
from mmserve.types import Usage

USAGE = Usage(90, 3, 80, 64)


class Artist:
    """A captioner: says what the bytes say. Records what it was asked; ``errors`` are raised for those bytes."""

    def __init__(self, errors: Mapping[bytes, Exception] | None = None, delay: float = 0.0) -> None:
        self.asked: list[bytes] = []
        self.prompts: set[str] = set()
        self.running = self.most = 0
        self._errors = errors or {}
        self._delay = delay

    async def ask(self, data: bytes, prompt: str, /) -> Answer:
        self.asked.append(data)
        self.prompts.add(prompt)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self._delay)
        finally:
            self.running -= 1
        if data in self._errors:
            raise self._errors[data]
        return Answer(f" a caption of {data.decode()}\n", "stop", USAGE, "pocket-vl")


class Open(Protocol):
    """Opens a ledger of some kind, and reads one without this package's help."""

    def __call__(self, root: Path) -> Any: ...


def paint(root: Path, pictures: Mapping[str, bytes]) -> Path:
    folder = root / "pictures"
    for name, data in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder.mkdir(exist_ok=True)
    return folder


def run(folder: Path, captioner: Any, ledger: Ledger, **options: Any) -> Report:
    return asyncio.run(caption_folder(folder, captioner, ledger, **options))


def run_jsonl(folder: Path, captioner: Any, path: Path, **options: Any) -> Report:
    with open_jsonl(path) as ledger:
        return run(folder, captioner, ledger, **options)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Every line must be a whole object."""
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.decode().split("\n")[:-1]]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


PICTURES = {"a.png": b"A", "b.jpg": b"B", "c.webp": b"C", "d.png": b"D"}
