"""Captioning by many workers: what a worker does with a batch of pictures, and what is done with its rows. No Ray here.

A worker may die, and what it was doing is then done again by another; the one who collects the rows keeps the first of
each picture, so every picture has one caption however often it was asked about.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mmserve.caption import Caption, Captioner, Failure, Ledger, PicturePrompts, Progress
from mmserve.client import about_picture
from mmserve.errors import ConfigError, MMServeError, WireError, from_wire
from mmserve.types import Usage

Open: TypeAlias = "Callable[[], AbstractAsyncContextManager[Captioner]]"
"""Opens a captioner in a worker's process; it is sent there, so it must pickle."""

Row: TypeAlias = "dict[str, Any]"

_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "image_tokens", "cached_pictures")


@dataclass(frozen=True, slots=True)
class Workers:
    """``count`` engines, each with ``cpus`` and ``gpus`` of its node, captioning ``batch`` pictures at a time."""

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    batch: int = 32

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise ConfigError("there must be at least 1 worker and 1 picture at a time")


@dataclass(frozen=True, slots=True)
class Table:
    """Parquet files: ``address`` is a file, a folder or an address in an object store. ``picture`` names the column
    with the files' bytes (or with structs that have them as ``bytes``), ``name`` that which names each, once."""

    address: str
    picture: str = "image"
    name: str = "file"


@dataclass(frozen=True, slots=True)
class Store:
    """All pictures below an address such as ``s3://bucket/folder``; each is named by its path."""

    address: str


class Worker:
    """Captions batches with a captioner of its own, which lives on an event loop in a thread of its own.

    A batch has the columns ``file``, the picture's name, and either ``path``, where its bytes are read, or ``bytes``.
    What comes back has a row a picture: ``file``, ``caption``, ``model``, ``sha256``, the token counts, and ``error``
    with its ``code``, or empty ones. Raises the errors that would meet every picture.
    """

    def __init__(self, open_captioner: Open, prompts: PicturePrompts, known: frozenset[str] = frozenset()) -> None:
        self._prompts = prompts
        self._known = known
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mmserve-captions", daemon=True)
        self._thread.start()
        self._context = open_captioner()
        self._captioner: Captioner = self._run(self._context.__aenter__())

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Pictures in ``known`` have their caption already, and no row comes back for them."""
        names = [str(name) for name in batch["file"]]
        found = batch.get("bytes", [None] * len(names))
        paths = batch.get("path", names)
        todo = [(n, d, p) for n, d, p in zip(names, found, paths, strict=True) if n not in self._known]
        rows: list[Row] = self._run(self._all(todo))
        return {column: [row[column] for row in rows] for column in COLUMNS}

    def close(self) -> None:
        self._run(self._context.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _all(self, todo: Sequence[tuple[str, Any, Any]]) -> list[Row]:
        return list(await asyncio.gather(*(self._one(name, data, str(path)) for name, data, path in todo)))

    async def _one(self, name: str, data: Any, path: str) -> Row:
        try:
            known = bytes(data) if data is not None else await asyncio.to_thread(Path(path).read_bytes)
            prompt = await asyncio.to_thread(self._prompts.of, name)
            answer = await self._captioner.ask(known, prompt)
        except (OSError, MMServeError) as error:
            if not about_picture(error):
                raise
            wire = error.to_wire() if isinstance(error, MMServeError) else MMServeError(str(error)).to_wire()
            return {**_EMPTY, "file": name, "error": wire["message"], "code": wire["code"]}
        counts = {count: getattr(answer.usage, count) for count in _COUNTS}
        digest = hashlib.sha256(known).hexdigest()
        return {**_EMPTY, **counts, "file": name, "caption": answer.text, "model": answer.model, "sha256": digest}


_EMPTY: Row = {
    "file": "",
    "caption": "",
    "model": "",
    "sha256": "",
    "error": "",
    "code": "",
    **dict.fromkeys(_COUNTS, 0),
}
COLUMNS = tuple(_EMPTY)


@dataclass(slots=True)
class Collector:
    """Writes each picture's first row to ``ledger``. ``total`` and ``skipped`` are of the run, for its progress;
    ``twice`` counts rows of pictures that had one."""

    ledger: Ledger
    finish: Callable[[str], str]
    clock: Callable[[], float]
    total: int
    skipped: int = 0
    on_progress: Callable[[Progress], None] | None = None
    twice: int = 0
    failures: list[Failure] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _counts: dict[str, int] = field(default_factory=dict)
    _start: float | None = None

    def start(self) -> None:
        """The time of the run counts from now on, engines that are loaded first and all."""
        self._start = self.clock()

    def take(self, rows: Iterable[Row]) -> None:
        """Raises OSError when a caption cannot be written."""
        for row in rows:
            if row["file"] in self._seen:
                self.twice += 1
                continue
            self._seen.add(row["file"])
            self._write(row)
            if self.on_progress is not None:
                self.on_progress(self.progress())

    def progress(self) -> Progress:
        seconds = 0.0 if self._start is None else self.clock() - self._start
        counts = {name: self._counts.get(name, 0) for name in ("captioned", "failed", *_SUMS)}
        return Progress(max(self.total, self.skipped + len(self._seen)), self.skipped, seconds=seconds, **counts)

    def _write(self, row: Row) -> None:
        if row["error"]:
            wire = WireError(message=row["error"], type="", param=None, code=row["code"])
            self.failures.append(Failure(row["file"], from_wire(wire)))
            self._add(failed=1)
            return
        usage = Usage(*(int(row[count]) for count in _COUNTS))
        text = self.finish(row["caption"]).encode("utf-8", "replace").decode()
        self.ledger.write(Caption(row["file"], text, row["model"], usage, row["sha256"]))
        self._add(captioned=1, **{name: getattr(usage, name) for name in _SUMS})

    def _add(self, **more: int) -> None:
        for name, number in more.items():
            self._counts[name] = self._counts.get(name, 0) + number


_SUMS = ("prompt_tokens", "cached_tokens", "cached_pictures")
