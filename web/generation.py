"""From a prompt to events, tallies and their JSON: what every answering route shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from mmserve.engine.client import EngineClient
from mmserve.errors import EngineUnavailable
from mmserve.grammar.spec import Constraint
from mmserve.types import ConstraintReport, Picture, Prompt, Request, SamplingParams, TokenEvent, TokenLogprob, Usage
from web.visit import visit

T = TypeVar("T")

INLINE_BYTES = 256 * 1024
"""Work on up to so many bytes is cheaper on the event loop than the trip to a thread and back."""

_LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI's API uses this number for it


async def offload(size: int, work: Callable[[], T]) -> T:
    """``work()``, in a thread when it touches more than ``INLINE_BYTES`` of input.

    It is done again for each remote picture that it wants, once that is here, and so must change nothing.
    """

    async def once() -> T:
        return work() if size <= INLINE_BYTES else await run_in_threadpool(work)

    return await visit().fetching(once)


def make_requests(
    identity: str,
    prompt: Prompt,
    sampling: SamplingParams,
    cache_salt: str,
    count: int = 1,
    constraint: Constraint | None = None,
) -> tuple[Request, ...]:
    """``count`` requests for one prompt. A given seed counts up, or all answers would be the same."""
    if count == 1:
        return (Request(identity, prompt, sampling, cache_salt, constraint),)
    seeds = [None if sampling.seed is None else _wrap_seed(sampling.seed + i) for i in range(count)]
    return tuple(
        Request(f"{identity}-{i}", prompt, sampling.replace(seed=seed), cache_salt, constraint)
        for i, seed in enumerate(seeds)
    )


def _wrap_seed(seed: int) -> int:
    return seed if seed < 2**64 else seed - 2**64


async def _events_of(engine: EngineClient, request: Request) -> AsyncGenerator[TokenEvent, None]:
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if event.error is not None:
                raise event.error
            yield event
            if event.last:
                return
    raise EngineUnavailable("the engine stopped before the answer was complete; ask again")


async def generate(engine: EngineClient, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, TokenEvent], None]:
    """Events of all ``requests`` as they come, each with its request's index.

    The first error ends them all. Closing this generator aborts what is still running.
    """
    if len(requests) == 1:
        async with aclosing(_events_of(engine, requests[0])) as events:
            async for event in events:
                yield 0, event
        return
    arrivals: asyncio.Queue[tuple[int, TokenEvent | Exception]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(engine, request, i, arrivals)) for i, request in enumerate(requests)]
    try:
        running = len(requests)
        while running:
            index, arrival = await arrivals.get()
            if isinstance(arrival, Exception):
                raise arrival
            yield index, arrival
            running -= arrival.last
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    engine: EngineClient, request: Request, index: int, arrivals: asyncio.Queue[tuple[int, TokenEvent | Exception]]
) -> None:
    try:
        async with aclosing(_events_of(engine, request)) as events:
            async for event in events:
                arrivals.put_nowait((index, event))
    except Exception as error:
        arrivals.put_nowait((index, error))


class Stopwatch:
    """Seconds since the request's body was complete, as the answer reports them."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: float | None = None

    def note(self, event: TokenEvent) -> None:
        """Remembers when the first token came."""
        if self._first is None and (event.token_ids or event.last):
            self._first = time.perf_counter()

    def timing(self) -> dict[str, float]:
        now = time.perf_counter()
        first = now if self._first is None else self._first
        return {"time_to_first_token": round(first - self._start, 6), "total": round(now - self._start, 6)}


class Tally:
    """One answer, as its events have made it so far."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.constraint: ConstraintReport | None = None

    def add(self, event: TokenEvent) -> None:
        self._texts.append(event.text)
        self.token_ids.extend(event.token_ids)
        self.logprobs.extend(event.logprobs)
        if event.last:
            self.finish_reason, self.usage, self.constraint = event.finish_reason, event.usage, event.constraint

    @property
    def text(self) -> str:
        return "".join(self._texts)


async def collect(engine: EngineClient, requests: Sequence[Request], watch: Stopwatch) -> list[Tally]:
    """The finished answers, in the order of ``requests``. Raises the first error of any."""
    tallies = [Tally() for _ in requests]
    async with aclosing(generate(engine, requests)) as events:
        async for index, event in events:
            watch.note(event)
            tallies[index].add(event)
    return tallies


def usage_json(usages: Iterable[Usage | None]) -> dict[str, Any]:
    """OpenAI's ``usage`` for one or several answers to one prompt, whose tokens are counted once."""
    known = [usage for usage in usages if usage is not None]
    if not known:
        raise EngineUnavailable("the engine finished an answer without its token counts; ask again")
    prompt, completion = known[0].prompt_tokens, sum(usage.completion_tokens for usage in known)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": known[0].cached_tokens,
            "image_tokens": known[0].image_tokens,
            "cached_images": known[0].cached_pictures,
            "system_tokens": known[0].system_tokens,
            "cached_system_tokens": known[0].cached_system_tokens,
        },
    }


def images_json(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt's pictures: size in pixels as shown and as the model saw it (``resized``), and tokens."""
    return [image_json(picture) for picture in prompt.pictures]


def image_json(picture: Picture) -> dict[str, Any]:
    header = picture.header
    resized = None if picture.resized is None else list(picture.resized)
    return {"width": header.width, "height": header.height, "tokens": picture.rows, "resized": resized}


def logprobs_json(logprobs: Iterable[TokenLogprob], spell: Callable[[int], bytes] | None = None) -> dict[str, Any]:
    """OpenAI's ``logprobs`` object: ``{"content": [...]}``. ``spell`` gives the bytes of a token that holds part of a
    character; without it these are null."""
    return {
        "content": [
            {
                **_token_json(entry.token_id, entry.token, entry.logprob, spell),
                "top_logprobs": [_token_json(id_, token, logprob, spell) for id_, token, logprob in entry.top],
            }
            for entry in logprobs
        ]
    }


def bounded(logprob: float) -> float:
    """``logprob`` as JSON can carry it."""
    return logprob if logprob > _LOWEST_LOGPROB else _LOWEST_LOGPROB


def _token_json(token_id: int, token: str, logprob: float, spell: Callable[[int], bytes] | None) -> dict[str, Any]:
    # A token that holds part of a character has no text of its own, and its bytes are not those of the stand-in.
    data: bytes | None = token.encode("utf-8", "surrogatepass")
    if "\ufffd" in token:
        data = None if spell is None else spell(token_id)
    return {"token": token, "logprob": bounded(logprob), "bytes": None if data is None else list(data)}
