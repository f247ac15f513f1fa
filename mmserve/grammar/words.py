"""Captions with words that they must or must not have.

A word is found whole: no letter, digit or ``_`` of a cased script stands beside it. Characters of other scripts
(Unicode category Lo or Lm: Chinese, kana, Hangul, Thai …) write no blanks between words, so for them a whole word is a
substring. Case does not matter.

Each required word is one bit of a parametric rule. The text up to and with the next required word is one lazy
terminal; where words are counted a terminal ends at each blank, too. So no automaton has to know which of the words
were said: that would be two to the power of their number of states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mmserve.errors import UnsupportedConstraint
from mmserve.grammar.lowered import Lowered, as_hints, lark, quoted
from mmserve.grammar.regex import literal, variants
from mmserve.grammar.spec import Words

MAX_REQUIRED = 20
"""Required words; each is a terminal of its own at every step."""

MAX_COUNTED = 6
"""Required words beside ``max_words``: the search for an end has to fit them all between the blanks that are left."""

MAX_PAIRS = 400
"""Required words times forbidden ones; each terminal has to know all that is forbidden."""

# Small sets keep the automata small: _GAPS holds only characters that are part of no word, the opposite of _ASCII_WORD
# all of those and more. Required words stand between the former, forbidden ones are found between the latter.
_ASCII_BLANKS = r"\x00-\x20"
_GAPS = (
    _ASCII_BLANKS + r"\x21-\x2F\x3A-\x40\x5B-\x5E\x60\x7B-\x7F\x{2010}-\x{2027}\x{3001}-\x{3003}\x{3008}-\x{3011}"
    r"\x{3041}-\x{3096}\x{30A1}-\x{30FA}\x{4E00}-\x{9FA5}\x{AC00}-\x{D7A3}\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF1F}"
)
_GAP = f"[{_GAPS}]"
_ASCII_WORD = "0-9A-Z_a-z"
_BLANK = r"\s\x1C-\x1F"
_COUNTER = "[40:52]"


def beside(char: str) -> bool:
    """Whether ``char`` is part of a word that its neighbour is in."""
    import unicodedata

    category = unicodedata.category(char)
    return char == "_" or category[0] in "MN" or category in ("Lu", "Ll", "Lt")


def occurrence(word: str) -> re.Pattern[str]:
    """Finds ``word`` in a text; what stands beside it is to be looked at with ``beside``."""
    return re.compile(re.escape(word), re.IGNORECASE)


def contains(text: str, word: str) -> bool:
    """Whether ``word`` is in ``text`` as a whole word, whatever its case."""
    return any(
        not (beside(word[0]) and match.start() and beside(text[match.start() - 1]))
        and not (beside(word[-1]) and match.end() < len(text) and beside(text[match.end()]))
        for match in _overlapping(occurrence(word), text)
    )


def _overlapping(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    match = pattern.search(text)
    while match is not None:
        yield match
        match = pattern.search(text, match.start() + 1)


def lower_words(constraint: Words) -> Lowered:
    """Raises ``UnsupportedConstraint``, naming the word, for what contradicts itself or cannot be enforced."""
    _check(constraint)
    required = [
        word
        for word in dict.fromkeys(constraint.must_include)
        if not contains(constraint.start_with, word)
        and not any(
            other != word and contains(other, word) and not _same(other, word) for other in constraint.must_include
        )
    ]
    required = list({word.lower(): word for word in required}.values())
    text = _one_terminal(constraint) if not required else _Counting(constraint, required).grammar()
    # All of them in a row end any text: what was said already may be said again.
    every = " ".join(required)
    hints = [every, f" {every}", *required, *(f" {word}" for word in required), constraint.start_with]
    return Lowered(lark(text), "must_include", hints=as_hints(hints))


def _same(left: str, right: str) -> bool:
    return left.lower() == right.lower()


def _check(constraint: Words) -> None:
    if len(constraint.must_include) > MAX_REQUIRED:
        message = f"must_include has {len(constraint.must_include)} words; at most {MAX_REQUIRED} can be enforced"
        raise UnsupportedConstraint(message, param="must_include")
    if constraint.max_words is not None and len(constraint.must_include) > MAX_COUNTED:
        message = f"must_include has {len(constraint.must_include)} words; beside max_words at most {MAX_COUNTED}"
        raise UnsupportedConstraint(message, param="must_include")
    if len(constraint.must_include) * len(constraint.must_not_include) > MAX_PAIRS:
        message = f"must_include times must_not_include is more than {MAX_PAIRS} words; leave some out"
        raise UnsupportedConstraint(message, param="must_not_include")
    if any(
        "\ud800" <= c <= "\udfff"
        for c in "".join((*constraint.must_include, *constraint.must_not_include, constraint.start_with))
    ):
        raise UnsupportedConstraint("words cannot hold half of a surrogate pair", param="must_include")
    for bad in constraint.must_not_include:
        if contains(constraint.start_with, bad):
            raise UnsupportedConstraint(f"start_with has {bad!r}, which must_not_include forbids", param="start_with")
        if clash := next((word for word in constraint.must_include if contains(word, bad)), None):
            message = f"must_include wants {clash!r}, which must_not_include forbids with {bad!r}"
            raise UnsupportedConstraint(message, param="must_include")
    if constraint.max_words is not None:
        least = len(constraint.start_with.split())
        if least > constraint.max_words:
            message = f"start_with has {least} words, more than max_words ({constraint.max_words})"
            raise UnsupportedConstraint(message, param="max_words")


def _caseless(text: str) -> str:
    return "".join(
        "[" + "".join(map(literal, same)) + "]" if len(same := variants(c)) > 1 else literal(c) for c in text
    )


def _forbidden(words: Sequence[str], any_char: str = "(?s:.)") -> str:
    """A text that has one of ``words``; empty where there are none."""
    if not words:
        return ""
    options = []
    for word in words:
        before = rf"(?:{any_char}*[^{_ASCII_WORD}])?" if beside(word[0]) else f"{any_char}*"
        behind = rf"(?:[^{_ASCII_WORD}]{any_char}*)?" if beside(word[-1]) else f"{any_char}*"
        options.append(f"{before}{_caseless(word)}{behind}")
    return "(?:" + "|".join(options) + ")"


def _one_terminal(constraint: Words) -> str:
    start, bad = constraint.start_with, _forbidden(constraint.must_not_include)
    free = f"{_GAP}(?s:.*)" if start and beside(start[-1]) else "(?s:.*)"
    parts = [f"/{literal(start)}(?:{free})?/", rf"/(?s:.*)[^{_BLANK}](?s:.*)/"]
    if constraint.max_words is not None:
        word, blank = f"[^{_BLANK}]", f"[{_BLANK}]"
        parts.append(f"/{blank}*{word}+(?:{blank}+{word}+){{0,{constraint.max_words - 1}}}{blank}*/")
    if bad:
        parts.append(f"~/{bad}/")
    return "start: TEXT\nTEXT: " + " & ".join(parts)


class _Counting:
    """The grammar for required words: bits of the parameter for the words, a counter of blanks above them."""

    def __init__(self, constraint: Words, required: Sequence[str]) -> None:
        self._required = required
        self._start = constraint.start_with
        self._limit = None if constraint.max_words is None else constraint.max_words - 1
        self._bad = constraint.must_not_include
        # The counter pays for the blanks inside of required words in advance: each of them is said once as such.
        self._spent = sum(len(re.findall(r"\s", word)) for word in required)
        self._check_spans()
        words = len(self._start.split()) + len(required) - 1
        if self._limit is not None and self._spent + words > self._limit:
            raise UnsupportedConstraint("must_include and start_with have more words than max_words", param="max_words")

    def _check_spans(self) -> None:
        """A forbidden text must not lie across the end of a terminal, where nobody would see it."""
        for bad in self._bad:
            if self._limit is not None and re.search(r"\s", bad):
                message = f"{bad!r} has a blank, and cannot be forbidden beside must_include and max_words"
                raise UnsupportedConstraint(message, param="must_not_include")
            for word in filter(None, (*self._required, self._start)):
                if _across(word.lower(), bad.lower()) or (beside(word[-1]) and _crosses_gap(word.lower(), bad.lower())):
                    message = f"{bad!r} overlaps with {word!r}, and cannot be forbidden beside it"
                    raise UnsupportedConstraint(message, param="must_not_include")

    def grammar(self) -> str:
        full = f"[0:{len(self._required)}]"
        rules = ["start: " + self._opening()]
        options = [f'"" %if is_ones({full})'] if self._limit is not None else [f"TAIL %if is_ones({full})"]
        for index, word in enumerate(self._required):
            options += self._free(index, word, full, rules) if self._limit is None else self._chunk(index, word, rules)
        if self._limit is None:
            rules.append(f"TAIL: /(?s:.*)/{self._without()}")
        else:
            more = f"BLANK txt::incr({_COUNTER}) %if {self._room(1)}"
            options += [f"PLAIN over::_ %if {self._room(0)}", more]
            rules += [f"PLAIN: /[^{_BLANK}]+/{self._without()}", r"BLANK: /[ \n]/"]
            rules.append(f'over::_ : "" %if is_ones({full})\n  | {more}')
        return "\n".join([*rules, "txt::_ : " + "\n  | ".join(options)])

    def _free(self, index: int, word: str, full: str, rules: list[str]) -> list[str]:
        """The text up to ``word`` and the one character that ends it, or up to the end of all."""
        said = (f"(?:(?s:.*){_GAP})?" if beside(word[0]) else "(?s:.*)") + _caseless(word)
        rules.append(f"E{index}: /{said}/{self._without()}")
        rules.append(f"h{index}[lazy]: H{index}")
        rules.append(f"H{index}: /{said}{_GAP if beside(word[-1]) else ''}/{self._without()}")
        missing = f"and(bit_clear({index}), bit_count_eq({full}, {len(self._required) - 1}))"
        return [f"h{index} txt::set_bit({index})", f"E{index} %if or(is_ones({full}), {missing})"]

    def _chunk(self, index: int, word: str, rules: list[str]) -> list[str]:
        """What stands between two blanks and has ``word`` in it."""
        gap, chars = f"[{_GAPS}]", f"[^{_BLANK}]*"
        gap = rf"[{_GAPS.replace(_ASCII_BLANKS, '')}]"
        before = f"(?:{chars}{gap})?" if beside(word[0]) else chars
        if beside(word[-1]):
            rules.append(f"C{index}: /{before}{_caseless(word)}(?:{gap}{chars})?/{self._without()}")
            return [f"C{index} over::set_bit({index}) %if bit_clear({index})"]
        rules += [f"h{index}[lazy]: H{index}", f"H{index}: /{before}{_caseless(word)}/{self._without()}"]
        return [f"h{index} txt::set_bit({index}) %if bit_clear({index})"]

    def _room(self, least: int) -> str:
        """That a blank is left for every word that is still missing, and ``least`` of them at any rate.

        Without it the text could go where no end is.
        """
        assert self._limit is not None
        count = len(self._required)
        cases = [
            f"and(bit_count_eq([0:{count}], {count - missing}), le({_COUNTER}, {left}))"
            for missing in range(count + 1)
            if (left := self._limit - max(missing, least)) >= 0
        ]
        return _either(cases) if cases else "not(true)"

    def _without(self) -> str:
        bad = _forbidden(self._bad)
        return f" & ~/{bad}/" if bad else ""

    def _opening(self) -> str:
        start = self._start
        words = len(start.split())
        spent = self._spent + (words if not start or start[-1].isspace() else words - 1)
        first = f"txt::{hex(spent << 40)}"
        if not start or not beside(start[-1]):
            return f"{quoted(start)} {first}" if start else first
        # What follows must not make the last word longer.
        if self._limit is None:
            return f"{quoted(start)} /{_GAP}/ {first}"
        more = (
            f" | {quoted(start)} BLANK txt::{hex((spent + 1) << 40)}"
            if spent + len(self._required) <= self._limit
            else ""
        )
        return f"{quoted(start)} /[{_GAPS.replace(_ASCII_BLANKS, '')}]/ {first}{more}"


def _either(conditions: Sequence[str]) -> str:
    """One of ``conditions``; balanced, because llguidance limits how deep they go."""
    if len(conditions) == 1:
        return conditions[0]
    half = len(conditions) // 2
    return f"or({_either(conditions[:half])}, {_either(conditions[half:])})"


def _across(word: str, bad: str) -> bool:
    """Whether ``bad`` can begin inside ``word`` and go on behind it."""
    return any(bad.startswith(word[at:]) and len(bad) > len(word) - at for at in range(len(word))) or (
        word != "" and word in bad
    )


def _crosses_gap(word: str, bad: str) -> bool:
    """The same with the one character behind ``word`` that its terminal takes."""
    return any(not beside(char) and _across(word + char, bad) for char in set(bad))
