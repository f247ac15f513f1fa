"""Texts that a constraint is likely to want, to guide the search for a completion. A wrong guess costs time only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mmserve.grammar.spec import Constraint, Grammar, JsonSchema, Regex, StructuralTag, Words, XmlSchema

_MAX_HINTS = 64
_MAX_PATTERN = 10_000
_MAX_EXAMPLE = 512
_MAX_DEPTH = 40

_ESCAPES = {"d": "1", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a", "n": "\n", "t": "\t", "r": "\r", "f": "\f"}
_EDGES = frozenset("bBAZzG")
_CODES = {"x": re.compile("[0-9a-fA-F]{2}"), "u": re.compile("[0-9a-fA-F]{4}")}


def hints_of(constraint: Constraint) -> tuple[bytes, ...]:
    """Literals and examples of the patterns of ``constraint``, as they would stand in the text."""
    texts = (text for text in _texts(constraint) if text)
    return tuple(text.encode("utf-8", "replace") for text in islice(dict.fromkeys(texts), _MAX_HINTS))


def pattern_examples(pattern: str) -> list[str]:
    """A short text for each alternative of a regular expression: repeats as few as may be, anchors left out.

    Nothing for a pattern that is too long or nested too deeply.
    """
    if len(pattern) > _MAX_PATTERN:
        return []
    try:
        return [text for text in _Reader(pattern).alternatives(0) if text]
    except (_TooDeepError, ValueError):
        return []


def _texts(constraint: Constraint) -> Iterator[str]:
    match constraint:
        case JsonSchema(schema=schema):
            for pattern in _patterns(json.loads(schema)):
                for text in pattern_examples(pattern):
                    yield json.dumps(text, ensure_ascii=False)[1:-1]
        case XmlSchema(schema=schema):
            for pattern in _patterns(json.loads(schema)):
                yield from pattern_examples(pattern)
        case Regex(pattern=pattern):
            yield from pattern_examples(pattern)
        case Grammar(text=text):
            yield from _literals(text)
        case Words():
            yield constraint.start_with
            yield from constraint.must_include
        case StructuralTag():
            yield from (tag.begin for tag in constraint.tags)
            for tag in constraint.tags:
                if tag.content is not None:
                    yield from _texts(tag.content)
        case _:
            return


def _patterns(schema: object) -> Iterator[str]:
    """Every ``pattern`` of a schema, and what ``patternProperties`` names, wherever they stand."""
    rest = [schema]
    while rest:
        value: Any = rest.pop()
        if isinstance(value, dict):
            if isinstance(value.get("pattern"), str):
                yield value["pattern"]
            if isinstance(value.get("patternProperties"), dict):
                yield from value["patternProperties"]
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)


def _literals(grammar: str) -> Iterator[str]:
    """Quoted strings and examples of the ``/patterns/`` of a grammar."""
    for found in re.finditer(r'"((?:[^"\\\n]|\\.)*)"|/((?:[^/\\\n]|\\.)+)/', grammar):
        if found[1] is None:
            yield from pattern_examples(found[2])
        else:
            try:
                yield str(json.loads(found[0]))
            except ValueError:
                yield found[1]


class _TooDeepError(Exception):
    """The pattern nests deeper than an example is worth."""


@dataclass(slots=True)
class _Reader:
    """Reads a regular expression from ``at`` on. What it does not know it takes for a literal."""

    pattern: str
    at: int = 0

    def alternatives(self, depth: int) -> list[str]:
        """An example for each branch up to the closing bracket, or the end."""
        if depth > _MAX_DEPTH:
            raise _TooDeepError
        branches = [""]
        while self.at < len(self.pattern) and not (depth and self.pattern[self.at] == ")"):
            if self.pattern[self.at] == "|":
                self.at += 1
                branches.append("")
            else:
                atom = self._atom(depth)
                branches[-1] = (branches[-1] + atom * self._fewest())[:_MAX_EXAMPLE]
        return branches

    def _atom(self, depth: int) -> str:
        char = self.pattern[self.at]
        self.at += 1
        if char == "(":
            return self._group(depth)
        if char == "[":
            return self._one_of()
        if char == "\\":
            return self._escape()
        if char == ".":
            return "a"
        return "" if char in "^$" else char

    def _group(self, depth: int) -> str:
        opening = re.compile(r"\?(?:P?<\w+>|[:>]|<?[=!]|[a-zA-Z-]*:|[a-zA-Z-]+(?=\)))").match(self.pattern, self.at)
        if opening:
            self.at = opening.end()
        branches = self.alternatives(depth + 1)
        self.at += 1
        looks = opening is not None and opening[0][-1] in "=!"
        return "" if looks else min(branches, key=len)

    def _one_of(self) -> str:
        negated = self.pattern.startswith("^", self.at)
        end = re.compile(r"\^?\]?(?:[^\]\\]|\\.)*").match(self.pattern, self.at)
        inside = end[0] if end else ""
        self.at += len(inside) + 1
        if negated:
            return next((char for char in "a1 -_z" if char not in inside), "~")
        return self._first(inside)

    @staticmethod
    def _first(inside: str) -> str:
        """A member of a class: a plain one where it has any."""
        for char in "a1A0":
            if re.search(rf"{char}(?!\w-)", inside) and f"\\{char}" not in inside:
                return char
        reader = _Reader(inside)
        return reader._escape_at_start() if inside.startswith("\\") else inside[:1]

    def _escape_at_start(self) -> str:
        self.at = 1
        return self._escape()

    def _escape(self) -> str:
        char = self.pattern[self.at : self.at + 1]
        self.at += 1
        code = _CODES[char].match(self.pattern, self.at) if char in _CODES else None
        if code:
            self.at = code.end()
            return chr(int(code[0], 16))
        if char in "pP" and (kind := re.compile(r"\{[^}]*\}|\w").match(self.pattern, self.at)):
            self.at = kind.end()
            return "1" if "N" in kind[0] else "a"
        return "" if char in _EDGES else _ESCAPES.get(char, char)

    def _fewest(self) -> int:
        """How often at least the atom just read must stand."""
        found = re.compile(r"(?:([*?])|\+|\{(\d*)(?:,\d*)?\})[?+]?").match(self.pattern, self.at)
        if not found:
            return 1
        self.at = found.end()
        if found[2] is not None:
            return min(int(found[2] or 0), _MAX_EXAMPLE)
        return 0 if found[1] else 1
