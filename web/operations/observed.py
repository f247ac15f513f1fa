"""ObservedEngine: an engine whose requests are timed, counted, and told to the story and the tracer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Protocol

from mmserve.engine.client import EngineClient
from mmserve.errors import MMServeError, QueueFull, RequestCancelled, RequestError
from mmserve.types import Request, Stages, TokenEvent, Usage
from web.operations.metrics import ServiceMetrics
from web.operations.story import Generation, Story, current


class Recorder(Protocol):
    """Takes finished generations, for example a tracer."""

    def record(self, generation: Generation, story: Story | None, /) -> None: ...


class ObservedEngine:
    """An ``EngineClient`` over another. ``recorder`` is told of each finished request; ``None`` costs nothing.

    The engine itself is not slowed: events are looked at where they arrive, in the task that waits for them.
    """

    def __init__(
        self,
        engine: EngineClient,
        metrics: ServiceMetrics,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._recorder = recorder
        self._clock = clock

    @property
    def ready(self) -> bool:
        return self._engine.ready

    def stats(self) -> Mapping[str, float]:
        return self._engine.stats()

    async def flush(self) -> int:
        return await self._engine.flush()

    async def close(self) -> None:
        await self._engine.close()

    async def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        watch = _Watch(self._clock, self._metrics)
        outcome, code = "abort", None
        try:
            async with aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    watch.note(event)
                    if event.last:  # before it is handed on: who has it may not come back
                        outcome = event.finish_reason or outcome
                    yield event
        except MMServeError as error:
            outcome, code = outcome_of(error), error.code
            raise
        except Exception:
            outcome, code = "error", MMServeError.code
            raise
        finally:
            self._record(watch.finish(request, outcome, code))

    def _record(self, generation: Generation) -> None:
        metrics = self._metrics
        metrics.requests.add(generation.outcome)
        usage, stages, first = generation.usage, generation.stages, generation.first_token
        if usage is not None:
            metrics.whole.observe(generation.ended - generation.started)
            metrics.prompt.observe(usage.prompt_tokens)
            metrics.generated.observe(usage.completion_tokens)
            if first is not None:
                metrics.decode.observe(generation.ended - first)
        if stages is not None:
            metrics.queue.observe(stages.admitted - stages.added)
            if stages.encoding is not None:
                metrics.encode.observe(stages.encoding[1] - stages.encoding[0])
            if first is not None:
                metrics.prefill.observe(max(0.0, first - stages.admitted))
        story = current.get()
        if story is not None:
            story.add(generation)
        if self._recorder is not None:
            self._recorder.record(generation, story)


def outcome_of(error: MMServeError) -> str:
    """The name under which an error is counted."""
    if isinstance(error, RequestCancelled):
        return "abort"
    return "refused" if isinstance(error, RequestError | QueueFull) else "error"


class _Watch:
    """The times of one request, as its events come."""

    def __init__(self, clock: Callable[[], float], metrics: ServiceMetrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._started = self._last = clock()
        self._first: float | None = None
        self._usage: Usage | None = None
        self._stages: Stages | None = None

    def note(self, event: TokenEvent) -> None:
        count = len(event.token_ids)
        if event.last:
            self._usage, self._stages = event.usage, event.stages
        if not count:
            return
        now = self._clock()
        if self._first is None:
            self._first = now
            self._metrics.first_token.observe(now - self._started)
        else:  # tokens that a grammar forces come together; the time is theirs in equal parts
            self._metrics.between_tokens.observe((now - self._last) / count, count)
        self._last = now

    def finish(self, request: Request, outcome: str, error: str | None) -> Generation:
        return Generation(request, outcome, self._started, self._clock(), self._first, self._usage, self._stages, error)
