"""What became of one HTTP request, for its line in the log and its span."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmserve.types import Request, Stages, Usage

if TYPE_CHECKING:
    from opentelemetry.trace import Span


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One finished request of the engine. Times are in seconds of the machine's monotonic clock.

    ``outcome`` is one of ``web.operations.metrics.FINISH_REASONS``; ``error`` the code of the error that ended it.
    """

    request: Request
    outcome: str
    started: float
    ended: float
    first_token: float | None = None
    usage: Usage | None = None
    stages: Stages | None = None
    error: str | None = None


@dataclass(slots=True)
class Story:
    """One HTTP request and the sums over what it asked of the engine. Nothing of its content."""

    path: str
    span: Span | None = None
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    pictures: int = 0
    started: float | None = None
    first_token: float | None = None
    queue_seconds: float | None = None
    outcome: str | None = None
    error: str | None = None

    def add(self, generation: Generation) -> None:
        """Tokens add up; of outcomes the first that is not a success stands, and of waits the longest."""
        self.requests += 1
        self.pictures += len(generation.request.prompt.pictures)
        usage, stages = generation.usage, generation.stages
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens
            self.image_tokens += usage.image_tokens
            self.completion_tokens += usage.completion_tokens
        if stages is not None:
            self.queue_seconds = max(self.queue_seconds or 0.0, stages.admitted - stages.added)
        if self.started is None or generation.started < self.started:
            self.started = generation.started
        if generation.first_token is not None and (
            self.first_token is None or generation.first_token < self.first_token
        ):
            self.first_token = generation.first_token
        if self.outcome in (None, "stop", "length"):
            self.outcome = generation.outcome
        self.error = self.error or generation.error


current: ContextVar[Story | None] = ContextVar("mmserve_story", default=None)
"""The HTTP request on whose behalf this task runs. The tasks that a request starts inherit it; nothing else could
tell the engine's requests of two callers apart without every route passing it on."""
