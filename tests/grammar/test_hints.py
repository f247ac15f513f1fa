"""Guesses at what a constraint wants: right on plain patterns, harmless and quick on any."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmserve.grammar.hints import hints_of, pattern_examples
from mmserve.grammar.spec import (
    AnyJson,
    Choice,
    Grammar,
    JsonSchema,
    Regex,
    StructuralTag,
    Tag,
    Words,
    XmlSchema,
)


@pytest.mark.parametrize(
    "pattern",
    [
        "abc",
        "[a-z]*foo",
        r".*\.json$",
        r"\d{4}-\d{2}-\d{2}",
        r"^[\w.-]+/[\w.-]+$",
        "(ab|cd)+x{2,5}",
        "(?:a|bc)(?P<name>d?)e",
        r"[^a-z1 ]{3}",
        r"[]x]+[^]]",
        r"\x41B\t",
        r"a??b*?c+?",
        r"[\d]{3}[\-+]",
        r"(?i:yes)|no",
        r"(?=a)ab",
        r"[一-龥]{2}",
    ],
)
def test_examples_match_their_pattern(pattern: str) -> None:
    examples = pattern_examples(pattern)
    assert examples
    for example in examples:
        assert re.search(pattern, example), example


def test_every_alternative_has_an_example() -> None:
    assert pattern_examples("red|green|(blue|navy)+|") == ["red", "green", "blue"]


@pytest.mark.parametrize("pattern", ["(" * 5000, "(a" * 100 + ")" * 100, "a" * 20_000])
def test_no_examples_of_monsters(pattern: str) -> None:
    assert pattern_examples(pattern) == []


def test_examples_are_not_endless() -> None:
    assert all(len(text) <= 1024 for text in pattern_examples("(a{500}){500}"))


@given(st.text(alphabet="ab(|)[]{}?*+\\^$.,-12:=!<dwx", max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_to_its_end(pattern: str) -> None:
    for example in pattern_examples(pattern):
        assert isinstance(example, str)


def test_patterns_of_a_schema_as_json_spells_them() -> None:
    schema = {
        "properties": {"pattern": {"type": "string", "pattern": r"^.*\\\"x$"}, "b": {"items": [{"pattern": "é+"}]}},
        "patternProperties": {r"^k\d$": {}},
    }
    assert set(hints_of(JsonSchema.of(schema))) == {json.dumps('\\"x')[1:-1].encode(), "é".encode(), b"k1"}


def test_hints_of_the_other_constraints() -> None:
    assert hints_of(Regex("[a-z]*foo|bar")) == (b"foo", b"bar")
    assert hints_of(Words(must_include=("red", "猫"), start_with="A ")) == (b"A ", b"red", "猫".encode())
    assert hints_of(Grammar('start: "if\\n" /x{3}/ "\\q"')) == (b"if\n", b"xxx", rb"\q")
    assert hints_of(XmlSchema.of({"pattern": "[0-9]{3}"})) in ((b"111",), (b"000",))
    tags = (Tag("<a>", Regex("v1"), "</a>"), Tag("<b>", None, "</b>"))
    assert hints_of(StructuralTag(tags, ("<",))) == (b"<a>", b"<b>", b"v1")
    assert hints_of(Choice(("x", "y"))) == hints_of(AnyJson()) == ()


def test_no_more_hints_than_are_of_use() -> None:
    words = {f"k{i}": {"type": "string", "pattern": f"word{i}"} for i in range(500)}
    assert len(hints_of(JsonSchema.of({"properties": words}))) == 64
