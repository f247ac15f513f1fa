"""MediaWork: media items on their way from bytes to embedding rows, each once however many wait for it.

An item (a picture, a block of a video, a sound) is *queued*, then *preparing* (decoded in a thread), then *prepared*,
and leaves this table when a step encodes it into the encoder cache. Sequences wait for the work, never for one another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from mmserve.cache.embeddings import EncoderCache
from mmserve.types import ContentHash, MediaItem


@dataclass(slots=True)
class _Job:
    item: MediaItem
    waiters: dict[str, None] = field(default_factory=dict)


class MediaWork:
    """Decides which items to prepare and to encode next. Holds nothing decoded and no rows.

    ``row_bytes`` is the size of one embedding row. At most ``window_work``, or one item, are being prepared or waiting,
    prepared, for the encoder, and rows to come are counted against the encoder cache's bound; the items that the first
    waiting sequence needs come first and pass that bound, so that it always gets on.
    """

    def __init__(self, cache: EncoderCache, *, row_bytes: int, step_work: int, window_work: int) -> None:
        self._cache = cache
        self._row_bytes = row_bytes
        self._step_work = step_work
        self._window_work = window_work
        self._jobs: dict[ContentHash, _Job] = {}
        self._queued: OrderedDict[ContentHash, _Job] = OrderedDict()
        self._preparing: dict[ContentHash, _Job] = {}
        self._prepared: OrderedDict[ContentHash, _Job] = OrderedDict()
        self._started_work = 0
        self._started_rows = 0
        self._forget: list[ContentHash] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def want(self, item: MediaItem, waiter: str) -> bool:
        """Wait for an item's rows; True when this call is what sets the work off."""
        job = self._jobs.get(item.content)
        is_new = job is None
        if job is None:
            job = self._jobs[item.content] = self._queued[item.content] = _Job(item)
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

    def start(self, urgent: Iterable[ContentHash], following: Iterable[ContentHash]) -> tuple[MediaItem, ...]:
        """Items to hand to the threads now: ``urgent`` ones while they fit the window, then ``following`` ones while
        there is room for their rows too.

        Both are in the order in which sequences will be admitted: rows made in another order could fill the cache
        while the next sequence waits for its own.
        """
        starting = []
        for is_urgent, content in chain(((True, each) for each in urgent), ((False, each) for each in following)):
            job = self._queued.get(content)
            if job is None:
                continue
            rows = (self._started_rows + job.item.rows) * self._row_bytes
            room = is_urgent or self._cache.bytes_held + rows <= self._cache.capacity_bytes
            if (self._started_work and self._started_work + job.item.work > self._window_work) or not room:
                break
            starting.append(self._start(content))
        return tuple(starting)

    def prepared(self, content: ContentHash) -> None:
        job = self._prepared[content] = self._preparing.pop(content)
        if not job.waiters:
            self._drop(content)

    def failed(self, content: ContentHash) -> tuple[str, ...]:
        """The item cannot be prepared; returns who waited for it."""
        job = self._jobs.pop(content)
        del self._preparing[content]
        self._count(job, -1)
        return tuple(job.waiters)

    def take_encode(self) -> dict[ContentHash, tuple[str, ...]]:
        """Prepared items to encode in this step and who waits for each: within the step's work, but at least one.

        Their rows are entered in the encoder cache now, since a step encodes before it computes.
        """
        chosen: dict[ContentHash, tuple[str, ...]] = {}
        work = 0
        for content, job in self._prepared.items():
            work += job.item.work
            if chosen and work > self._step_work:
                break
            chosen[content] = tuple(job.waiters)
        for content in chosen:
            job = self._prepared.pop(content)
            del self._jobs[content]
            self._count(job, -1)
            self._cache.put(content, job.item.rows * self._row_bytes)
        return chosen

    def take_forget(self) -> tuple[ContentHash, ...]:
        """Prepared items that nobody waits for any more, which the runner forgets."""
        forget, self._forget = tuple(self._forget), []
        return forget

    def all_waiters(self) -> dict[ContentHash, set[str]]:
        """Who waits for each item, for ``check()``."""
        return {content: set(job.waiters) for content, job in self._jobs.items()}

    def _start(self, content: ContentHash) -> MediaItem:
        job = self._preparing[content] = self._queued.pop(content)
        self._count(job, 1)
        return job.item

    def _drop(self, content: ContentHash) -> None:
        job = self._jobs.pop(content)
        if content in self._prepared:
            del self._prepared[content]
            self._count(job, -1)
            self._forget.append(content)
        else:
            del self._queued[content]

    def _count(self, job: _Job, sign: int) -> None:
        self._started_work += sign * job.item.work
        self._started_rows += sign * job.item.rows
