"""The work: many pictures at a time, each captioned once, each caption written the moment it is there."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from mmserve.caption.files import find_pictures, read_picture
from mmserve.caption.ledger import Caption, Ledger
from mmserve.client import DEFAULT_CAPTION_PROMPT, Answer, AsyncClient, Options, about_picture
from mmserve.errors import ConfigError, MMServeError

T = TypeVar("T")


class Captioner(Protocol):
    """Whatever can be asked about a picture: ``AsyncClient``, or an engine in this process.

    Raises the errors of ``mmserve.errors``; ``mmserve.client.about_picture`` tells those that end a run from
    those that concern the one picture. Cancelling the task ends the request.
    """

    async def ask(self, data: bytes, prompt: str, /) -> Answer: ...


@dataclass(frozen=True, slots=True)
class ClientCaptioner:
    """A client that asks with the same model, system prompt and options each time."""

    client: AsyncClient
    model: str | None = None
    system: str | None = None
    options: Options = field(default_factory=lambda: Options())

    async def ask(self, data: bytes, prompt: str, /) -> Answer:
        return await self.client.ask(data, prompt, system=self.system, model=self.model, **self.options)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. Of ``total`` pictures ``skipped`` had their caption from an earlier run, ``captioned`` got
    one in this (``copied`` of them from a picture with the same bytes), and ``failed`` could not be used.
    ``seconds`` is how long this run has been captioning."""

    total: int
    skipped: int = 0
    captioned: int = 0
    copied: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        return self.total - self.skipped - self.captioned - self.failed

    @property
    def rate(self) -> float:
        """Pictures a second, in this run."""
        return (self.captioned + self.failed) / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until the end at this rate; None while there is no telling."""
        if self.left == 0:
            return 0.0
        return self.left / self.rate if self.rate > 0 else None


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that could not be used, and why."""

    file: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended; ``failures`` are in the order of the pictures."""

    progress: Progress
    failures: tuple[Failure, ...]


async def caption_folder(
    folder: Path,
    captioner: Captioner,
    ledger: Ledger,
    *,
    prompt: str = DEFAULT_CAPTION_PROMPT,
    recursive: bool = False,
    concurrency: int = 8,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Caption the pictures of ``folder`` that ``ledger`` has no caption of, ``concurrency`` at a time.

    A recorded caption counts for a picture of that name as long as its bytes are those it was made for (where the
    ledger says which). Pictures with the same bytes are captioned once; each gets the caption. One that cannot be used
    is in the report and is tried again by the next run. ``on_progress`` is called after each picture, on the event
    loop.

    Raises ConfigError when there is nothing to do it with, the typed error that would meet every picture (the server
    is gone, the model is not served), and OSError when a caption cannot be written; these, and cancelling,
    leave the ledger whole, and a further run continues from it.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, got {concurrency}")
    files = await asyncio.to_thread(find_pictures, folder, recursive=recursive)
    run = _Run(folder, captioner, ledger, prompt, _Tally(len(files), on_progress, clock))
    recorded = await asyncio.to_thread(ledger.recorded, files)
    await run.skip(recorded.values(), frozenset(files) - recorded.keys(), concurrency)
    await run.caption([file for file in files if file not in run.skipped], concurrency)
    failures = sorted(run.tally.failures, key=lambda failure: failure.file)
    return Report(run.tally.progress(), tuple(failures))


class _Tally:
    """Counts what became of the pictures."""

    def __init__(self, total: int, on_progress: Callable[[Progress], None] | None, clock: Callable[[], float]) -> None:
        self._counts = Progress(total)
        self._on_progress = on_progress
        self._clock = clock
        self._start: float | None = None
        self.failures: list[Failure] = []

    def start(self) -> None:
        self._start = self._clock()
        self._tell()

    def skip(self) -> None:
        self._count(skipped=1)

    def caption(self, *, copied: bool) -> None:
        self._count(captioned=1, copied=int(copied))

    def fail(self, file: str, error: Exception) -> None:
        self.failures.append(Failure(file, error))
        self._count(failed=1)

    def progress(self) -> Progress:
        seconds = 0.0 if self._start is None else self._clock() - self._start
        return dataclasses.replace(self._counts, seconds=seconds)

    def _count(self, **more: int) -> None:
        sums = {name: getattr(self._counts, name) + number for name, number in more.items()}
        self._counts = dataclasses.replace(self._counts, **sums)
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.progress())


class _Run:
    """What is known of the bytes met so far, by digest. Used by one event loop; no await between a test and its act."""

    def __init__(self, folder: Path, captioner: Captioner, ledger: Ledger, prompt: str, tally: _Tally) -> None:
        self.tally = tally
        self.skipped: set[str] = set()
        self._folder = folder
        self._captioner = captioner
        self._ledger = ledger
        self._prompt = prompt
        self._captions: dict[str, Caption] = {}
        self._refused: dict[str, Exception] = {}
        self._waiting: dict[str, list[str]] = {}

    async def skip(self, recorded: Iterable[Caption], fresh: Iterable[str], concurrency: int) -> None:
        """Find out which recorded captions still hold, and learn them for pictures of the same bytes."""
        sizes = await asyncio.to_thread(lambda: {self._size(file) for file in fresh})

        async def check(caption: Caption) -> None:
            # Without a digest on record it is needed only where a new picture may have the same bytes.
            digest = caption.sha256
            if caption.sha256 or await asyncio.to_thread(self._size, caption.file) in sizes:
                digest = await self._digest(caption.file) or caption.sha256
            if caption.sha256 not in ("", digest):
                return  # the picture has changed since
            if digest:
                self._captions[digest] = caption
            self.skipped.add(caption.file)
            self.tally.skip()

        await _each(recorded, check, concurrency)

    async def caption(self, files: Iterable[str], concurrency: int) -> None:
        self.tally.start()
        await _each(files, self._caption, concurrency)

    async def _caption(self, file: str) -> None:
        try:
            data, digest = await asyncio.to_thread(read_picture, self._folder / file)
        except OSError as error:
            self.tally.fail(file, error)
            return
        if digest in self._captions:
            self._write(dataclasses.replace(self._captions[digest], file=file, sha256=digest, usage=None), copied=True)
        elif digest in self._refused:
            self.tally.fail(file, self._refused[digest])
        elif digest in self._waiting:
            self._waiting[digest].append(file)
        else:
            self._waiting[digest] = []
            await self._ask(file, data, digest)

    async def _ask(self, file: str, data: bytes, digest: str) -> None:
        """Ask about these bytes, for ``file`` and for those that have come to wait for it meanwhile."""
        try:
            answer = await self._captioner.ask(data, self._prompt)
        except MMServeError as error:
            if not about_picture(error):
                raise
            self._refused[digest] = error
            for each in (file, *self._waiting.pop(digest)):
                self.tally.fail(each, error)
            return
        text = answer.text.strip().encode("utf-8", "replace").decode()  # no half of a surrogate pair
        caption = Caption(file, text, answer.model, answer.usage, digest)
        self._captions[digest] = caption
        self._write(caption, copied=False)
        for each in self._waiting.pop(digest):
            self._write(dataclasses.replace(caption, file=each, usage=None), copied=True)

    def _write(self, caption: Caption, *, copied: bool) -> None:
        self._ledger.write(caption)
        self.tally.caption(copied=copied)

    def _size(self, file: str) -> int | None:
        try:
            return (self._folder / file).stat().st_size
        except OSError:
            return None

    async def _digest(self, file: str) -> str | None:
        try:
            return (await asyncio.to_thread(read_picture, self._folder / file))[1]
        except OSError:
            return None


async def _each(items: Iterable[T], work: Callable[[T], Awaitable[None]], concurrency: int) -> None:
    """``work`` on each item, ``concurrency`` at a time, in order. The first error ends all, and is raised."""
    todo = iter(items)

    async def worker() -> None:
        for item in todo:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as errors:
        first = errors.exceptions[0]
    else:
        return
    raise first  # out here, so that the group does not become its context
