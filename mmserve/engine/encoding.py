"""PictureWork: pictures on their way from bytes to embedding rows, each once however many wait for it.

A picture is *queued*, then *preparing* (decoded and patched in a thread), then *prepared*, and leaves this
table when a step encodes it into the encoder cache. Sequences wait for the work, never for one another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mmserve.cache.embeddings import EncoderCache
from mmserve.types import ContentHash, Picture


@dataclass(slots=True)
class _Job:
    picture: Picture
    waiters: dict[str, None] = field(default_factory=dict)

    @property
    def patches(self) -> int:
        return self.picture.grid.t * self.picture.grid.h * self.picture.grid.w


class PictureWork:
    """Decides which pictures to prepare and to encode next. Holds no pixels and no rows.

    ``row_bytes`` is the size of one embedding row. At most ``window_patches`` are being prepared or waiting, prepared,
    for the encoder, and rows to come are counted against the encoder cache's bound; the pictures that the
    first waiting sequence needs pass both bounds, so that it always gets on.
    """

    def __init__(self, cache: EncoderCache, *, row_bytes: int, step_patches: int, window_patches: int) -> None:
        self._cache = cache
        self._row_bytes = row_bytes
        self._step_patches = step_patches
        self._window_patches = window_patches
        self._jobs: dict[ContentHash, _Job] = {}
        self._queued: OrderedDict[ContentHash, _Job] = OrderedDict()
        self._preparing: dict[ContentHash, _Job] = {}
        self._prepared: OrderedDict[ContentHash, _Job] = OrderedDict()
        self._started_patches = 0
        self._started_rows = 0
        self._forget: list[ContentHash] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def want(self, picture: Picture, waiter: str) -> bool:
        """Wait for a picture's rows; True when this call is what sets the work off."""
        job = self._jobs.get(picture.content)
        is_new = job is None
        if job is None:
            job = self._jobs[picture.content] = self._queued[picture.content] = _Job(picture)
        job.waiters[waiter] = None
        return is_new

    def unwant(self, content: ContentHash, waiter: str) -> None:
        """One waiter less; work that nobody waits for any more is dropped, or ends when its thread does."""
        job = self._jobs[content]
        del job.waiters[waiter]
        if not job.waiters and content not in self._preparing:
            self._drop(content)

    def waiters(self, content: ContentHash) -> tuple[str, ...]:
        job = self._jobs.get(content)
        return tuple(job.waiters) if job else ()

    def start(self, urgent: Iterable[ContentHash], following: Iterable[ContentHash]) -> tuple[Picture, ...]:
        """Pictures to hand to the threads now: ``urgent`` ones whatever the bounds, then ``following`` while they fit.

        Both are in the order in which sequences will be admitted: rows made in another order could fill the cache
        while the next sequence waits for its own.
        """
        starting = [self._start(content) for content in urgent if content in self._queued]
        for content in following:
            job = self._queued.get(content)
            if job is None:
                continue
            rows = (self._started_rows + job.picture.rows) * self._row_bytes
            room = self._cache.bytes_held + rows <= self._cache.capacity_bytes
            if (self._started_patches and self._started_patches + job.patches > self._window_patches) or not room:
                break
            starting.append(self._start(content))
        return tuple(starting)

    def prepared(self, content: ContentHash) -> None:
        job = self._prepared[content] = self._preparing.pop(content)
        if not job.waiters:
            self._drop(content)

    def failed(self, content: ContentHash) -> tuple[str, ...]:
        """The picture cannot be prepared; returns who waited for it."""
        job = self._jobs.pop(content)
        del self._preparing[content]
        self._count(job, -1)
        return tuple(job.waiters)

    def take_encode(self) -> dict[ContentHash, tuple[str, ...]]:
        """Prepared pictures to encode in this step and who waits for each: within the step's patches, but at least one.

        Their rows are entered in the encoder cache now, since a step encodes before it computes.
        """
        chosen: dict[ContentHash, tuple[str, ...]] = {}
        patches = 0
        for content, job in self._prepared.items():
            patches += job.patches
            if chosen and patches > self._step_patches:
                break
            chosen[content] = tuple(job.waiters)
        for content in chosen:
            job = self._prepared.pop(content)
            del self._jobs[content]
            self._count(job, -1)
            self._cache.put(content, job.picture.rows * self._row_bytes)
        return chosen

    def take_forget(self) -> tuple[ContentHash, ...]:
        """Prepared pictures that nobody waits for any more, whose pixels the runner forgets."""
        forget, self._forget = tuple(self._forget), []
        return forget

    def all_waiters(self) -> dict[ContentHash, set[str]]:
        """Who waits for each picture, for ``check()``."""
        return {content: set(job.waiters) for content, job in self._jobs.items()}

    def _start(self, content: ContentHash) -> Picture:
        job = self._preparing[content] = self._queued.pop(content)
        self._count(job, 1)
        return job.picture

    def _drop(self, content: ContentHash) -> None:
        job = self._jobs.pop(content)
        if content in self._prepared:
            del self._prepared[content]
            self._count(job, -1)
            self._forget.append(content)
        else:
            del self._queued[content]

    def _count(self, job: _Job, sign: int) -> None:
        self._started_patches += sign * job.patches
        self._started_rows += sign * job.picture.rows
