"""Seeded workloads for the prefix cache: prompts as token ids and pictures, with the answers fixed in advance.

Four shapes of sharing, each a list of ``Query`` in order of arrival. ``scale`` multiplies how many there are, not how
long they are. Token ids are random, so two texts agree only where the workload makes them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

import numpy as np

from mmserve.sampling import SamplingParams
from mmserve.types import ContentHash, Grid, ImageHeader, MediaRange, Picture, Prompt, Request

VOCABULARY = 100_000
PLACEHOLDER = VOCABULARY

Part = tuple[int, ...] | Picture
"""A piece of text as token ids, or a picture that stands for its rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A request with its answer. ``after`` names the one whose answer the prompt contains."""

    request: Request
    answer: tuple[int, ...]
    after: str | None = None


class Writer:
    """Makes up texts and pictures."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._pictures = 0

    def text(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.random.randrange(VOCABULARY) for _ in range(self.random.randint(low, high)))

    def picture(self, low: int, high: int) -> Picture:
        self._pictures += 1
        content = ContentHash(self._pictures.to_bytes(32, "big"))
        rows = self.random.randint(low, high)
        return Picture(b"", ImageHeader("PNG", 1, 1), content, Grid(1, 2, 2 * rows), rows)


def query(name: str, parts: tuple[Part, ...], answer: tuple[int, ...], after: str | None = None) -> Query:
    """A query whose prompt is ``parts`` one behind the other; a picture that comes twice stands there twice."""
    pictures = tuple(part for part in parts if not isinstance(part, tuple))
    ranges: list[MediaRange] = []
    pieces: list[tuple[int, ...]] = []
    at = 0
    for part in parts:
        if isinstance(part, tuple):
            pieces.append(part)
        else:
            ranges.append(MediaRange(at, at + part.rows, len(ranges)))
            pieces.append((PLACEHOLDER,) * part.rows)
        at += len(pieces[-1])
    prompt = Prompt(np.fromiter(chain.from_iterable(pieces), dtype=np.int64, count=at), pictures, tuple(ranges))
    return Query(Request(name, prompt, SamplingParams(max_tokens=len(answer), seed=0)), answer, after)


def system_prompts(seed: int, scale: float = 1.0) -> list[Query]:
    """Questions to 120 applications, each with a system prompt of its own; the first is asked 120 times the last."""
    writer = Writer(seed)
    systems = [writer.text(1000, 3000) for _ in range(max(1, round(120 * scale)))]
    asked = writer.random.choices(systems, [1 / (i + 1) for i in range(len(systems))], k=round(1500 * scale))
    return [query(str(i), (system, writer.text(10, 100)), writer.text(8, 32)) for i, system in enumerate(asked)]


def few_pictures(seed: int, scale: float = 1.0) -> list[Query]:
    """Ten short questions a picture, in random order; some are about two pictures, some were asked before."""
    writer = Writer(seed)
    system = writer.text(40, 40)
    pictures = [writer.picture(256, 1280) for _ in range(max(2, round(150 * scale)))]
    questions = [writer.text(10, 40) for _ in range(20)]
    queries = []
    for i in range(10 * len(pictures)):
        shown = writer.random.sample(pictures, 2 if writer.random.random() < 0.1 else 1)
        question = writer.random.choice(questions)
        queries.append(query(str(i), (system, *shown, question), writer.text(4, 24)))
    return queries


def conversations(seed: int, scale: float = 1.0) -> list[Query]:
    """Conversations of 3 to 8 turns about a picture, sometimes with a second one later, all going on side by side."""
    writer = Writer(seed)
    system = writer.text(60, 60)
    going_on = [_conversation(writer, f"c{i}", system) for i in range(round(200 * scale))]
    queries = []
    while going_on:
        turns = writer.random.choice(going_on)
        queries.append(turns.pop(0))
        if not turns:
            going_on.remove(turns)
    return queries


def _conversation(writer: Writer, name: str, system: tuple[int, ...]) -> list[Query]:
    parts: tuple[Part, ...] = (system, writer.picture(256, 1024))
    turns: list[Query] = []
    for turn in range(writer.random.randint(3, 8)):
        if turn and writer.random.random() < 0.1:
            parts += (writer.picture(256, 1024),)
        parts += (writer.text(15, 60),)
        after = turns[-1].request.id if turns else None
        turns.append(query(f"{name}.{turn}", parts, writer.text(30, 100), after))
        parts += (turns[-1].answer,)
    return turns


def agents(seed: int, scale: float = 1.0) -> list[Query]:
    """Forty tasks of a long context each, searched as trees side by side: each step is followed up in up to 3 ways."""
    writer = Writer(seed)
    tools = writer.text(800, 800)
    frontier: list[tuple[str, tuple[Part, ...], int, str | None]] = [
        (f"t{i}", (tools, writer.text(1500, 5000)), 0, None) for i in range(max(1, round(40 * scale)))
    ]
    queries = []
    while frontier:
        name, parts, depth, after = frontier.pop(writer.random.randrange(len(frontier)))
        step = query(name, parts, writer.text(40, 120), after)
        queries.append(step)
        for way in range(writer.random.randint(1, 3) if depth < 3 else 0):
            seen = (*parts, step.answer, writer.text(50, 300))
            frontier.append((f"{name}.{way}", seen, depth + 1, name))
    return queries


WORKLOADS: Mapping[str, Callable[[int, float], list[Query]]] = MappingProxyType(
    {
        "system prompts": system_prompts,
        "few pictures": few_pictures,
        "conversations": conversations,
        "agents": agents,
    }
)
