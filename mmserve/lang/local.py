"""Engine: the backend in this process, over the serving engine. torch loads when one is made, not before."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import math
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, Self

from mmserve.config import EngineConfig, Limits
from mmserve.errors import EngineUnavailable, MMServeError
from mmserve.lang.calls import Context, GenerateCall, Said, ScoreCall, Scores, Shown
from mmserve.lang.loop import program_loop
from mmserve.sampling import SamplingParams
from mmserve.types import (
    AudioPart,
    ImagePart,
    MediaPart,
    Message,
    Prompt,
    Request,
    TextPart,
    TokenEvent,
    Usage,
    VideoPart,
)

if TYPE_CHECKING:
    from mmserve.engine.client import EngineClient


_LEAVE_SECONDS = 10.0


class Prompts(Protocol):
    """What is needed of ``mmserve.prompt.PromptBuilder``."""

    def build(
        self, messages: Sequence[Message], *, cache_salt: str = "", add_generation_prompt: bool = True
    ) -> Prompt: ...

    def append_text(self, prompt: Prompt, text: str, *, end: bool = False) -> Prompt: ...

    def append_choices(
        self, prompt: Prompt, opening: str, choices: Sequence[str], *, end: bool = False
    ) -> tuple[list[Prompt], int]: ...


class Spelling(Protocol):
    """The text of token ids, special ones left out."""

    def __call__(self, token_ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """A loaded model. ``sampling`` is what a program that says nothing gets."""

    client: EngineClient
    prompts: Prompts
    spelling: Spelling
    sampling: SamplingParams
    end_ids: frozenset[int]


class Engine:
    """A model in this process.

    ``model_path`` is a name from ``models.yaml``, a checkpoint folder or ``owner/name`` on Hugging Face. ``options``
    are fields of ``EngineConfig`` (``device``, ``dtype``, ``max_running``, …) and ``Limits`` (``max_pictures``, …).

    Raises ``ConfigError``, ``CheckpointError`` and ``ModelNotFound`` with one clear sentence. Use it in a ``with``
    block, or ``close`` it, to give the memory back.
    """

    def __init__(self, model_path: str, *, offline: bool = False, **options: Any) -> None:
        config, limits = _settings(options)
        self._parts = _load(model_path, config, limits, offline)
        self._closed = False
        program_loop()  # ends after the engine then: exit handlers run from the last to the first
        atexit.register(self._leave)

    async def generate(self, call: GenerateCall) -> AsyncGenerator[TokenEvent, None]:
        parts = self._parts
        sampling = parts.sampling.replace(**call.options.said())
        prompt = await asyncio.to_thread(_prompt_of, parts, call.context)
        request = Request(_new_id(), prompt, sampling, constraint=call.constraint)
        async with aclosing(parts.client.generate(request)) as events:
            async for event in events:
                yield event

    async def score(self, call: ScoreCall) -> Scores:
        parts = self._parts
        prompts, start = await asyncio.to_thread(_rows_of, parts, call)
        sampling = SamplingParams(max_tokens=1, logprobs=0)
        rows = [asyncio.create_task(_score(parts.client, prompt, sampling, start)) for prompt in prompts]
        try:
            results = await asyncio.gather(*rows)
        finally:  # the first failure ends the others
            for row in rows:
                row.cancel()
            await asyncio.gather(*rows, return_exceptions=True)
        return Scores(tuple(logprob for logprob, _ in results), results[0][1])

    def stats(self) -> Mapping[str, float]:
        """The engine's counters and gauges by name (see ``mmserve.engine.metrics``)."""
        return self._parts.client.stats()

    def flush_cache(self) -> int:
        """Empty the caches of what no request is using; returns the number of tokens dropped."""
        return program_loop().run(self._parts.client.flush())

    def close(self) -> None:
        """End the engine; programs that still use it get ``EngineUnavailable``. May be called again."""
        if not self._closed:
            self._closed = True
            atexit.unregister(self._leave)
            program_loop().run(self._parts.client.close())

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leave(self) -> None:
        """At the end of the process: it must not end while the engine's thread computes."""
        with contextlib.suppress(RuntimeError):  # threads cannot be started any more, but the engine is told to stop
            self.close()
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._parts.client.ready and time.monotonic() < deadline:
            time.sleep(0.005)


def _settings(options: Mapping[str, Any]) -> tuple[EngineConfig, Limits]:
    known = {cls: {each.name for each in dataclasses.fields(cls)} for cls in (EngineConfig, Limits)}
    unknown = options.keys() - set().union(*known.values())
    if unknown:
        raise TypeError(
            f"Engine has no option {sorted(unknown)[0]!r}; there are: {', '.join(sorted(set().union(*known.values())))}"
        )
    chosen = {cls: {name: value for name, value in options.items() if name in names} for cls, names in known.items()}
    return EngineConfig(**chosen[EngineConfig]), Limits(**chosen[Limits])


def _load(model_path: str, config: EngineConfig, limits: Limits, offline: bool) -> Parts:
    from mmserve.engine.build import build_engine
    from mmserve.engine.local import LocalEngineClient
    from mmserve.prompt import Detokenizer, PromptBuilder, TokenTable
    from mmserve.registry import load_registry

    checkpoint = load_registry().resolve(model_path, offline=offline)
    table = TokenTable.load(checkpoint.tokenizer_path)

    def spelling(token_ids: Sequence[int]) -> str:
        detokenizer = Detokenizer(table)
        return detokenizer.push(token_ids) + detokenizer.flush()

    prompts = PromptBuilder(checkpoint, limits)
    client = LocalEngineClient(build_engine(checkpoint, config), max_queue=limits.max_queue)
    return Parts(client, prompts, spelling, checkpoint.sampling, frozenset(checkpoint.eos_token_ids))


def _prompt_of(parts: Parts, context: Context) -> Prompt:
    """The prompt with the open turn's text behind it. What the model wrote goes in as the tokens that it wrote, so that
    the cache has all of it."""
    prompt = _history(parts, context)
    for said in context.opening:
        ids = _exact_ids(parts, said)
        prompt = parts.prompts.append_text(prompt, said.text) if ids is None else _with_ids(prompt, ids)
    return prompt


def _history(parts: Parts, context: Context) -> Prompt:
    messages = [
        Message(
            turn.role,
            tuple(_media_part(part) if isinstance(part, Shown) else TextPart(part.text) for part in turn.parts),
        )
        for turn in context.turns
    ]
    return parts.prompts.build(messages)


def _media_part(shown: Shown) -> MediaPart:
    if shown.kind == "audio":
        return AudioPart(shown.data)
    if shown.kind == "video":
        watched = shown.watched
        return VideoPart(shown.data, watched.fps, watched.num_frames, watched.max_frames)
    return ImagePart(shown.data) if shown.detail is None else ImagePart(shown.data, shown.detail)


def _exact_ids(parts: Parts, said: Said) -> tuple[int, ...] | None:
    """The tokens of ``said`` without the end behind them, where they spell its text exactly.

    A stop string, for one, cuts the text but not the tokens.
    """
    ids = said.token_ids
    if ids is None:
        return None
    while ids and ids[-1] in parts.end_ids:
        ids = ids[:-1]
    return ids if parts.spelling(ids) == said.text else None


def _with_ids(prompt: Prompt, ids: Sequence[int]) -> Prompt:
    import numpy as np

    token_ids = np.concatenate([prompt.token_ids, np.array(ids, dtype=np.int64)])
    token_ids.setflags(write=False)
    return dataclasses.replace(prompt, token_ids=token_ids)


def _rows_of(parts: Parts, call: ScoreCall) -> tuple[list[Prompt], int]:
    """A prompt for each choice, and the first position that is scored, the same for all."""
    *front, last = call.context.opening or (Said(""),)
    if last.token_ids is not None:
        front, last = [*front, last], Said("")
    base = _prompt_of(parts, dataclasses.replace(call.context, opening=tuple(front)))
    return parts.prompts.append_choices(base, last.text, call.choices, end=call.ends_turn)


async def _score(
    client: EngineClient, prompt: Prompt, sampling: SamplingParams, start: int
) -> tuple[float, Usage | None]:
    request = Request(_new_id(), prompt, sampling, score_from=start)
    async with aclosing(client.generate(request)) as events:
        async for event in events:
            if event.last:
                if len(event.logprobs) != len(prompt) - start:
                    raise MMServeError("the engine did not score every token of a choice")
                return math.fsum(entry.logprob for entry in event.logprobs), event.usage
    raise EngineUnavailable("the engine stopped before a choice was scored")


def _new_id() -> str:
    return f"lang-{uuid.uuid4().hex}"
