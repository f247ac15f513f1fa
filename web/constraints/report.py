"""How a constraint was kept, as the answer says it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from mmserve.errors import MMServeError
from mmserve.grammar.spec import AnyJson, Constraint, JsonSchema
from mmserve.types import ConstraintReport
from web.generation import Tally
from web.service import Judge


@dataclass(frozen=True, slots=True)
class Verdict:
    """The engine's report on an answer, and whether the text is ``valid``: ``None`` where nobody can tell."""

    report: ConstraintReport
    valid: bool | None

    @property
    def flagged(self) -> bool:
        """Whether less than what was asked is certain."""
        return self.report.step != "strict" or self.valid is not True


async def verdict_on(judge: Judge, constraint: Constraint | None, tally: Tally) -> Verdict | None:
    """Of a finished answer; ``None`` without a constraint.

    A complete answer of the strict step is valid by construction; others are judged, in a thread.
    """
    if constraint is None:
        return None
    report = tally.constraint
    if report is None:
        raise MMServeError("the engine did not say how it kept the constraint, so the answer cannot be relied on")
    if report.step == "strict" and tally.finish_reason == "stop":
        return Verdict(report, True)
    return Verdict(report, await run_in_threadpool(judge, constraint, tally.text))


def vqa_answer(verdict: Verdict | None, constraint: Constraint | None, text: str) -> dict[str, Any]:
    """The fields ``constraint`` and ``parsed`` of an answer of ``/v1/vqa``; both are always there, and may be null."""
    wants_json = isinstance(constraint, JsonSchema | AnyJson)
    return {"constraint": None if verdict is None else _whole(verdict), "parsed": _parsed(text) if wants_json else None}


def _whole(verdict: Verdict) -> dict[str, Any]:
    report = verdict.report
    return {
        "step": report.step,
        "relaxed": list(report.relaxed),
        "closed_early": report.closed_early,
        "forced_tokens": report.forced_tokens,
        "valid": verdict.valid,
    }


def chat_choice(verdict: Verdict | None) -> dict[str, Any]:
    """What a choice of a chat answer has beyond OpenAI's fields: nothing, in the ordinary case."""
    if verdict is None:
        return {}
    early = {"closed_early": True} if verdict.report.closed_early else {}
    return early | ({} if verdict.valid is True else {"valid": verdict.valid})


def chat_extra(verdicts: Sequence[Verdict | None]) -> dict[str, Any]:
    """A chat answer's extra field ``constraint``, only where something was relaxed or is not certain.

    ``valid`` speaks for all choices: false if one is, else null if one cannot be told.
    """
    flagged = [verdict for verdict in verdicts if verdict is not None and verdict.flagged]
    if not flagged:
        return {}
    valid: bool | None = True
    for verdict in flagged:
        valid = False if valid is False or verdict.valid is False else valid and verdict.valid
    report = flagged[0].report
    return {"constraint": {"step": report.step, "relaxed": list(report.relaxed), "valid": valid}}


def _parsed(text: str) -> Any:
    """The JSON value that ``text`` is; ``None`` for text that is none, or none that JSON can carry back."""
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # an escape such as \ud800 is legal and has no UTF-8
    except (ValueError, RecursionError):
        return None
    return value


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"{literal} is no finite number")
    return value
