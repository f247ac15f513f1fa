"""The work: many pictures at a time, each captioned once, each caption written the moment it is there."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from mmserve.caption.files import Pictures, pictures_in, read_picture
from mmserve.caption.ledger import Caption, Ledger
from mmserve.caption.progress import Progress
from mmserve.caption.prompts import PicturePrompts
from mmserve.client import AllOptions, Answer, AsyncClient, about_picture
from mmserve.errors import ConfigError, MMServeError
from mmserve.template import DEFAULT_CAPTION_PROMPT
from mmserve.types import Usage

T = TypeVar("T")

_Key: TypeAlias = tuple[str, str]
"""A picture's digest and its prompt."""


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
    options: AllOptions = field(default_factory=lambda: AllOptions())

    async def ask(self, data: bytes, prompt: str, /) -> Answer:
        return await self.client.ask(data, prompt, system=self.system, model=self.model, **self.options)


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
    """:func:`caption_pictures` on the pictures of ``folder``."""
    check_concurrency(concurrency)
    pictures = await asyncio.to_thread(pictures_in, folder, recursive=recursive)
    return await caption_pictures(
        pictures,
        captioner,
        ledger,
        prompts=PicturePrompts(prompt, folder),
        concurrency=concurrency,
        on_progress=on_progress,
        clock=clock,
    )


async def caption_pictures(
    pictures: Pictures,
    captioner: Captioner,
    ledger: Ledger,
    *,
    prompts: PicturePrompts,
    finish: Callable[[str], str] = str.strip,
    concurrency: int = 8,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Caption those of ``pictures`` that ``ledger`` has no caption of, ``concurrency`` at a time.

    A recorded caption counts for a picture of that name as long as its bytes are those it was made for (where the
    ledger says which). Pictures with the same bytes and the same prompt are captioned once; each gets the caption.
    ``finish`` makes an answer's text the caption. A picture that cannot be used is in the report and is tried again by
    the next run. ``on_progress`` is called after each picture, on the event loop.

    Raises ConfigError when there is nothing to do it with, the typed error that would meet every picture (the server
    is gone, the model is not served), and OSError when a caption cannot be written; these, and cancelling,
    leave the ledger whole, and a further run continues from it.
    """
    check_concurrency(concurrency)
    run = _Run(pictures.root, captioner, ledger, prompts, finish, _Tally(len(pictures.files), on_progress, clock))
    todo = await run.skip(pictures.files, concurrency)
    await run.caption(todo, concurrency)
    failures = sorted(run.tally.failures, key=lambda failure: failure.file)
    return Report(run.tally.progress(), tuple(failures))


async def plan_captions(
    pictures: Pictures, ledger: Ledger, *, prompts: PicturePrompts, concurrency: int = 8
) -> list[tuple[str, str]]:
    """The pictures that :func:`caption_pictures` would caption, each with its prompt; nothing is asked or written."""
    check_concurrency(concurrency)
    run = _Run(pictures.root, _Nobody(), ledger, prompts, str.strip, _Tally(len(pictures.files), None, time.monotonic))
    todo = await run.skip(pictures.files, concurrency)
    return [(file, await asyncio.to_thread(prompts.of, file)) for file in todo]


def check_concurrency(concurrency: int) -> None:
    """Raises ConfigError unless at least one picture may be asked about."""
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, got {concurrency}")


class _Nobody:
    async def ask(self, _data: bytes, _prompt: str, /) -> Answer:
        raise AssertionError("a plan asks nothing")


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

    def caption(self, usage: Usage | None) -> None:
        """A picture has its caption; ``usage`` is None for a copy."""
        if usage is None:
            self._count(captioned=1, copied=1)
            return
        self._count(
            captioned=1,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            cached_pictures=usage.cached_pictures,
        )

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
    """What is known so far, by digest and prompt. Used by one event loop; no await between a test and its act."""

    def __init__(
        self,
        folder: Path,
        captioner: Captioner,
        ledger: Ledger,
        prompts: PicturePrompts,
        finish: Callable[[str], str],
        tally: _Tally,
    ) -> None:
        self.tally = tally
        self._folder = folder
        self._captioner = captioner
        self._ledger = ledger
        self._prompts = prompts
        self._finish = finish
        self._captions: dict[_Key, Caption] = {}
        self._refused: dict[_Key, Exception] = {}
        self._waiting: dict[_Key, list[str]] = {}

    async def skip(self, files: Sequence[str], concurrency: int) -> list[str]:
        """Find out which recorded captions still hold, and learn them for pictures of the same bytes; the others."""
        recorded = await asyncio.to_thread(self._ledger.recorded, files)
        sizes = await asyncio.to_thread(lambda: {self._size(file) for file in files if file not in recorded})
        skipped: set[str] = set()

        async def check(caption: Caption) -> None:
            # Without a digest on record it is needed only where a new picture may have the same bytes.
            digest = caption.sha256
            if caption.sha256 or await asyncio.to_thread(self._size, caption.file) in sizes:
                digest = await self._digest(caption.file) or caption.sha256
            if caption.sha256 not in ("", digest):
                return  # the picture has changed since
            if digest:
                self._captions[digest, await asyncio.to_thread(self._prompts.of, caption.file)] = caption
            skipped.add(caption.file)
            self.tally.skip()

        await _each(recorded.values(), check, concurrency)
        return [file for file in files if file not in skipped]

    async def caption(self, files: Iterable[str], concurrency: int) -> None:
        self.tally.start()
        await _each(files, self._caption, concurrency)

    async def _caption(self, file: str) -> None:
        try:
            data, digest, prompt = await asyncio.to_thread(self._take, file)
        except OSError as error:
            self.tally.fail(file, error)
            return
        key = digest, prompt
        if key in self._captions:
            self._write(dataclasses.replace(self._captions[key], file=file, sha256=digest, usage=None))
        elif key in self._refused:
            self.tally.fail(file, self._refused[key])
        elif key in self._waiting:
            self._waiting[key].append(file)
        else:
            self._waiting[key] = []
            await self._ask(file, data, key)

    async def _ask(self, file: str, data: bytes, key: _Key) -> None:
        """Ask about these bytes, for ``file`` and for those that have come to wait for it meanwhile."""
        digest, prompt = key
        try:
            answer = await self._captioner.ask(data, prompt)
        except MMServeError as error:
            if not about_picture(error):
                raise
            self._refused[key] = error
            for each in (file, *self._waiting.pop(key)):
                self.tally.fail(each, error)
            return
        text = self._finish(answer.text).encode("utf-8", "replace").decode()  # no half of a surrogate pair
        caption = Caption(file, text, answer.model, answer.usage, digest)
        self._captions[key] = caption
        self._write(caption)
        for each in self._waiting.pop(key):
            self._write(dataclasses.replace(caption, file=each, usage=None))

    def _write(self, caption: Caption) -> None:
        self._ledger.write(caption)
        self.tally.caption(caption.usage)

    def _take(self, file: str) -> tuple[bytes, str, str]:
        return *read_picture(self._folder / file), self._prompts.of(file)

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
