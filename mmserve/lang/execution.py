"""Running a program's generations.

Each is a task that waits for the pieces of its prompt, so whatever does not depend on another runs beside it. A ``Run``
owns the tasks of one execution; when that ends early they are cancelled, and their requests with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import threading
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from mmserve.errors import EngineUnavailable, PromptTooLong, RequestCancelled
from mmserve.lang.calls import DEFAULT_MAX_TOKENS, Backend, GenerateCall, Options, Said, ScoreCall, Shown
from mmserve.lang.draft import Draft, resolve
from mmserve.lang.expressions import Gen, Media, Select
from mmserve.lang.log import Log
from mmserve.lang.loop import program_loop
from mmserve.lang.pictures import fetch_picture, fetch_sound, fetch_video
from mmserve.lang.slots import MetaInfo, Slot, Variable
from mmserve.probabilities import label_mass, softmax
from mmserve.types import TokenEvent, TokenLogprob, Usage

T = TypeVar("T")


class Run:
    """One execution of a program, with all branches of it. ``defaults`` hold where a ``gen`` says nothing.

    ``changed`` guards and announces what readers in other threads wait for.
    """

    def __init__(self, backend: Backend, defaults: Options) -> None:
        self.backend = backend
        self.defaults = defaults
        self.changed = threading.Condition()
        self.finished = False
        self.failure: BaseException | None = None
        """What the program's own code raised."""
        self.value: Any = None
        """What it returned."""
        self._loop = program_loop().loop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open = 0
        self._cancelled = False
        self._transcripts: list[Log[Any]] = []

    def generate(self, gen: Gen, draft: Draft) -> Variable:
        """Start what comes behind ``draft``."""
        variable = Variable(gen.place)
        self._start(variable, partial(_generated, self.backend, gen, self.defaults, draft, variable))
        return variable

    def select(self, select: Select, draft: Draft, *, ends_turn: bool) -> Variable:
        variable = Variable(select.place)
        self._start(variable, partial(_selected, self.backend, select, draft, ends_turn, variable))
        return variable

    def fetch(self, media: Media) -> Slot[Shown]:
        assert isinstance(media.source, str)
        slot: Slot[Shown] = Slot(media.place)
        self._start(slot, partial(_fetched, media.source, media))
        return slot

    def owns(self, transcript: Log[Any]) -> None:
        """Close ``transcript`` when the run is finished."""
        self._transcripts.append(transcript)

    def finish(self, failure: BaseException | None = None) -> None:
        """The program's code has ended; a ``failure`` ends what it started too."""
        if failure is not None:
            self.cancel()
        with self.changed:
            self.failure = failure
            self.finished = True
            self.changed.notify_all()
        for transcript in self._transcripts:
            transcript.close()

    def cancel(self) -> None:
        """End what is running, now and later. Does not wait."""
        self._cancelled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, as at the process's end: nothing runs
            self._loop.call_soon_threadsafe(self._cancel_all)

    def abandon(self) -> None:
        """Nobody waits for the program any more."""
        if not self.finished:
            self.cancel()

    def settle(self) -> None:
        """Wait until nothing of this run is running any more."""
        with self.changed:
            self.changed.wait_for(lambda: self._open == 0)

    # -- in the loop --------------------------------------------------------------------------------------------

    def _start(self, slot: Slot[T], work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        with self.changed:
            self._open += 1
        self._loop.call_soon_threadsafe(self._spawn, slot, work)

    def _spawn(self, slot: Slot[T], work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        task = self._loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, slot))
        if self._cancelled:
            task.cancel()

    def _ended(self, slot: Slot[T], task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            slot.fail(RequestCancelled("the program ended before this was complete"))
        elif (error := task.exception()) is not None:
            slot.fail(error)
        else:
            slot.succeed(task.result())
        with self.changed:
            self._open -= 1
            self.changed.notify_all()

    def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()


async def _fetched(url: str, media: Media) -> Shown:
    fetch = {"image": fetch_picture, "video": fetch_video, "audio": fetch_sound}[media.kind]
    return media.shown(await fetch(url))


async def _generated(backend: Backend, gen: Gen, defaults: Options, draft: Draft, variable: Variable) -> Said:
    options = gen.options.over(defaults)
    implied = options.max_tokens is None and gen.constraint is None
    if implied:
        options = dataclasses.replace(options, max_tokens=DEFAULT_MAX_TOKENS)
    context = await resolve(draft)
    call = GenerateCall(context, options, gen.constraint, gen.name or "")
    try:
        return await _followed(backend, call, variable)
    except PromptTooLong as error:
        if not implied or error.param != "max_tokens":
            raise
        # The implied limit is more than the context has left; then all that is left is less than the limit.
        rest = dataclasses.replace(call, options=dataclasses.replace(options, max_tokens=None))
        return await _followed(backend, rest, variable)


async def _followed(backend: Backend, call: GenerateCall, variable: Variable) -> Said:
    texts: list[str] = []
    ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    end: TokenEvent | None = None
    async with aclosing(backend.generate(call)) as events:
        async for event in events:
            if event.error is not None:
                raise event.error
            if event.text:
                texts.append(event.text)
                variable.pieces.append(event.text)
            ids += event.token_ids
            logprobs += event.logprobs
            if event.last:
                end = event
    if end is None:
        raise EngineUnavailable("the answer ended before it was complete")
    meta = variable.meta
    meta |= _usage_meta(end.usage)
    if end.finish_reason is not None:
        meta["finish_reason"] = end.finish_reason
    if end.constraint is not None:
        meta["constraint"] = end.constraint
    if call.options.logprobs is not None:
        meta["logprobs"] = logprobs
    return Said("".join(texts), tuple(ids) or None)


async def _selected(backend: Backend, select: Select, draft: Draft, ends_turn: bool, variable: Variable) -> Said:
    context = await resolve(draft)
    scores = await backend.score(ScoreCall(context, select.choices, ends_turn, select.name or ""))
    probabilities = softmax(scores.logprobs, select.temperature or 1.0)
    if select.temperature:
        chosen = random.Random(select.seed).choices(select.choices, probabilities)[0]
    else:
        chosen = select.choices[probabilities.index(max(probabilities))]
    meta = variable.meta
    meta |= _usage_meta(scores.usage)
    meta["finish_reason"] = "stop"
    meta["probabilities"] = dict(zip(select.choices, probabilities, strict=True))
    meta["choice_logprobs"] = dict(zip(select.choices, scores.logprobs, strict=True))
    meta["label_mass"] = label_mass(scores.logprobs)
    variable.pieces.append(chosen)
    return Said(chosen)


def _usage_meta(usage: Usage | None) -> MetaInfo:
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "image_tokens": usage.image_tokens,
        "cached_pictures": usage.cached_pictures,
    }
