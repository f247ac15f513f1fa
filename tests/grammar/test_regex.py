"""Python's regular expressions: what is translated matches no more than ``re`` does, what is not is named."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from mmserve.errors import InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.lowered import lark
from mmserve.grammar.regex import literal, translate, variants
from mmserve.grammar.spec import Regex
from tests.grammar.conftest import Bench
from tests.grammar.support import generate

PATTERNS = [
    (r"a+?b*", ["aab", "a"], ["b", ""]),
    (r"^\d{3}-\w+$", ["123-中文_é9", "000-a"], ["12-a", "123-", "123-a\n"]),
    (r"(?i)chat[^x-z]", ["CHATa", "chAt1"], ["chatX", "chatY"]),
    (r"(?i:ß|ks)", ["ks", "Ks", "kſ", "ß"], ["k"]),
    (r"[^\w\s]+", ["!?", "，"], ["é", " ", "a"]),
    (r"(^a|b)c?$", ["a", "b", "bc"], ["c"]),
    (r"a.c", ["abc", "a中c", "a\rc"], ["a\nc"]),
    (r"(?s)a.c", ["a\nc"], ["ac"]),
    (r"[/\\\]\[-]+", ["/\\][-"], ["a"]),
    (r"(?x) a b # c", ["ab"], ["a b"]),
    (r"(?P<year>\d{4})(?:-(?P<month>\d\d))?", ["2024", "2024-05"], ["2024-5"]),
    ("是|否|不知道", ["是", "不知道"], ["不"]),
    ("[一-龥]{2}😀{2,}", ["猫狗😀😀"], ["猫😀😀"]),
    ("(?:)", [""], ["a"]),
    (r"\Aab\Z", ["ab"], ["ab\n"]),
    (r"\x41\u4e2d\U0001F600\t\.", ["A中😀\t."], ["A"]),
]


@pytest.mark.parametrize(("pattern", "right", "wrong"), PATTERNS, ids=[p for p, _, _ in PATTERNS])
def test_texts(bench: Bench, pattern: str, right: Sequence[str], wrong: Sequence[str]) -> None:
    for text in right:
        assert re.fullmatch(pattern, text)
        assert bench.accepts(Regex(pattern), text), text
    for text in wrong:
        assert not bench.accepts(Regex(pattern), text), text


@pytest.mark.parametrize(
    "pattern", [p for p, _, _ in PATTERNS] + [r"\W\S\D.", r"[\W]{3}[^\d]{2}", r"\w+@\w+\.(com|org)"]
)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_generated_matches(bench: Bench, pattern: str, seed: int) -> None:
    text = generate(bench.compile(Regex(pattern)), bench.vocabulary, seed)
    assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"\bfoo", r"\\b"),
        (r"(?=a)a", "a lookaround"),
        (r"(?<!a)b", "a negative lookaround"),
        (r"(a)\1", "a backreference"),
        (r"a++", "a possessive"),
        (r"(?>a)b", "an atomic"),
        (r"(a)?(?(1)b|c)", "a conditional"),
        (r"a^b", r"the anchor \^"),
        (r"(a$)+", r"the anchor \$"),
        (r"(a{1000}){1000}", "1000000 characters"),
        (r"(a{0,70000})", "70000 characters"),
        ("a{600}", "600 characters at least"),
        ("(" * 3000 + ")" * 3000, "nested"),
        ("a" * 30_000, "30000 characters"),
    ],
)
def test_what_a_dfa_cannot_do_is_named(pattern: str, words: str) -> None:
    with pytest.raises(UnsupportedConstraint, match=words) as caught:
        translate(pattern)
    assert caught.value.param == "regex"


@pytest.mark.parametrize("pattern", ["(", "[z-a]", r"\p{L}", "a**", "(?L)a", "\ud800"])
def test_what_python_cannot_read_is_invalid(pattern: str) -> None:
    with pytest.raises(InvalidConstraint):
        translate(pattern)


@pytest.mark.parametrize(
    "name", [r"\w", r"\d", r"\s", r"\W", r"\D", r"\S", r"[^\w]", r"[^\W]", ".", r"(?i)[^k-s]", "(?i)[à-ï]"]
)
def test_every_character_of_a_class_is_one_of_pythons(bench: Bench, name: str) -> None:
    """All characters of the basic plane at once: a mask cannot, so the grammar is asked character by character."""
    tokenizer = bench.vocabulary.tokenizer
    matcher = LLMatcher(tokenizer, lark(f"start: TEXT\nTEXT: /(?:{translate(name).regex})/"), log_level=0)
    python = re.compile(name)
    taken = 0
    for code in [*range(0x3400), *range(0xA000, 0xD800, 7), *range(0xE000, 0x10400)]:
        char = chr(code)
        tokens = bench.vocabulary.tokenize(char.encode())
        if matcher.validate_tokens(tokens) == len(tokens):
            taken += 1
            assert python.fullmatch(char), hex(code)
    assert taken >= 6


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
def test_a_literal_is_itself(bench: Bench, text: str) -> None:
    # The tokenizer composes characters, so only such texts reach the grammar as they are.
    text = unicodedata.normalize("NFC", text)
    pattern = re.escape(text)
    assert bench.accepts(Regex(pattern), text) if pattern else True
    assert literal(text).isascii()


def test_variants_are_those_of_ignorecase() -> None:
    for char in map(chr, [*range(0x20, 0x250), 0x212A, 0x17F]):
        for other in variants(char):
            assert re.fullmatch(re.escape(char), other, re.IGNORECASE)
    assert set(variants("k")) == {"k", "K", "\u212a"}
