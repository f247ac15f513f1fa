"""Questions answered with probabilities: what is sent to ``/v1/decisions``, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmserve.client.answer import usage_from
from mmserve.client.constraints import options_of
from mmserve.errors import InvalidConstraint
from mmserve.types import Usage


@dataclass(frozen=True, slots=True)
class Decision:
    """The probability of every allowed answer.

    ``choice`` is the likeliest: one of the given choices (an Enum's member, a Literal's value, a string), True or False
    for a yes-or-no question, or a level. ``probabilities`` are by the answers' texts and sum to 1. ``label_mass`` is
    the probability that the model gives to all of them together; where it is small the model would rather have said
    something else. ``score`` is the expected level, where there is a scale. ``logprobs`` are natural logarithms.
    """

    choice: Any
    probabilities: Mapping[str, float]
    label_mass: float
    logprobs: Mapping[str, float]
    usage: Usage
    model: str
    score: float | None = None


def decision_question(
    question: str, choices: Any, levels: Any
) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Decision]]:
    """The question's JSON, and how the reply is read (which raises as ``answer_from_vqa`` does)."""
    if choices is not None and levels is not None:
        raise InvalidConstraint("give choices or levels, not both", param="levels")
    values: Mapping[str, Any]
    asked: dict[str, Any] = {"id": "question", "question": question}
    if levels is not None:
        asked |= {"type": "score", **_scale(levels)}
        values = {}
    elif choices is not None:
        values = options_of(choices)
        asked |= {"type": "choice", "options": [{"name": text} for text in values]}
    else:
        values = {"yes": True, "no": False}
        asked |= {"type": "yes_no"}
    return asked, lambda wire: _decision(wire, values)


def _scale(levels: Any) -> dict[str, Any]:
    """A range of whole numbers, or a list of descriptions, lowest first."""
    if isinstance(levels, range):
        if levels.step != 1 or len(levels) < 2:
            raise InvalidConstraint("a range of levels has at least two numbers, one apart", param="levels")
        return {"min": levels[0], "max": levels[-1]}
    if isinstance(levels, str) or not all(isinstance(level, str) for level in levels):
        raise TypeError("levels is a range, or a list of descriptions, lowest first")
    return {"levels": list(levels)}


def _decision(wire: Mapping[str, Any], values: Mapping[str, Any]) -> Decision:
    answer = wire["answers"]["question"]
    probabilities = dict(answer["probabilities"])
    best = max(probabilities, key=lambda text: probabilities[text])
    return Decision(
        choice=values[best] if values else int(best),
        probabilities=probabilities,
        label_mass=answer["label_mass"],
        logprobs=dict(answer["logprobs"]),
        usage=usage_from(wire["usage"]),
        model=wire["model"],
        score=answer.get("score"),
    )
