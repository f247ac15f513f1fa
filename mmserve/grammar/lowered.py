"""What every kind of constraint is turned into, and how parts of it are put together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Step: TypeAlias = Literal["strict", "coerced", "lenient"]

Trial: TypeAlias = Callable[[str], str]
"""Compiles a grammar; what is wrong with it in llguidance's words, or nothing."""


@dataclass(frozen=True, slots=True)
class JsonStyle:
    """What stands between items of JSON and behind its names; no more, or white space could go on for ever."""

    item_separator: str = ","
    key_separator: str = ":"


COMPACT = JsonStyle()
SPACED = JsonStyle(", ", ": ")
"""For models that have only ever seen JSON with blanks."""

MAX_HINTS = 64
MAX_HINT_BYTES = 200


@dataclass(frozen=True, slots=True)
class Lowered:
    """``grammar`` is llguidance's JSON text. What is not ``strict`` has to be judged when it is finished.

    ``relaxed`` says in sentences what is not enforced. ``hints`` are texts out of the constraint, in UTF-8, that help
    to find a short completion. ``param`` is the field that a refusal names.
    """

    grammar: str
    param: str
    step: Step = "strict"
    relaxed: tuple[str, ...] = ()
    hints: tuple[bytes, ...] = ()


def lark(text: str) -> str:
    """The grammar that a Lark text alone makes. User text never stands for llguidance's own JSON form."""
    return grammars([{"lark_grammar": text}])


def grammars(parts: Sequence[Mapping[str, Any]]) -> str:
    """``parts`` refer to each other by their ``name``; the first one is the start."""
    return json.dumps({"grammars": parts}, ensure_ascii=False)


def quoted(text: str) -> str:
    """``text`` as a Lark string."""
    return json.dumps(text, ensure_ascii=True).replace("\x7f", "\\u007f")


def as_hints(texts: Iterable[str]) -> tuple[bytes, ...]:
    """The first texts that are not too long, once each."""
    found = dict.fromkeys(text.encode() for text in texts if text)
    return tuple(hint for hint in found if len(hint) <= MAX_HINT_BYTES)[:MAX_HINTS]
