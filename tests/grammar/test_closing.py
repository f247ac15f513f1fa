"""Completions validate, parse and fit, from the start of a grammar and from wherever random tokens lead."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

import mmserve
from mmserve.grammar.closing import Closer, find_completion
from mmserve.grammar.hints import hints_of, pattern_examples
from mmserve.grammar.spec import JsonSchema
from mmserve.grammar.vocabulary import Vocabulary

CHECKPOINT = Path(mmserve.__file__).parent / "assets" / "pocket-vl"
OPTIONS = {"whitespace_flexible": False, "json_allow_general_unicode_escapes": True}
BUDGET = 2000


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    eos_ids = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    return Vocabulary(CHECKPOINT, size=2048, eos_ids=eos_ids)


@pytest.fixture(scope="module")
def closer(vocabulary: Vocabulary) -> Closer:
    return Closer(vocabulary)


def from_schema(vocabulary: Vocabulary, schema: dict[str, Any]) -> LLMatcher:
    return compiled(vocabulary, LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=OPTIONS))  # type: ignore[arg-type]


def from_regex(vocabulary: Vocabulary, pattern: str) -> LLMatcher:
    return compiled(vocabulary, LLMatcher.grammar_from_regex(pattern))


def from_lark(vocabulary: Vocabulary, text: str) -> LLMatcher:
    return compiled(vocabulary, LLMatcher.grammar_from_lark(text))


def compiled(vocabulary: Vocabulary, grammar: str) -> LLMatcher:
    matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def record(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT = {"type": "string"}
WHOLE = {"type": "integer"}
REF = {"$ref": "#/$defs/n"}


def length(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


TREE = {"$defs": {"n": record({"children": {"type": "array", "items": REF}, "leaf": TEXT}, "leaf")}, **REF}
EITHER = {"$defs": {"n": {"anyOf": [record({"child": REF}, "child"), record({"leaf": TEXT}, "leaf")]}}, **REF}
ENDLESS = {"$defs": {"n": record({"child": REF}, "child")}, **REF}

SHORTEST: list[tuple[dict[str, Any], str]] = [
    ({"type": "integer"}, "1"),
    ({"type": "string"}, '""'),
    ({"type": "null"}, "null"),
    ({"type": "array", "items": TEXT}, "[]"),
    ({"type": "array", "items": {"type": "number"}, "minItems": 3}, "[1,1,1]"),
    ({"type": "array", "items": {"type": "object"}, "minItems": 2}, "[{},{}]"),
    ({"enum": ["pending", "ok", "zzz"]}, '"ok"'),
    ({"enum": ["pending", None, 12345, True]}, "null"),
    (record({"a": TEXT, "b": WHOLE}), "{}"),
    (record({"a": TEXT, "b": WHOLE}, "b"), '{"b":1}'),
    (record({"a": TEXT, "b": WHOLE, "c": {"type": "boolean"}}, "a", "c"), '{"a":"","c":true}'),
    (record({"a": record({"b": record({"c": TEXT}, "c")}, "b")}, "a"), '{"a":{"b":{"c":""}}}'),
    (record({"x": {"type": "string", "minLength": 5}}, "x"), '{"x":"aaaaa"}'),
    (record({"x": {"type": "string", "enum": ["circle", "dot"]}, "y": WHOLE}, "x"), '{"x":"dot"}'),
    (record({"m": {"type": "integer", "minimum": 5, "multipleOf": 7}}, "m"), '{"m":7}'),
    (record({"m": {"type": "integer", "minimum": 1000}}, "m"), '{"m":1111}'),
    (record({"p": length(r"^[a-z]{3}-[0-9]{2}$")}, "p"), '{"p":"aaa-11"}'),
    (
        {"anyOf": [record({"kind": {"const": "circle"}, "r": WHOLE}, "kind", "r"), record({"t": TEXT}, "t")]},
        '{"t":""}',
    ),
    (TREE, '{"leaf":""}'),
    (EITHER, '{"leaf":""}'),
    ({}, "1"),
]
"""Schemas with a shortest instance of each."""

SCHEMAS: list[dict[str, Any]] = [
    *[schema for schema, _ in SHORTEST],
    record(
        {
            "id": {"type": "string", "format": "uuid"},
            "on": {"type": "string", "format": "date"},
            "at": {"type": "string", "format": "date-time"},
            "mail": {"type": "string", "format": "email"},
        },
        "id",
        "on",
        "at",
    ),
    record({"x": {"type": "string", "minLength": 200}}, "x"),
    record({"x": {"type": "string", "minLength": 3, "maxLength": 8}, "y": length(r"^\d{40}$")}, "x", "y"),
    record({"x": {"type": "array", "items": record({"k": TEXT, "z": WHOLE}, "k", "z"), "minItems": 30}}, "x"),
    record({"x": {"type": "array", "items": {"enum": ["a", "bb"]}, "minItems": 2, "maxItems": 4}}, "x"),
    record({"n": {"type": "number", "minimum": -2.5, "maximum": 7.25}}, "n"),
    record({"n": {"type": "integer", "minimum": 100, "maximum": 900, "multipleOf": 37}}, "n"),
    record({"file": length(r"^.*\.json$"), "word": length(r"^[a-z]*foo$")}, "file", "word"),
    record({"stamp": length(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}Z")}, "stamp"),
    record({"slug": length(r"^[a-z]+(?:-+[a-z]+)*-v\d+$"), "path": length(r"^[\w.-]+/[\w.-]+$")}, "slug", "path"),
    record({"a": {"anyOf": [{"type": "null"}, TEXT, record({"q": WHOLE}, "q")]}}, "a"),
    {"type": "object", "additionalProperties": WHOLE},
    {"type": "object", "properties": {"k": TEXT}, "required": ["k", "other"]},
    {"type": "array", "prefixItems": [TEXT, WHOLE, {"type": "boolean"}], "items": False, "minItems": 3},
    record(
        {"城市": {"enum": ["北京", "上海"]}, "心情": {"enum": ["😀", "🙁🙁"]}, "说明": TEXT}, "城市", "心情", "说明"
    ),
]

PATTERNS = [
    r"[0-9]{40}",
    r"[0-9]{3}-[A-F]{2}",
    r"(ab|cd)*xyz",
    r"(a|b)*abb(a|b){5}",
    r"(red|green|blue|greenish|redwood)",
    r"(yes|no|maybe)(, (yes|no|maybe))*\.",
    r"(苹果|香蕉|葡萄酒|苹果树)",
    r"😀+好|[一-龥]{3}。",
    r"[a-z]+@[a-z]+\.(com|org)",
    r"[^a-z]{4,9}x",
    r"(\([0-9]{3}\) )?[0-9]{3}-[0-9]{4}",
]

LARKS = [
    'start: expr\nexpr: "(" expr ")" | expr "+" expr | /[0-9]+/',
    'start: item\nitem: "<a>" item "</a>" | "<bb>" /[^<]*/ "</bb>"',
    'start: "<note>" to* body "</note>"\nto: "<to>" /[^<]{2,}/ "</to>"\nbody: "<body>" /[^<]*/ "</body>"',
    "start: T\nT: /(a|b)*/ & /.*abab.*/ & ~/.*aa.*/ & /.{7}/",
    'start: "if " name " then " block\nblock: name ";" | "{" block+ "}"\nname: /[a-z]+/',
    'start: "<|im_end|>" "x" | "<|im_end|>!"',
]


def allowed_ids(matcher: LLMatcher) -> list[int]:
    mask = matcher.compute_bitmask()
    return [8 * place + bit for place, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1]


def walk(matcher: LLMatcher, vocabulary: Vocabulary, steps: int, random_: random.Random) -> tuple[LLMatcher, list[int]]:
    """A copy after ``steps`` random tokens, or fewer where the text ends before."""
    copy, taken = matcher.deep_copy(), []
    for _ in range(steps):
        ids = [id_ for id_ in allowed_ids(copy) if id_ not in vocabulary.eos_ids]
        if not ids:
            break
        taken.append(random_.choice(ids))
        assert copy.consume_token(taken[-1])
    return copy, taken


def closes(matcher: LLMatcher, vocabulary: Vocabulary, tokens: list[int]) -> bool:
    """Whether ``tokens`` end the text, by validation and by a copy that goes there."""
    copy = matcher.deep_copy()
    if not (matcher.is_stopped() and not tokens):
        assert matcher.validate_tokens([*tokens, vocabulary.eos_id]) == len(tokens) + 1
    return bool(copy.consume_tokens(tokens)) and not copy.is_error() and bool(copy.is_accepting() or copy.is_stopped())


def check_from_everywhere(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    closer: Closer,
    judge: Callable[[bytes], object],
    hints: tuple[bytes, ...] = (),
) -> None:
    """From the start and after random tokens there is a completion that closes, fits and satisfies ``judge``."""
    random_ = random.Random(7)
    for steps in (0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 30, 45, 70):
        state, taken = walk(matcher, vocabulary, steps, random_)
        tokens = closer.find(state, hints=hints, budget=BUDGET, shorten=steps % 2 == 0)
        so_far = vocabulary.bytes_of(taken)
        assert tokens is not None, so_far
        assert len(tokens) <= BUDGET
        assert not any(vocabulary.tokenizer.is_special_token(id_) for id_ in tokens)
        assert closes(state, vocabulary, tokens), so_far
        judge(vocabulary.bytes_of(taken + tokens))


@pytest.mark.parametrize(("schema", "shortest"), SHORTEST, ids=lambda value: json.dumps(value)[:60])
def test_completes_a_schema_in_the_fewest_tokens(
    schema: dict[str, Any], shortest: str, vocabulary: Vocabulary, closer: Closer
) -> None:
    tokens = closer.find(from_schema(vocabulary, schema), budget=BUDGET)
    assert tokens is not None
    jsonschema.validate(json.loads(vocabulary.bytes_of(tokens)), schema)
    assert len(tokens) <= len(vocabulary.tokenize(shortest.encode())), vocabulary.bytes_of(tokens)


@pytest.mark.parametrize(
    ("pattern", "shortest"),
    [
        ("(ab|cd)*xyz", "xyz"),
        ("[0-9]{40}", "1" * 40),
        ("(a|b)*abb(a|b){5}", "abbaaaaa"),
        ("(red|green|blue)", "red"),
        ("(苹果派|香蕉)", "香蕉"),
    ],
)
def test_completes_a_regex_in_the_fewest_tokens(
    pattern: str, shortest: str, vocabulary: Vocabulary, closer: Closer
) -> None:
    tokens = closer.find(from_regex(vocabulary, pattern), budget=BUDGET)
    assert tokens is not None
    assert re.fullmatch(pattern, vocabulary.bytes_of(tokens).decode())
    assert len(tokens) <= len(vocabulary.tokenize(shortest.encode())), vocabulary.bytes_of(tokens)


def test_takes_the_other_way_where_the_first_one_needs_more(vocabulary: Vocabulary, closer: Closer) -> None:
    tokens = closer.find(from_lark(vocabulary, LARKS[1]), budget=BUDGET)
    assert tokens is not None
    assert vocabulary.bytes_of(tokens) == b"<bb></bb>"


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda value: json.dumps(value)[:60])
def test_closes_a_schema_from_every_state(schema: dict[str, Any], vocabulary: Vocabulary, closer: Closer) -> None:
    def judge(text: bytes) -> None:
        jsonschema.validate(json.loads(text), schema)

    hints = hints_of(JsonSchema.of(schema))
    check_from_everywhere(from_schema(vocabulary, schema), vocabulary, closer, judge, hints)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_closes_a_regex_from_every_state(pattern: str, vocabulary: Vocabulary, closer: Closer) -> None:
    def judge(text: bytes) -> None:
        assert re.fullmatch(pattern, text.decode(), re.DOTALL), text

    check_from_everywhere(from_regex(vocabulary, pattern), vocabulary, closer, judge)


@pytest.mark.parametrize(
    "pattern", ["[a-z]*foo", r"(.|\n)*<[0-9]{4}>(.|\n)*", "[0-9]*7777x", r"[a-z ]* red [a-z ]* blue"]
)
def test_closes_a_regex_with_a_literal_after_anything(pattern: str, vocabulary: Vocabulary, closer: Closer) -> None:
    def judge(text: bytes) -> None:
        assert re.fullmatch(pattern, text.decode(), re.DOTALL), text

    hints = tuple(text.encode() for text in pattern_examples(pattern))
    check_from_everywhere(from_regex(vocabulary, pattern), vocabulary, closer, judge, hints)


@pytest.mark.parametrize("grammar", LARKS)
def test_closes_a_grammar_from_every_state(grammar: str, vocabulary: Vocabulary, closer: Closer) -> None:
    check_from_everywhere(from_lark(vocabulary, grammar), vocabulary, closer, bytes.decode)


def test_words_that_must_occur_come_from_hints(vocabulary: Vocabulary, closer: Closer) -> None:
    matcher = from_lark(vocabulary, "start: T\nT: /(.|\\n)*/ & /(.|\\n)*sunset(.|\\n)*/ & /(.|\\n)*harbour(.|\\n)*/")
    state, taken = walk(matcher, vocabulary, 12, random.Random(3))
    tokens = closer.find(state, hints=(b"sunset", b"harbour"), budget=BUDGET)
    assert tokens is not None
    assert vocabulary.bytes_of(tokens).replace(b" ", b"") in (b"sunsetharbour", b"harboursunset")
    assert closes(state, vocabulary, tokens)
    assert taken


def test_a_held_completion_is_rejoined(vocabulary: Vocabulary, closer: Closer) -> None:
    matcher = from_schema(
        vocabulary, record({"list": {"type": "array", "items": TEXT}, "key": length("^[a-z]*qqv$")}, "key")
    )
    assert matcher.consume_tokens(vocabulary.tokenize(b'{"list":["'))
    tokens = closer.find(matcher, hints=(b'"],"key":"qqv"}',), budget=BUDGET, shorten=False)
    assert tokens is not None
    assert vocabulary.bytes_of(tokens) == b'"],"key":"qqv"}'


@pytest.mark.parametrize("schema", [record({"a": TEXT, "b": WHOLE}, "a", "b"), TREE, {"enum": ["pending", "okay"]}])
def test_no_completion_where_the_budget_is_too_small(
    schema: dict[str, Any], vocabulary: Vocabulary, closer: Closer
) -> None:
    matcher = from_schema(vocabulary, schema)
    tokens = closer.find(matcher, budget=BUDGET)
    assert tokens is not None
    for budget in range(-1, len(tokens)):
        assert closer.find(matcher, budget=budget) is None
    assert closer.find(matcher, budget=len(tokens)) == tokens
    hurried = closer.find(matcher, budget=len(tokens), shorten=False)
    assert hurried is not None
    assert len(hurried) <= len(tokens)


def test_nothing_is_needed_where_the_text_may_end(vocabulary: Vocabulary, closer: Closer) -> None:
    matcher = from_regex(vocabulary, "a*")
    assert closer.find(matcher, budget=0) == []
    stopped = from_regex(vocabulary, "a")
    stopped.consume_tokens(vocabulary.tokenize(b"a"))
    assert closer.find(stopped, budget=0) == []


def test_no_completion_of_a_broken_matcher(vocabulary: Vocabulary, closer: Closer) -> None:
    matcher = from_regex(vocabulary, "a+")
    matcher.consume_token(vocabulary.tokenize(b"b")[0])
    assert matcher.is_error()
    assert closer.find(matcher, budget=BUDGET) is None


@pytest.mark.parametrize("schema", SCHEMAS[-4:], ids=lambda value: json.dumps(value)[:60])
def test_leaves_the_matcher_and_repeats_itself(schema: dict[str, Any], vocabulary: Vocabulary) -> None:
    state, _ = walk(from_schema(vocabulary, schema), vocabulary, 9, random.Random(1))
    before = (state.compute_bitmask(), state.compute_ff_bytes(), state.is_accepting(), state.is_stopped())
    first = find_completion(state, vocabulary, budget=BUDGET)
    assert before == (state.compute_bitmask(), state.compute_ff_bytes(), state.is_accepting(), state.is_stopped())
    assert find_completion(state, vocabulary, budget=BUDGET) == first
    assert first is not None
    assert state.is_stopped() or state.consume_tokens([*first, vocabulary.eos_id])


def test_text_that_spells_a_special_token_stays_text(vocabulary: Vocabulary, closer: Closer) -> None:
    tokens = closer.find(from_regex(vocabulary, r"<\|im_end\|>ok"), budget=BUDGET)
    assert tokens is not None
    assert vocabulary.bytes_of(tokens) == b"<|im_end|>ok"
    assert not any(vocabulary.tokenizer.is_special_token(id_) for id_ in tokens)


def test_a_special_token_that_the_grammar_wants_is_taken(vocabulary: Vocabulary, closer: Closer) -> None:
    matcher = from_lark(vocabulary, 'start: "at " <|box_start|> "(" /[0-9]+/ ")"')
    tokens = closer.find(matcher, budget=BUDGET)
    assert tokens is not None
    assert closes(matcher, vocabulary, tokens)
    assert [vocabulary.tokenizer.is_special_token(id_) for id_ in tokens].count(True) == 1


def test_recursion_that_never_ends_has_no_completion(vocabulary: Vocabulary, closer: Closer) -> None:
    assert closer.find(from_schema(vocabulary, ENDLESS), budget=BUDGET) is None


@pytest.mark.parametrize(
    ("schema", "least"),
    [(record({"x": {"type": "string", "minLength": 5000}}, "x"), 1000), (length("^[ab]{3000}$"), 500)],
)
def test_very_long_texts_are_closed(schema: dict[str, Any], least: int, vocabulary: Vocabulary, closer: Closer) -> None:
    matcher = from_schema(vocabulary, schema)
    tokens = closer.find(matcher, budget=8192)
    assert tokens is not None
    assert len(tokens) >= least
    jsonschema.validate(json.loads(vocabulary.bytes_of(tokens)), schema)
    assert closer.find(matcher, budget=least - 1) is None


class FewBytes(Vocabulary):
    """A vocabulary in which the letters of "rd" stand only within longer tokens."""

    def tokenize(self, data: bytes) -> list[int]:
        ids = super().tokenize(data)
        return [] if data in (b"r", b"d") else ids


def test_a_vocabulary_without_some_bytes_uses_longer_tokens() -> None:
    eos_ids = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    vocabulary = FewBytes(CHECKPOINT, size=2048, eos_ids=eos_ids)
    matcher = from_regex(vocabulary, "(red|rd)!")
    tokens = find_completion(matcher, vocabulary, budget=BUDGET)
    assert tokens is not None
    assert closes(matcher, vocabulary, tokens)
