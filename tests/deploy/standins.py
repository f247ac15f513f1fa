"""A service over the stand-in engine, for replicas on Ray: nothing of torch, so a process of it starts in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from mmserve.types import Request, TokenEvent
from tests.deploy.fleet import LIMITS
from tests.web.fakes import FakeEngine, FakePrompts, Step, say, usage_of
from web.service import ServedModel, Service


@asynccontextmanager
async def standin() -> AsyncIterator[Service]:
    """Answers in three words; whoever asks for 7 tokens waits for each. It knows the pictures that it has seen."""
    seen: set[bytes] = set()

    def script(request: Request) -> Iterator[Step]:
        known = all(picture.content in seen for picture in request.prompt.pictures)
        seen.update(picture.content for picture in request.prompt.pictures)
        wait = 0.3 if request.sampling.max_tokens == 7 else None
        for step in say("It", " is", " a cat.", request=request, wait=wait):
            if isinstance(step, TokenEvent) and step.last:
                yield dataclasses.replace(step, usage=usage_of(request, 3, cached=len(request.prompt) if known else 0))
            else:
                yield step

    yield Service(
        ServedModel("pocket-vl"), FakePrompts(), FakeEngine(script), 512, limits=LIMITS, judge=lambda *_: True
    )
