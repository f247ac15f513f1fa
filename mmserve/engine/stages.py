"""When a request passed the engine's stages. The scheduler has no clock; this notes what plans say, step by step."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mmserve.engine.plan import SchedulerOutput
from mmserve.types import ContentHash, Prompt, Stages

REMEMBERED_ITEMS = 1024
"""An item that was made longer ago than so many others is not found again for a request that still waits."""


@dataclass(slots=True)
class _Passage:
    contents: frozenset[ContentHash]
    added: float
    admitted: float | None = None
    encoding: tuple[float, float] | None = None


class StageClock:
    """Times of the requests in the engine, in seconds of ``clock``. The engine's thread owns it.

    A step costs a look at each prefill chunk and media item in its plan; decodes cost nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._passages: dict[str, _Passage] = {}
        self._newly_admitted: list[_Passage] = []
        self._started: dict[ContentHash, float] = {}
        self._encoded: OrderedDict[ContentHash, tuple[float, float]] = OrderedDict()

    def added(self, request_id: str, prompt: Prompt) -> None:
        contents = frozenset(item.content for item in prompt.media)
        self._passages[request_id] = _Passage(contents, self._clock())

    def planned(self, plan: SchedulerOutput) -> None:
        """The plan is about to run: those in it for the first time have left the queue."""
        self._newly_admitted = []
        for content in plan.forget:
            self._started.pop(content, None)
        if not (plan.prefill or plan.prepare or plan.fetch):
            return
        now = self._clock()
        for item in plan.prepare:
            self._started[item.content] = now
        for sequence_id in [chunk.sequence_id for chunk in plan.prefill] + [fetch[0] for fetch in plan.fetch]:
            passage = self._passages.get(sequence_id)
            if passage is not None and passage.admitted is None:
                passage.admitted = now
                self._newly_admitted.append(passage)

    def executed(self, plan: SchedulerOutput) -> None:
        """The plan ran: its media have their rows. A step encodes before it computes, so these may be its own."""
        if plan.encode:
            now = self._clock()
            for content in plan.encode:
                self._encoded[content] = (self._started.pop(content, now), now)
                self._encoded.move_to_end(content)
            while len(self._encoded) > REMEMBERED_ITEMS:
                self._encoded.popitem(last=False)
        for passage in self._newly_admitted:
            passage.encoding = self._encoding(passage)

    def dropped(self, content: ContentHash) -> None:
        """An item could not be decoded or encoded."""
        self._started.pop(content, None)

    def end(self, request_id: str) -> Stages | None:
        """Forget a request; its stages, or ``None`` where it never was admitted."""
        passage = self._passages.pop(request_id, None)
        if passage is None or passage.admitted is None:
            return None
        return Stages(passage.added, passage.admitted, passage.encoding)

    def _encoding(self, passage: _Passage) -> tuple[float, float] | None:
        """From the start of the first to the end of the last item that was made while the request waited."""
        spans = [self._encoded[content] for content in passage.contents if content in self._encoded]
        during = [(max(start, passage.added), end) for start, end in spans if end > passage.added]
        return (min(start for start, _ in during), max(end for _, end in during)) if during else None
