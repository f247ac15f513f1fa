"""Many clients at once, each asking one question after the other, and what became of every question."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.questions import Question, Questions, known_pictures
from bench.wire import Broken, Reply, ask

DEADLINE = 120.0
"""Seconds after which a question counts as hung."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a question asked ``at`` seconds after the start, after ``seconds``.

    ``what`` is ``answered``; ``left`` by the client; ``refused`` with a declared 429; ``unavailable`` by a typed 503,
    or by the typed last event of a stream; or ``failed``, and ``detail`` says how.
    """

    kind: str
    what: str
    at: float
    seconds: float
    detail: str = ""


@dataclass(slots=True)
class Crowd:
    """``size`` clients of the server at ``address``; ``leaving`` is the part of questions whose client goes away.

    A client that is told to come back later waits as long as it is told, at most ``patience`` seconds.
    """

    address: tuple[str, int]
    size: int
    seed: int = 0
    leaving: float = 0.0
    patience: float = 0.2
    outcomes: list[Outcome] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    stopped: bool = False

    @property
    def now(self) -> float:
        return time.perf_counter() - self.started

    async def run(self) -> None:
        """Ask until ``stop``, and a little longer: no question is given up that was asked."""
        known = known_pictures(self.seed)
        await asyncio.gather(*(self._client(known, f"{self.seed}/{number}") for number in range(self.size)))

    def stop(self) -> None:
        self.stopped = True

    async def _client(self, known: Sequence[bytes], name: str) -> None:
        questions, rng = Questions(known, name), random.Random(f"leaving {name}")
        while not self.stopped:
            patience = rng.uniform(0.0, 1.5) ** 2 if rng.random() < self.leaving else None
            outcome = await self._one(questions.next(), patience)
            self.outcomes.append(outcome)
            if outcome.what in ("refused", "unavailable", "failed"):
                await asyncio.sleep(self.patience)

    async def _one(self, question: Question, patience: float | None) -> Outcome:
        at = self.now
        try:
            async with asyncio.timeout(patience or DEADLINE):
                what, detail = judge(question, await ask(self.address, question.request))
        except TimeoutError:
            what, detail = ("left", "") if patience else ("failed", f"no answer in {DEADLINE:.0f} s")
        except Broken as error:
            what, detail = "failed", str(error)
        return Outcome(question.kind, what, at, self.now - at, detail)


def judge(question: Question, reply: Reply) -> tuple[str, str]:
    """What an ``Outcome`` says of a whole answer."""
    try:
        if reply.status == 200:
            if any('"engine_unavailable"' in event for event in reply.events()[-2:]):
                return "unavailable", "in a stream"
            wrong = question.wrong(reply)
            return ("failed", wrong) if wrong else ("answered", "")
        code = reply.json()["error"]["code"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return "failed", f"{reply.status} {type(error).__name__}: {reply.body[:200]!r}"
    if reply.status == 503 and code == "engine_unavailable" and "retry-after" in reply.headers:
        return "unavailable", "503"
    if reply.status == 429 and "retry-after" in reply.headers:
        return "refused", code
    return "failed", f"{reply.status} {json.dumps(reply.json()['error'])[:200]}"


def counted(outcomes: Iterable[Outcome]) -> str:
    """How many of each, for a report."""
    counts = Counter(outcome.what for outcome in outcomes)
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items())) or "none"


def percentiles(outcomes: Iterable[Outcome]) -> str:
    """p50, p95, p99 and the longest of what was answered, in seconds."""
    times = sorted(outcome.seconds for outcome in outcomes if outcome.what == "answered")
    if not times:
        return "nothing was answered"
    at = [times[min(len(times) - 1, int(part * len(times)))] for part in (0.5, 0.95, 0.99)]
    return f"p50 {at[0]:.2f} s, p95 {at[1]:.2f} s, p99 {at[2]:.2f} s, longest {times[-1]:.2f} s ({len(times)} answers)"
