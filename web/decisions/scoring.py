"""Questions -> engine requests, one for each text that an answer may be -> probabilities.

The requests of a question share its prompt, and all of a body its pictures, so they run as one batch over one cached
prefix. A text's probability is that of its tokens and of the end of the turn after them, so that of "cat" and
"catfish" each has its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmserve.engine.client import EngineClient
from mmserve.errors import MMServeError
from mmserve.probabilities import label_mass, softmax
from mmserve.sampling import SamplingParams
from mmserve.types import Message, Prompt, Request, Usage
from web.decisions.questions import Question, with_question
from web.generation import Stopwatch, Tally, collect
from web.service import PromptBuilder


@dataclass(frozen=True, slots=True)
class Row:
    """One text to score: option ``option`` of question ``question``; ``prompt`` ends with it."""

    question: int
    option: int
    prompt: Prompt
    asked: int
    """The length of the question's own prompt, in tokens."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A question's answers in the order of its options. ``probabilities`` sum to 1.

    ``logprobs`` are of the options under the model, and ``label_mass`` is the probability that the model gives to all
    of them together: how much of what it would say they cover. ``tokens`` is how many were scored for each
    option.
    """

    probabilities: tuple[float, ...]
    logprobs: tuple[float, ...]
    label_mass: float
    tokens: tuple[int, ...]

    @property
    def best(self) -> int:
        return self.probabilities.index(max(self.probabilities))


def rows_of(
    prompts: PromptBuilder, messages: Sequence[Message], questions: Sequence[Question], cache_salt: str
) -> list[Row]:
    """CPU work in proportion to the pictures and options. Raises what ``PromptBuilder.build`` does."""
    rows = []
    for q, question in enumerate(questions):
        asked = prompts.build(with_question(messages, question), cache_salt=cache_salt)
        rows += [
            Row(q, o, prompts.append_text(asked, text, end=True), len(asked))
            for o, option in enumerate(question.options)
            for text in option.texts
        ]
    return rows


async def score(
    engine: EngineClient,
    identity: str,
    rows: Sequence[Row],
    questions: Sequence[Question],
    *,
    cache_salt: str,
    temperature: float,
) -> tuple[list[Scores], Usage]:
    """All rows at once. Raises the engine's typed errors."""
    sampling = SamplingParams(max_tokens=1, logprobs=0)
    requests = [
        Request(f"{identity}-{i}", row.prompt, sampling, cache_salt, score_from=row.asked) for i, row in enumerate(rows)
    ]
    tallies = await collect(engine, requests, Stopwatch())
    logprobs = [[-math.inf] * len(question.options) for question in questions]
    tokens = [[0] * len(question.options) for question in questions]
    for row, tally in zip(rows, tallies, strict=True):
        of_question = logprobs[row.question]
        of_question[row.option] = _log_sum((of_question[row.option], _logprob(row, tally)))
        tokens[row.question][row.option] += len(tally.logprobs)
    scores = [_scores(each, temperature, counts) for each, counts in zip(logprobs, tokens, strict=True)]
    return scores, _usage(rows, tallies)


def _logprob(row: Row, tally: Tally) -> float:
    if len(tally.logprobs) != len(row.prompt) - row.asked:
        raise MMServeError("the engine did not score every token of an answer, so no probability can be told")
    return math.fsum(entry.logprob for entry in tally.logprobs)


def _log_sum(logs: Sequence[float]) -> float:
    highest = max(logs)
    if highest == -math.inf:
        return highest
    return highest + math.log(math.fsum(math.exp(log - highest) for log in logs))


def _scores(logprobs: Sequence[float], temperature: float, tokens: Sequence[int]) -> Scores:
    return Scores(tuple(softmax(logprobs, temperature)), tuple(logprobs), label_mass(logprobs), tuple(tokens))


def _usage(rows: Sequence[Row], tallies: Sequence[Tally]) -> Usage:
    """Each question's prompt is counted once, and so is what of it was cached before: the least that any row found."""
    prompt = cached = pictures = images = system = cached_system = 0
    for of_question in _by_question(rows, tallies):
        first = of_question[0][0]
        usages = [tally.usage for _, tally in of_question if tally.usage is not None]
        prompt += first.asked + sum(len(row.prompt) - row.asked for row, _ in of_question)
        cached += min((min(usage.cached_tokens, first.asked) for usage in usages), default=0)
        pictures += min((usage.cached_pictures for usage in usages), default=0)
        images += first.prompt.picture_tokens
        system += first.prompt.system_tokens
        cached_system += min((usage.cached_system_tokens for usage in usages), default=0)
    return Usage(prompt, 0, cached, images, pictures, system, cached_system)


def _by_question(rows: Sequence[Row], tallies: Sequence[Tally]) -> Iterator[list[tuple[Row, Tally]]]:
    grouped: dict[int, list[tuple[Row, Tally]]] = {}
    for row, tally in zip(rows, tallies, strict=True):
        grouped.setdefault(row.question, []).append((row, tally))
    yield from grouped.values()
