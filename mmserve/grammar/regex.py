"""Python's regular expressions in the syntax of llguidance, which has a DFA and no backtracking.

The translation is sound, not complete: whatever the result matches, ``re.fullmatch`` (``re.search`` for schemas'
patterns) accepts. Where the two worlds' Unicode tables could differ the smaller set is taken:

============  =====================================================================
``\\d``        ASCII digits
``\\s``        ASCII white space
``\\w``        ``_``, ASCII letters and digits, and the common letters of living scripts (Latin, Greek, Cyrillic,
              Arabic, Hebrew, Thai, kana, Hangul, the Chinese characters of Unicode 1.1)
``\\D \\S \\W``  everything outside a superset of the class
``.``         as in Python without DOTALL; in a schema's pattern also not ``\\r``, U+2028 and U+2029
============  =====================================================================

Non-greedy and greedy repetition match the same whole texts. Anchors are allowed where they can hold: at the ends.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmserve.errors import ConstraintError, InvalidConstraint, UnsupportedConstraint

MAX_PATTERN = 20_000
"""The longest pattern that is translated, in characters."""

MAX_STATES = 10_000
"""The most characters that the repetitions of a pattern may ask for, counted as if they were written out."""

_LOOP = 120
"""What an unbounded repetition costs: many in a row that overlap make large automata."""

MAX_SHORTEST = 500
"""The most characters that a pattern may ask for at least; the search for a way to end is slow beyond."""

_WORDS = (
    r"0-9A-Z_a-z\xAA\xB5\xBA\xC0-\xD6\xD8-\xF6\xF8-\x{2C1}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}"
    r"\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{561}-\x{587}\x{5D0}-\x{5EA}\x{621}-\x{64A}\x{671}-\x{6D3}"
    r"\x{904}-\x{939}\x{E01}-\x{E30}\x{10D0}-\x{10FA}\x{1E00}-\x{1F15}\x{3041}-\x{3096}\x{30A1}-\x{30FA}"
    r"\x{4E00}-\x{9FA5}\x{AC00}-\x{D7A3}"
)
# (inside, outside): class text that is contained in Python's class, and class text that contains it.
_CLASSES: dict[Any, tuple[str, str]] = {
    sre.CATEGORY_DIGIT: ("0-9", r"\p{N}\p{Cn}"),
    sre.CATEGORY_SPACE: (r" \t\n\r\f\v", r"\s\x1C-\x1F\x85"),
    sre.CATEGORY_WORD: (_WORDS, r"\p{L}\p{M}\p{N}\p{Cn}\p{Co}_"),
    sre.CATEGORY_NOT_DIGIT: (r"[^\p{N}\p{Cn}]", "[^0-9]"),
    sre.CATEGORY_NOT_SPACE: (r"[^\s\x1C-\x1F\x85]", r"[^ \t\n\r\f\v]"),
    sre.CATEGORY_NOT_WORD: (r"[^\p{L}\p{M}\p{N}\p{Cn}\p{Co}_]", f"[^{_WORDS}]"),
}
_STARTS = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
_ENDS = (sre.AT_END, sre.AT_END_STRING)
_NAMES: dict[Any, str] = {
    sre.ASSERT: "a lookaround",
    sre.ASSERT_NOT: "a negative lookaround",
    sre.GROUPREF: "a backreference",
    sre.GROUPREF_EXISTS: "a conditional group",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive quantifier",
}
# Python's parser warns about sets that may change their meaning, through a filter that all threads share.
_PARSING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Translation:
    """``regex`` holds no ``/`` and only ASCII; ``literals`` are the longest runs of plain text in it."""

    regex: str
    literals: tuple[str, ...]


def translate(pattern: str, *, search: bool = False, param: str = "regex") -> Translation:
    """``pattern`` for a match of the whole text, or with ``search`` anywhere in it.

    Raises ``InvalidConstraint`` for what Python's ``re`` cannot read and ``UnsupportedConstraint``, naming the
    construct, for what a DFA cannot do or what would grow too large.
    """
    if len(pattern) > MAX_PATTERN:
        raise UnsupportedConstraint(f"the pattern has {len(pattern)} characters; at most {MAX_PATTERN}", param=param)
    try:
        parsed = _parse(pattern)
        return _Translator(search, param).translate(parsed)
    except re.error as error:
        raise InvalidConstraint(f"the pattern is not a regular expression: {error}", param=param) from None
    except (RecursionError, OverflowError):
        raise UnsupportedConstraint("the pattern is nested too deeply", param=param) from None


def _parse(pattern: str) -> Any:
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parser.parse(pattern)


def literal(text: str) -> str:
    """A regular expression of ASCII characters that matches ``text``."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def variants(char: str) -> tuple[str, ...]:
    """The characters that Python's IGNORECASE takes for ``char``, itself first."""
    found = {char.lower(), char.upper(), char.swapcase(), char.casefold(), *_ODD_CASES.get(char.lower(), "")}
    same = re.compile(re.escape(char), re.IGNORECASE)
    return (char, *sorted(c for c in found if len(c) == 1 and c != char and same.fullmatch(c)))


_ODD_CASES = {"k": "\u212a", "s": "\u017f", "å": "\u212b", "i": "\u0130\u0131", "µ": "\u03bc", "β": "\u03d0"}


class _Translator:
    """One pattern's walk. ``start`` and ``end`` say whether nothing can stand before or behind the part at hand."""

    def __init__(self, search: bool, param: str) -> None:
        self._search = search
        self._param = param
        self._literals: list[str] = []

    def translate(self, parsed: Any) -> Translation:
        flags = parsed.state.flags
        regex, size = self._sequence(list(parsed), flags, True, True)
        self._check(size)
        least = min(parsed.getwidth()[0], MAX_STATES)
        if least > MAX_SHORTEST and not self._search:
            message = f"the pattern asks for {least} characters at least; at most {MAX_SHORTEST} are allowed"
            raise UnsupportedConstraint(message, param=self._param)
        longest = sorted(set(self._literals), key=len, reverse=True)[:32]
        return Translation(regex, tuple(longest))

    def _refuse(self, what: str) -> ConstraintError:
        return UnsupportedConstraint(f"{what} in a pattern cannot be enforced; leave it out", param=self._param)

    def _check(self, size: int) -> None:
        if size > MAX_STATES:
            message = f"the pattern's repetitions ask for {size} characters; at most {MAX_STATES} can be enforced"
            raise UnsupportedConstraint(message, param=self._param)

    def _sequence(self, items: Sequence[Any], flags: int, start: bool, end: bool) -> tuple[str, int]:
        parts: list[str] = []
        size = 0
        run = ""
        solid = [index for index, (op, _) in enumerate(items) if op is not sre.AT]
        first, last = (solid[0], solid[-1]) if solid else (len(items), -1)
        for index, (op, value) in enumerate(items):
            before = start and index <= first
            behind = end and index >= last
            text, cost = self._item(op, value, flags, before, behind)
            parts.append(text)
            size += cost
            run = run + chr(value) if op is sre.LITERAL else ""
            if run and (index + 1 == len(items) or items[index + 1][0] is not sre.LITERAL):
                self._literals.append(run)
        return "".join(parts), size

    def _item(self, op: Any, value: Any, flags: int, start: bool, end: bool) -> tuple[str, int]:
        if op is sre.LITERAL:
            return self._char(chr(value), flags), 1
        if op is sre.NOT_LITERAL:
            return self._set([(sre.NEGATE, None), (sre.LITERAL, value)], flags), 1
        if op is sre.ANY:
            return self._any(flags), 1
        if op is sre.IN:
            return self._set(value, flags), 1
        if op is sre.BRANCH:
            found = [self._sequence(list(branch), flags, start, end) for branch in value[1]]
            return "(?:" + "|".join(text for text, _ in found) + ")", sum(size for _, size in found)
        if op is sre.SUBPATTERN:
            _, on, off, body = value
            text, size = self._sequence(list(body), (flags | on) & ~off, start, end)
            return f"(?:{text})", size
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._repeat(value, flags, start, end)
        if op is sre.AT:
            return self._anchor(value, start, end), 0
        if op is sre.FAILURE:
            return r"[^\x00-\x{10FFFF}]", 1
        raise self._refuse(_NAMES.get(op, str(op).lower()))

    def _repeat(self, value: Any, flags: int, start: bool, end: bool) -> tuple[str, int]:
        low, high, body = value
        once = high == 1
        text, size = self._sequence(list(body), flags, start and once, end and once)
        if high is sre.MAXREPEAT:
            times, cost = f"{{{low},}}", size * (low + 1) + _LOOP
        else:
            times, cost = f"{{{low},{high}}}", size * int(high)
        self._check(cost)
        return f"(?:{text}){times}", cost

    def _anchor(self, at: Any, start: bool, end: bool) -> str:
        if at not in _STARTS and at not in _ENDS:
            raise self._refuse(r"\b" if at is sre.AT_BOUNDARY else r"\B")
        opening = at in _STARTS
        if not (start if opening else end):
            raise self._refuse(f"the anchor {'^' if opening else '$'} away from the ends")
        if not self._search:
            return ""
        return "^" if opening else "$"

    def _any(self, flags: int) -> str:
        if flags & re.DOTALL:
            return r"[\x00-\x{10FFFF}]"
        return r"[^\n\r\x{2028}\x{2029}]" if self._search else r"[^\n]"

    def _char(self, char: str, flags: int) -> str:
        self._check_char(char)
        if flags & re.IGNORECASE and len(same := variants(char)) > 1:
            return "[" + "".join(literal(c) for c in same) + "]"
        return literal(char)

    def _check_char(self, char: str) -> None:
        if "\ud800" <= char <= "\udfff":
            raise InvalidConstraint("a pattern cannot hold half of a surrogate pair", param=self._param)

    def _set(self, items: Sequence[Any], flags: int) -> str:
        negate = items[0][0] is sre.NEGATE
        items = items[1:] if negate else items
        if flags & re.IGNORECASE:
            return self._caseless(items, negate)
        inside = "".join(self._members(items, outside=negate))
        return f"[^{inside}]" if negate else f"[{inside}]"

    def _members(self, items: Sequence[Any], *, outside: bool) -> Iterator[str]:
        for op, value in items:
            if op is sre.LITERAL:
                yield f"\\x{{{value:X}}}"
            elif op is sre.RANGE:
                yield f"\\x{{{value[0]:X}}}-\\x{{{value[1]:X}}}"
            elif op is sre.CATEGORY:
                yield _CLASSES[value][outside]
            else:
                raise self._refuse(str(op).lower())

    def _caseless(self, items: Sequence[Any], negate: bool) -> str:
        """A set under IGNORECASE: those ASCII characters and members of it that Python is asked about."""
        source = "[" + ("^" if negate else "") + "".join(_python_members(items)) + "]"
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matches = re.compile(source, re.IGNORECASE).fullmatch
        tried = set(range(128))
        for op, value in items:
            if op is sre.LITERAL:
                tried.update(map(ord, variants(chr(value))))
            elif op is sre.RANGE and value[1] - value[0] < 50_000:
                tried.update(range(value[0], value[1] + 1))
        found = [c for c in sorted(tried) if not 0xD800 <= c < 0xE000 and matches(chr(c))]
        if not found:
            raise self._refuse("a set that no ASCII character is in, without regard to case,")
        return "[" + "".join(f"\\x{{{c:X}}}" for c in found) + "]"


def _python_members(items: Sequence[Any]) -> Iterator[str]:
    names = {
        sre.CATEGORY_DIGIT: r"\d",
        sre.CATEGORY_SPACE: r"\s",
        sre.CATEGORY_WORD: r"\w",
        sre.CATEGORY_NOT_DIGIT: r"\D",
        sre.CATEGORY_NOT_SPACE: r"\S",
        sre.CATEGORY_NOT_WORD: r"\W",
    }
    for op, value in items:
        if op is sre.LITERAL:
            yield f"\\U{value:08X}"
        elif op is sre.RANGE:
            yield f"\\U{value[0]:08X}-\\U{value[1]:08X}"
        else:
            yield names[value]
