"""A small engine without a model, which child processes build by name; what it does wrong is asked for by a request."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mmserve.engine.process.recipe import Recipe
from mmserve.errors import CheckpointError, UnsupportedConstraint
from mmserve.grammar.spec import Constraint, Regex
from mmserve.types import (
    ContentHash,
    Grid,
    ImageHeader,
    Picture,
    PictureRange,
    Prompt,
    Request,
    SamplingParams,
    TokenEvent,
    Usage,
)

if TYPE_CHECKING:  # it would bring torch, and these processes are to start fast
    from mmserve.engine.engine import Engine

CONTEXT = 100_000


class FakeEngine:
    """Says ``w0 w1 …``, one word a step, ``max_tokens`` in all. ``cache_salt`` is what a request wants besides:

    ``crash`` a step that raises, ``hang`` one that does not end, ``die`` an end by SIGKILL, ``long`` words of a
    kilobyte, ``pictures`` the sizes of its pictures as words, ``file:PATH`` that file once it is finished.
    """

    max_model_len = CONTEXT

    def __init__(self) -> None:
        self.on_wake: Callable[[], None] = lambda: None
        self.idle = True
        self.warm = False
        self.requests: dict[str, tuple[Request, int]] = {}
        self.compiles: list[Future[Any]] = []
        self.counts = {"requests_added": 0.0, "requests_aborted": 0.0, "generated_tokens": 0.0, "steps": 0.0}
        self.closed = False

    @property
    def has_requests(self) -> bool:
        return bool(self.requests)

    def compile(self, constraint: Constraint, budget: int | None = None) -> Future[Any]:
        """Done at once for the pattern ``a``; refused for ``b``; else done when a test says so."""
        future: Future[Any] = Future()
        assert isinstance(constraint, Regex)
        assert budget
        if constraint.pattern == "a":
            future.set_result("compiled")
        elif constraint.pattern == "b":
            future.set_exception(UnsupportedConstraint("b cannot be enforced", param="regex"))
        self.compiles.append(future)
        return future

    def add(self, request: Request, grammar: object) -> None:
        assert (grammar is None) == (request.constraint is None)
        self.requests[request.id] = request, 0
        self.counts["requests_added"] += 1

    def abort(self, request_id: str) -> None:
        if self.requests.pop(request_id, None) is not None:
            self.counts["requests_aborted"] += 1

    def step(self) -> list[TokenEvent]:
        time.sleep(0.001)
        events = [self._advance(request, done) for request, done in list(self.requests.values())]
        self.idle = not events
        self.counts["steps"] += bool(events)
        self.warm = self.warm or bool(events)
        return events

    def flush(self) -> int:
        return 7

    def stats(self) -> dict[str, float]:
        return {**self.counts, "requests_running": float(len(self.requests))}

    def close(self) -> None:
        self.closed = True

    def _advance(self, request: Request, done: int) -> TokenEvent:
        wish, most = request.cache_salt, request.sampling.max_tokens or 1
        if wish == "crash":
            raise RuntimeError("a slot is lost")
        if wish == "hang":
            time.sleep(3600)
        if wish == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        word = f"w{done} "
        if wish == "long":
            word = word.ljust(1024)
        if wish == "pictures":
            word = " ".join(str(len(picture.data)) for picture in request.prompt.pictures)
        self.counts["generated_tokens"] += 1
        if done + 1 < most:
            self.requests[request.id] = request, done + 1
            return TokenEvent(request.id, word, (done,))
        del self.requests[request.id]
        if wish.startswith("file:"):
            Path(wish.removeprefix("file:")).touch()
        usage = Usage(len(request.prompt), most, 0, request.prompt.picture_tokens)
        return TokenEvent(request.id, word, (done,), finish_reason="length", usage=usage)


def fake() -> Engine:
    return cast("Engine", FakeEngine())


def talking() -> Engine:
    logging.getLogger("mmserve.loading").info("half of it is there")
    return fake()


def refused() -> Engine:
    raise CheckpointError("model.safetensors is missing: download it again")


def broken() -> Engine:
    raise RuntimeError("nobody thought of this")


def endless() -> Engine:
    time.sleep(3600)
    raise AssertionError


def dying() -> Engine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@dataclass(frozen=True)
class Flaky:
    """Builds the first time, and fails ``failures`` times after that; ``folder`` remembers."""

    folder: Path
    failures: int

    def __call__(self) -> Engine:
        times = len(list(self.folder.iterdir()))
        (self.folder / str(times)).touch()
        return fake() if times == 0 or times > self.failures else refused()


FAKE = Recipe(fake)


def ask(
    name: str, max_tokens: int = 3, wish: str = "", *pictures: Picture, constraint: Constraint | None = None
) -> Request:
    ranges = tuple(PictureRange(i, i + 1, i) for i in range(len(pictures)))
    prompt = Prompt(np.arange(4 + len(pictures), dtype=np.int64), pictures, ranges)
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens), wish, constraint)


def picture(name: str, size: int) -> Picture:
    return Picture(b"p" * size, ImageHeader("PNG", 8, 8), ContentHash(name.encode()), Grid(1, 2, 2), 1)
