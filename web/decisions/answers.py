"""Probabilities -> the JSON of ``POST /v1/decisions``, in the dialect that was asked in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmserve.types import Usage
from web.decisions.questions import Question
from web.decisions.scoring import Scores
from web.generation import bounded, usage_json


def sglang_answers(questions: Sequence[Question], scores: Sequence[Scores]) -> dict[str, Any]:
    """SGLang's ``answers`` by question id; ``answer`` and ``logprobs`` are ours."""
    return {str(question.key): _sglang(question, each) for question, each in zip(questions, scores, strict=True)}


def _sglang(question: Question, scores: Scores) -> dict[str, Any]:
    names = [str(option.value) for option in question.options]
    value: Mapping[str, Any]
    match question.kind:
        case "choice":
            value = {"choice": names[scores.best]}
        case "continuation":
            value = {"choice": names[scores.best], "tokens": dict(zip(names, scores.tokens, strict=True))}
        case "score":
            value = {"score": _expected(question, scores)}
        case "yes_no":
            value = {"answer": names[scores.best]}
    return {
        "type": question.kind,
        **value,
        "probabilities": dict(zip(names, scores.probabilities, strict=True)),
        "logprobs": dict(zip(names, map(bounded, scores.logprobs), strict=True)),
        "label_mass": scores.label_mass,
    }


def openai_answers(questions: Sequence[Question], scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """OpenAI's ``answers`` in the order of the questions; ``label_mass`` is ours. ``confidence`` is the probability of
    the likeliest answer."""
    return [_openai(question, each) for question, each in zip(questions, scores, strict=True)]


def _openai(question: Question, scores: Scores) -> dict[str, Any]:
    told = list(zip(question.options, scores.probabilities, strict=True))
    common = {"name": question.key, "label_mass": scores.label_mass}
    confidence = {"confidence": scores.probabilities[scores.best]}
    match question.kind:
        case "continuation":
            raise AssertionError("continuations are not asked in OpenAI's dialect")
        case "yes_no":
            return {"type": "predicate", "probability": scores.probabilities[0]} | common
        case "choice":
            probabilities = [{"value": option.value, "probability": p} for option, p in told]
            chosen = question.options[scores.best].value
            return {"type": "choice", "choice": chosen, "probabilities": probabilities} | confidence | common
        case "score":
            levels = [{"value": option.level, "label": option.label, "probability": p} for option, p in told]
            score = _expected(question, scores)
            return {"type": "score", "score": score, "probabilities": levels} | confidence | common


def _expected(question: Question, scores: Scores) -> float:
    return math.fsum(
        option.level * probability for option, probability in zip(question.options, scores.probabilities, strict=True)
    )


def openai_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens,
    }


def sglang_usage(usage: Usage) -> dict[str, Any]:
    return usage_json([usage])
