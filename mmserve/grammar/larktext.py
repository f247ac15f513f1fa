"""A look at a caller's Lark text before llguidance gets it: what reaches outside of the text is refused.

llguidance compiles rules by recursion on the thread's stack and asks about intersections of terminals without a limit
of time, so depth and number of these are capped here.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mmserve.errors import InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.schema import prepare, read

MAX_RULES = 2_000
MAX_CHAIN = 500
"""Rules that use each other in a row, each counted with the depth of its groups."""

MAX_OPERATORS = 4
"""``&`` and ``~`` in one text."""

MAX_REPEAT_DIGITS = 4

_TOKEN = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\\n])*"i?)|(?P<comment>(?:\#|//)[^\n]*)|(?P<regex>/(?:\\.|[^/\\\n])+/[imslux]*)
    |(?P<directive>%[a-zA-Z_]+)|(?P<special><[^<>\s]+>)|(?P<reference>@[\w-]+)
    |(?P<name>!?[?_]*[A-Za-z][\w-]*)|(?P<number>\d+)|(?P<mark>\S)|(?P<blank>\s+)""",
    re.VERBOSE,
)
_OPTIONS = frozenset(("max_tokens", "temperature", "stop"))


def check_lark(text: str) -> tuple[str, tuple[str, ...]]:
    """``text`` with its ``%json`` schemas made exact and compact, and its literals.

    Raises ``InvalidConstraint`` with the line, and ``UnsupportedConstraint`` for what is not enforced here.
    """
    scan = _Scan(text)
    scan.run()
    _check_chain(scan.uses, scan.depths)
    return "".join(scan.parts), tuple(scan.texts)


class _Scan:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._rule = ""
        self._depth = 0
        self._attributes = False
        self._operators = 0
        self.parts: list[str] = []
        self.texts: dict[str, None] = {}
        self.uses: dict[str, list[str]] = {"": []}
        self.depths: dict[str, int] = {"": 0}

    def run(self) -> None:
        while self._at < len(self._text):
            match = _TOKEN.match(self._text, self._at)
            if match is None or match.lastgroup is None:
                raise self._invalid("cannot read the grammar")
            start, self._at = self._at, match.end()
            if match.lastgroup == "directive":
                self._directive(match[0])
            else:
                self.parts.append(self._text[start : self._at])
                self._token(match.lastgroup, match[0])
            self._line += self._text.count("\n", start, self._at)

    def _invalid(self, message: str) -> InvalidConstraint:
        return InvalidConstraint(f"line {self._line}: {message}", param="grammar")

    def _refuse(self, message: str) -> UnsupportedConstraint:
        return UnsupportedConstraint(f"line {self._line}: {message}", param="grammar")

    def _token(self, kind: str, text: str) -> None:
        if kind == "special":
            raise self._refuse(f"special tokens such as {text[:40]} are not allowed; quote it to mean its text")
        if kind == "reference":
            raise self._refuse(f"there are no other grammars, so {text[:40]} means nothing")
        if kind == "text":
            self._literal(text)
        elif kind == "name":
            self._name(text)
        elif kind == "number" and len(text) > MAX_REPEAT_DIGITS:
            raise self._refuse(f"{text[:20]} repetitions are too many; at most {10**MAX_REPEAT_DIGITS - 1}")
        elif kind == "mark":
            self._mark(text)

    def _literal(self, text: str) -> None:
        try:
            self.texts[json.loads(text.removesuffix("i") if text.endswith("i") else text)] = None
        except ValueError:
            return  # \xHH, which JSON does not know, or an error that llguidance words better

    def _name(self, text: str) -> None:
        name = text.lstrip("!?")
        rest = self._text[self._at : self._at + 200]
        if self._attributes:
            if name in _OPTIONS:
                raise self._refuse(f"the option {name} of a rule is not allowed")
        elif self._depth == 0 and re.match(r"[ \t]*(\.-?\d+)?(\[[^\]]*\])?[ \t]*(::[ \t]*_[ \t]*)?:(?!:)", rest):
            self._rule = name
            self.uses.setdefault(name, [])
            self.depths.setdefault(name, 0)
            if len(self.uses) > MAX_RULES:
                raise self._refuse(f"the grammar has more than {MAX_RULES} rules")
        else:
            self.uses[self._rule].append(name)

    def _mark(self, text: str) -> None:
        if text in "&~":
            self._operators += 1
            if self._operators > MAX_OPERATORS:
                raise self._refuse(f"& and ~ are used more than {MAX_OPERATORS} times")
        elif text in "([":
            self._depth += 1
            self.depths[self._rule] = max(self.depths[self._rule], self._depth)
            # A rule's options stand between its name and the colon.
            closing = self._text.find("]", self._at)
            self._attributes = (
                text == "[" and re.match(r"\][ \t]*(::[ \t]*_[ \t]*)?:", self._text[closing:]) is not None
            )
        elif text in ")]":
            self._depth = max(0, self._depth - 1)
            self._attributes = False

    def _directive(self, name: str) -> None:
        if name in ("%json", "%llguidance", "%regex"):
            value = self._json(name)
            if name == "%json":
                value = self._schema(value)
            elif name == "%llguidance" and isinstance(value, dict) and value.get("allow_invalid_utf8"):
                raise self._refuse("allow_invalid_utf8 is not allowed")
            self.parts.append(f"{name} {json.dumps(value)}")
        elif name in ("%ignore", "%import", "%declare", "%override", "%if"):
            self.parts.append(name)
            if name == "%ignore":
                self._rule = ""
        else:
            raise self._refuse(f"{name} is not allowed")

    def _json(self, name: str) -> Any:
        rest = re.compile(r"\s*").match(self._text, self._at)
        start = rest.end() if rest else self._at
        try:
            value, self._at = json.JSONDecoder().raw_decode(self._text, start)
        except (ValueError, RecursionError) as error:
            raise self._invalid(f"{name} is not followed by JSON: {error}") from None
        return value

    def _schema(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise self._invalid("%json is not followed by a schema")
        try:
            lowered = prepare(*read(json.dumps(value)), "strict")
        except (InvalidConstraint, UnsupportedConstraint) as error:
            raise type(error)(f"line {self._line}: {error.message}", param="grammar") from None
        return json.loads(lowered.grammar)["grammars"][0]["json_schema"]


def _check_chain(uses: dict[str, list[str]], depths: dict[str, int]) -> None:
    """Follows the rules from ``start`` as llguidance does: each where it is first used."""
    weights = {name: 1 + depth for name, depth in depths.items()}
    if sum(weights.values()) <= MAX_CHAIN:
        return
    seen = {"start"}
    stack = [("start", iter(uses.get("start", ())))]
    length = weights.get("start", 1)
    while stack:
        name, rest = stack[-1]
        following = next((other for other in rest if other in uses and other not in seen), None)
        if following is None:
            stack.pop()
            length -= weights.get(name, 1)
            continue
        seen.add(following)
        length += weights[following]
        if length > MAX_CHAIN:
            raise UnsupportedConstraint(f"more than {MAX_CHAIN} rules use each other in a row", param="grammar")
        stack.append((following, iter(uses[following])))
