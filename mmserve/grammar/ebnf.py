"""GBNF (llama.cpp) and W3C EBNF as a Lark text for llguidance.

Read are ``name ::= …`` rules, the first of them ``root``; ``"…"`` and ``'…'`` with escapes, sets ``[^a-z]``, ``.``,
``#x4E2D``, groups, ``|``, ``* + ? {2} {2,} {2,5}`` and comments (``# …``, ``// …``, ``/* … */``). Sets stay single
characters, which llguidance parses exactly; made into longer terminals they would match greedily. Only a repeated set
whose end the next text marks becomes one terminal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mmserve.errors import InvalidConstraint
from mmserve.grammar.lowered import quoted

MAX_NESTING = 30

_TOKEN = re.compile(
    r"""(?P<blank>\s+|/\*.*?\*/|//[^\n]*|\#(?!x[0-9A-Fa-f]+(?![\w]))[^\n]*)|(?P<define>::=)|(?P<code>\#x[0-9A-Fa-f]+)
    |(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<name>[A-Za-z_][\w-]*)
    |(?P<times>\{\s*\d+\s*(?:,\s*\d*\s*)?\}|[*+?])|(?P<mark>[|().;])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
_NAMED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}

Ranges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Set:
    ranges: Ranges
    negate: bool

    def holds(self, char: str) -> bool:
        return any(low <= ord(char) <= high for low, high in self.ranges) != self.negate

    def regex(self) -> str:
        members = "".join(f"\\x{{{low:X}}}-\\x{{{high:X}}}" for low, high in self.ranges)
        return f"[{'^' if self.negate else ''}{members}]" if members else r"[\x00-\x{10FFFF}]"


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Part
    times: str


@dataclass(frozen=True, slots=True)
class _Choice:
    options: tuple[tuple[_Part, ...], ...]


_Part: TypeAlias = "_Text | _Set | _Rule | _Repeat | _Choice"


@dataclass(frozen=True, slots=True)
class Converted:
    """``lark`` with a ``start`` rule; ``texts`` are its literals."""

    lark: str
    texts: tuple[str, ...]


def is_ebnf(text: str) -> bool:
    """Whether ``text`` defines rules with ``::=`` outside of strings and comments, as Lark does not."""
    return re.search(r"(?m)^[ \t]*[A-Za-z_][\w-]*\s*::=", text) is not None


def convert(text: str) -> Converted:
    """Raises ``InvalidConstraint`` that names the line."""
    rules = _Reader(_tokens(text)).rules()
    if "root" not in rules:
        raise InvalidConstraint("the grammar has no rule named root", param="grammar")
    names = {name: f"r{index}" for index, name in enumerate(rules)} | {"root": "start"}
    writer = _Writer(names)
    lines = [f"{names[name]}: {writer.choice(body)}" for name, body in rules.items()]
    return Converted("\n".join(lines), tuple(writer.texts))


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise InvalidConstraint(f"line {line}: cannot read {text[at : at + 20]!r}", param="grammar")
        if match.lastgroup != "blank":
            found.append(_Token(match.lastgroup, match[0], line))
        line += match[0].count("\n")
        at = match.end()
    return found


class _Reader:
    """Recursive descent over the tokens, groups at most ``MAX_NESTING`` deep."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def rules(self) -> dict[str, _Choice]:
        found: dict[str, _Choice] = {}
        while self._at < len(self._tokens):
            name = self._take("name", "the name of a rule")
            self._take("define", "::=")
            if name.text in found:
                raise self._error(f"the rule {name.text} is defined twice", name)
            found[name.text] = self._choice(0)
        for token, following in zip(self._tokens, [*self._tokens[1:], None], strict=True):
            used = token.kind == "name" and (following is None or following.kind != "define")
            if used and token.text not in found:
                raise self._error(f"there is no rule {token.text}", token)
        return found

    def _peek(self, ahead: int = 0) -> _Token:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else _Token("end", "", self._last_line())

    def _last_line(self) -> int:
        return self._tokens[-1].line if self._tokens else 1

    def _error(self, message: str, token: _Token | None = None) -> InvalidConstraint:
        return InvalidConstraint(f"line {(token or self._peek()).line}: {message}", param="grammar")

    def _take(self, kind: str, what: str) -> _Token:
        token = self._peek()
        if token.kind != kind:
            raise self._error(f"expected {what}, found {token.text[:20]!r}")
        self._at += 1
        return token

    def _choice(self, depth: int) -> _Choice:
        if depth > MAX_NESTING:
            raise self._error(f"groups are nested more than {MAX_NESTING} levels deep")
        options = [self._sequence(depth)]
        while self._peek().text == "|" and self._peek().kind == "mark":
            self._at += 1
            options.append(self._sequence(depth))
        if self._peek().text == ";" and depth == 0:
            self._at += 1
        return _Choice(tuple(options))

    def _sequence(self, depth: int) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        while (part := self._part(depth)) is not None:
            while self._peek().kind == "times":
                part = _Repeat(part, _times(self._peek().text))
                self._at += 1
            parts.append(part)
        return tuple(parts)

    def _part(self, depth: int) -> _Part | None:
        token = self._peek()
        if token.kind == "name" and self._peek(1).kind == "define":
            return None
        if token.kind not in ("name", "text", "set", "code") and token.text not in ("(", "."):
            return None
        self._at += 1
        if token.kind == "name":
            return _Rule(token.text)
        if token.kind == "text":
            return _Text("".join(char for char, _ in self._chars(token.text[1:-1], token)))
        if token.kind == "code":
            return _Text(self._char(int(token.text[2:], 16), token))
        if token.kind == "set":
            return self._set(token)
        if token.text == ".":
            return _Set(((10, 10),), negate=True)
        choice = self._choice(depth + 1)
        if self._peek().text != ")":
            raise self._error("expected )")
        self._at += 1
        return choice

    def _chars(self, text: str, token: _Token) -> list[tuple[str, bool]]:
        """Characters, and whether they were escaped."""
        found = []
        for match in _ESCAPE.finditer(text):
            code = match[1] or match[2] or match[3]
            if code:
                found.append((self._char(int(code, 16), token), True))
            elif match[4]:
                if match[4].isalnum() and match[4] not in _NAMED:
                    raise self._error(f"unknown escape \\{match[4]}", token)
                found.append((_NAMED.get(match[4], match[4]), True))
            else:
                found.append((match[5], False))
        return found

    def _char(self, code: int, token: _Token) -> str:
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self._error(f"U+{code:04X} is no character", token)
        return chr(code)

    def _set(self, token: _Token) -> _Set:
        body = token.text[1:-1]
        negate = body.startswith("^")
        chars = self._chars(re.sub(r"#x([0-9A-Fa-f]+)", lambda m: f"\\U{int(m[1], 16):08X}", body[negate:]), token)
        ranges, index = [], 0
        while index < len(chars):
            low = ord(chars[index][0])
            high = low
            if index + 2 < len(chars) and chars[index + 1] == ("-", False):
                high = ord(chars[index + 2][0])
                index += 2
            if high < low:
                raise self._error(f"the set {token.text[:20]} has a range from high to low", token)
            ranges.append((low, high))
            index += 1
        if not ranges and not negate:
            raise self._error("a set must not be empty", token)
        return _Set(tuple(ranges), negate)


def _times(text: str) -> str:
    return re.sub(r"\s", "", text)


class _Writer:
    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self.texts: dict[str, None] = {}

    def choice(self, choice: _Choice) -> str:
        return " | ".join(self._sequence(option) for option in choice.options)

    def _sequence(self, parts: Sequence[_Part]) -> str:
        found: list[str] = []
        index = 0
        while index < len(parts):
            part, behind = parts[index], parts[index + 1] if index + 1 < len(parts) else None
            if _ends_clearly(part, behind):
                assert isinstance(part, _Repeat)
                assert isinstance(part.part, _Set)
                assert isinstance(behind, _Text)
                text = "".join(f"\\x{{{ord(char):X}}}" for char in behind.text)
                found.append(f"/{part.part.regex()}{part.times}{text}/")
                self.texts[behind.text] = None
                index += 2
            else:
                found.append(self._part(part))
                index += 1
        return " ".join(found) or '""'

    def _part(self, part: _Part) -> str:
        if isinstance(part, _Text):
            self.texts[part.text] = None
            return quoted(part.text)
        if isinstance(part, _Set):
            return f"/{part.regex()}/"
        if isinstance(part, _Rule):
            return self._names[part.name]
        if isinstance(part, _Repeat):
            inner = self._part(part.part)
            return f"({inner}){part.times}" if isinstance(part.part, _Repeat) else f"{inner}{part.times}"
        return f"({self.choice(part)})"


def _ends_clearly(part: _Part, behind: _Part | None) -> bool:
    """Whether ``part`` is a repeated set that cannot hold what ``behind`` begins with."""
    if not (isinstance(part, _Repeat) and isinstance(part.part, _Set) and isinstance(behind, _Text)):
        return False
    return bool(behind.text) and not part.part.holds(behind.text[0])
