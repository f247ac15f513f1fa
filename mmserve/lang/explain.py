"""What a program would ask, and how much of it is cached: the program runs against stand-ins for what is generated."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from mmserve.lang.calls import Backend, Context, GenerateCall, Options, Said, ScoreCall, Scores, Shown
from mmserve.lang.execution import Run
from mmserve.lang.state import ProgramState
from mmserve.lang.transcript import Transcript
from mmserve.types import TokenEvent, Usage

_EXCERPT = 60


def explained(program: Callable[[ProgramState], Any], backend: Backend, options: Options) -> str:
    """The report. Raises what the program and the backend raise."""
    probe = Probe(backend)
    run = Run(probe, options)
    transcript = Transcript(run)
    failure: BaseException | None = None
    try:
        state = ProgramState(transcript)
        program(state)
        state.text()
    except BaseException as error:
        failure = error
        raise
    finally:
        run.finish(failure)
        run.settle()
    return probe.report()


class Probe:
    """A backend that sends each prompt for one token, to see what of it is cached, and answers with stand-ins."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._seen: list[tuple[str, Context, Usage | None]] = []

    async def generate(self, call: GenerateCall) -> AsyncGenerator[TokenEvent, None]:
        usage = await self._ask(f'gen "{call.name}"' if call.name else "gen", call.context)
        text = "{" + (call.name or "gen") + "}"
        yield TokenEvent("explain", text, finish_reason="stop", usage=usage)

    async def score(self, call: ScoreCall) -> Scores:
        usage = await self._ask(f'select "{call.name}"' if call.name else "select", call.context)
        return Scores((0.0,) + (-1.0,) * (len(call.choices) - 1), usage)

    def close(self) -> None:
        """The backend stays open."""

    async def _ask(self, label: str, context: Context) -> Usage | None:
        usage = None
        asked = GenerateCall(context, Options(max_tokens=1, temperature=0.0))
        async with aclosing(self._backend.generate(asked)) as events:
            async for event in events:
                usage = event.usage or usage
        self._seen.append((label, context, usage))
        return usage

    def report(self) -> str:
        lines: list[str] = []
        shown: list[list[str]] = []
        for label, context, usage in self._seen:
            segments = _segments(context)
            common = max((_common(segments, earlier) for earlier in shown), default=0)
            if common:
                lines.append(f"  … {common} of these segments as above")
            lines += [f"  {segment}" for segment in segments[common:]]
            lines.append(f"{label}: {_reuse(usage)}")
            shown.append(segments)
        return "\n".join(lines)


def _segments(context: Context) -> list[str]:
    parts = [(turn.role, part) for turn in context.turns for part in turn.parts]
    parts += [("assistant", part) for part in context.opening]
    return [f"{role:<9} {_excerpt(part.text) if isinstance(part, Said) else _size(part)}" for role, part in parts]


def _excerpt(text: str) -> str:
    flat = repr(text)
    return flat if len(flat) <= _EXCERPT else flat[:_EXCERPT] + "…'"


_NAMES = {"image": "picture", "video": "video", "audio": "sound"}


def _size(part: Shown) -> str:
    return f"<{_NAMES[part.kind]} of {len(part.data)} bytes>"


def _common(one: list[str], other: list[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _reuse(usage: Usage | None) -> str:
    if usage is None:
        return "the backend does not count tokens"
    pictures = f", {usage.image_tokens} of them for pictures" if usage.image_tokens else ""
    return f"a prompt of {usage.prompt_tokens} tokens{pictures}; {usage.cached_tokens} are cached"
