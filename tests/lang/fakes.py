"""A backend without a model: it answers by a function, and remembers what it was asked and what was ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from mmserve.lang.calls import Context, GenerateCall, ScoreCall, Scores
from mmserve.lang.loop import program_loop
from mmserve.types import TokenEvent, Usage

Answer = Callable[[GenerateCall], str]


def echo(call: GenerateCall) -> str:
    """The generation's name and how many turns stand before it."""
    return f"<{call.name}/{len(call.context.turns)}>"


class FakeBackend:
    """``answer`` may raise. Words come one at a time, ``pause`` seconds apart; ``gate`` holds every answer back."""

    def __init__(self, answer: Answer = echo, *, pause: float = 0.0, likely: str | None = None) -> None:
        self._answer = answer
        self._pause = pause
        self._likely = likely
        self.calls: list[GenerateCall] = []
        self.scored: list[ScoreCall] = []
        self.ended: list[str] = []
        """Names of the generations that were closed before their end."""
        self.running = 0
        self.most = 0
        self.closed = False
        self._gate = asyncio.Event()
        self._gate.set()

    def hold(self) -> None:
        """Answer nothing until ``release``."""
        self._gate.clear()

    def release(self) -> None:
        program_loop().loop.call_soon_threadsafe(self._gate.set)

    async def generate(self, call: GenerateCall) -> AsyncGenerator[TokenEvent, None]:
        self.calls.append(call)
        self.running += 1
        self.most = max(self.most, self.running)
        complete = False
        try:
            await asyncio.sleep(self._pause)
            await self._gate.wait()
            words = self._answer(call).split(" ")
            for i, word in enumerate(words):
                await asyncio.sleep(self._pause)
                yield TokenEvent("fake", word if i == 0 else f" {word}", (i,))
            complete = True
            yield TokenEvent("fake", finish_reason="stop", usage=Usage(7, len(words), 3, 0))
        finally:
            self.running -= 1
            if not complete:
                self.ended.append(call.name)

    async def score(self, call: ScoreCall) -> Scores:
        self.scored.append(call)
        await asyncio.sleep(self._pause)
        likely = self._likely if self._likely is not None else call.choices[0]
        return Scores(tuple(-0.1 if choice == likely else -3.0 for choice in call.choices), Usage(7, 0, 3, 0))

    def close(self) -> None:
        self.closed = True


def script(context: Context) -> list[tuple[str, str]]:
    """Turns as (role, text), pictures left out."""
    turns = [(turn.role, turn.text) for turn in context.turns]
    return [*turns, ("assistant…", "".join(said.text for said in context.opening))] if context.opening else turns


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)
