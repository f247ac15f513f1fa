"""EngineClient: how everything above the engine reaches it, in this process or another."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from mmserve.types import Request, TokenEvent


class EngineClient(Protocol):
    """One engine, wherever it runs.

    ``generate`` yields a request's events as they come; the last one has ``finish_reason`` and ``usage``.
    ``max_tokens=None`` means what is left of the context. It raises the request's typed error (``mmserve.errors``)
    instead of yielding it, ``PromptTooLong`` and ``QueueFull`` before any event. Closing the generator, or
    cancelling the task that iterates it, aborts the request, whose slots are free at the engine's next step.
    """

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]: ...

    @property
    def ready(self) -> bool:
        """Whether the engine is loaded and its loop alive."""

    def stats(self) -> Mapping[str, float]:
        """Counters and gauges by name (see ``mmserve.engine.metrics``)."""

    async def flush(self) -> int:
        """Empty the caches of what no request is using; returns the number of tokens dropped."""

    async def close(self) -> None:
        """End the engine; requests in flight get ``EngineUnavailable``."""
