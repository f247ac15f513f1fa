"""Choices, XML, structural tags and words: what is accepted, what is generated, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mmserve.errors import InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.judge import judge
from mmserve.grammar.spec import (
    AnyJson,
    Choice,
    Constraint,
    Grammar,
    JsonSchema,
    Regex,
    StructuralTag,
    Tag,
    Words,
    XmlSchema,
)
from mmserve.grammar.words import _GAPS, beside
from tests.grammar.conftest import Bench
from tests.grammar.support import accepts, generate

PICTURE = {
    "element": "picture",
    "attributes": {"lang": {"enum": ["en", "中"]}, "id": {"type": "integer", "required": False}},
    "children": [
        {"element": "caption", "text": {"type": "string", "min_length": 1, "max_length": 12}},
        {
            "element": "object",
            "min": 0,
            "max": None,
            "children": [{"element": "name", "text": {"pattern": "[a-z&]+"}}, {"element": "count", "text": "integer"}],
        },
        {"choice": [{"element": "indoor"}, {"element": "户外", "text": {"enum": ["day", "a<b"]}}], "max": 2},
    ],
}
OBJECT = JsonSchema.of(
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
)
CALLS = StructuralTag(
    (
        Tag("<f>", OBJECT, "</f>"),
        Tag("<f2>", Regex("[0-9]+"), "</f2>"),
        Tag("<<", None, ">>"),
        Tag("@c", Choice(("x", "xy")), ";"),
        Tag("<!", XmlSchema.of({"element": "a"}), ""),
        Tag("<g>", AnyJson(), "</g>"),
    ),
    ("<f", "<<", "@", "<!", "<g>"),
)

CASES: list[tuple[Constraint, list[str], list[str]]] = [
    (
        Choice(("是", "否", "不\n知道", "a", "ab", "😀", '"\\x', "<|im_end|>")),
        ["是", "不\n知道", "a", "ab", "😀", '"\\x', "<|im_end|>"],
        ["不", "abc", ""],
    ),
    (
        XmlSchema.of(PICTURE),
        [
            '<picture lang="en"><caption>a &amp; "b</caption><indoor/></picture>'.replace('"b', "&quot;b"),
            '<picture lang="中" id="3"><caption>猫</caption><object><name>ab</name><count>-3</count></object>'
            "<户外>a&lt;b</户外><indoor/></picture>",
        ],
        [
            '<picture lang="en"><caption>a & b</caption><indoor/></picture>',
            '<picture lang="fr"><caption>a</caption><indoor/></picture>',
            '<picture lang="en"><caption></caption><indoor/></picture>',
            '<picture lang="en"><caption>a</caption></picture>',
            '<picture lang="en"><caption>a</caption><indoor/><indoor/><indoor/></picture>',
            '<picture lang="en"> <caption>a</caption><indoor/></picture>',
            '<picture lang="en"><caption><![CDATA[a]]></caption><indoor/></picture>',
            '<?xml version="1.0"?><picture lang="en"><caption>a</caption><indoor/></picture>',
        ],
    ),
    (
        CALLS,
        ["", "hi", "a < b", 'x <f>{"a":1}</f> y', "<f2>12</f2><f2>3</f2>", "<<any <f> text>>", "@cxy;@cx;", "<!<a/>",
         'a<<<b>><g>{"x":[]}</g>'],
        ["<f", "<f>", "<f>1</f>", '<f>{"a":1}</f', "@", "@cz;", "x <f3>", "<< <f>"],
    ),
    (
        StructuralTag((Tag("<f>", AnyJson(), "</f>"),), ("<f>",), at_least_one=True, stop_after_first=True),
        ["<f>{}</f>", "hi <f>{}</f>"],
        ["hi", "<f>{}</f>x", ""],
    ),
    (
        StructuralTag((Tag("<f>", AnyJson(), "</f>"),), ("<f>",), at_least_one=True),
        ["<f>{}</f>x<f>{}</f>"],
        ["hi", ""],
    ),
    (
        StructuralTag((Tag("<f>", AnyJson(), "</f>"),), ("<f>",), stop_after_first=True),
        ["hi", "a<f>{}</f>"],
        ["<f>{}</f>x"],
    ),
    (
        StructuralTag((Tag("<f>", OBJECT, "</f>"), Tag("<g>", Regex("[0-9]+"), "</g>")), ("<",), bare=True),
        ['<f>{"a":1}</f>', "<g>12</g>", '<g>1</g>\n<f>{"a":2}</f>\n<g>3</g>'],
        ["", "hi", 'hi <f>{"a":1}</f>', '<f>{"a":1}</f>\n', '<f>{"a":1}</f><g>1</g>', "<f>{}</f>", "<g>1</g> x"],
    ),
    (
        StructuralTag((Tag("<f>", OBJECT, "</f>"),), ("<",), stop_after_first=True, bare=True),
        ['<f>{"a":1}</f>'],
        ['<f>{"a":1}</f>\n<f>{"a":1}</f>', ""],
    ),
    (
        StructuralTag((Tag("<f>", OBJECT, "</f>"),), ("<",), bare=True, instead=Choice(("yes", "<no>"))),
        ['<f>{"a":1}</f>', '<f>{"a":1}</f>\n<f>{"a":2}</f>', "yes", "<no>"],
        ["", "y", '<f>{"a":1}</f>\nyes', "yesyes"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "right", "wrong"), CASES)
def test_texts(bench: Bench, constraint: Constraint, right: Sequence[str], wrong: Sequence[str]) -> None:
    grammar = bench.compile(constraint)
    for text in right:
        assert accepts(grammar, bench.vocabulary, text), text
        assert judge(constraint, text) is True, text
    for text in wrong:
        assert not accepts(grammar, bench.vocabulary, text), text
        assert judge(constraint, text) is False, text


@pytest.mark.parametrize("constraint", [constraint for constraint, _, _ in CASES])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_generated_is_right(bench: Bench, constraint: Constraint, seed: int) -> None:
    text = generate(bench.compile(constraint), bench.vocabulary, seed)
    assert judge(constraint, text) is True, text


def words() -> list[tuple[Words, list[str], list[str]]]:
    return [
        (
            Words(must_include=("cat", "dog")),
            ["a cat and a dog", "Dog, CAT", "cats dog cat", "一只cat和dog"],
            ["a cat", "catdog", "cat dogs", ""],
        ),
        (Words(must_include=("猫", "狗", "cat")), ["一只猫和一只狗cat", "cat 狗猫"], ["猫狗", "猫狗cats"]),
        (
            Words(must_include=("cat", "red circle"), max_words=6, start_with="A photo of"),
            ["A photo of red circle, cat", "A photo of cat red circle"],
            ["A photo of a red circle and cat", "A photo of cat", "A photo", "a photo of red circle cat"],
        ),
        (
            Words(must_include=("cat",), must_not_include=("dog", "bad word"), start_with="The "),
            ["The cat", "The cat bad words", "The dogs cat"],
            ["The dog cat", "The cat bad word", "The cat Dog.", "cat"],
        ),
        (
            Words(must_not_include=("dog", "狗"), max_words=3),
            ["a b c", "dogs", " a"],
            ["a b c d", "a Dog", "a狗b", " "],
        ),
        (Words(start_with="A cat"), ["A cat", "A cat sits"], ["A cats", "a cat", "A ca"]),
        (Words(max_words=1), ["a", "一只猫"], ["a b", "", "\n"]),
        (Words(must_include=("red", "red circle")), ["a red circle"], ["a red", "circle"]),
    ]


@pytest.mark.parametrize("index", range(8))
def test_words(bench: Bench, index: int) -> None:
    constraint, right, wrong = words()[index]
    grammar = bench.compile(constraint)
    for text in right:
        assert accepts(grammar, bench.vocabulary, text), text
        assert judge(constraint, text) is True, text
    for text in wrong:
        assert not accepts(grammar, bench.vocabulary, text), text
    for seed in range(6):
        text = generate(grammar, bench.vocabulary, seed)
        assert judge(constraint, text) is True, text


def test_words_that_contradict_are_refused_by_name(bench: Bench) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"must_include": ("cat",), "must_not_include": ("CAT",)}, "'cat'"),
        ({"start_with": "A dog ", "must_not_include": ("dog",)}, "'dog'"),
        ({"start_with": "one two three", "max_words": 2}, "max_words"),
        ({"must_include": tuple(f"w{i}" for i in range(30))}, "at most 20"),
        ({"must_include": tuple(f"w{i}" for i in range(9)), "max_words": 30}, "at most 6"),
        ({"must_include": ("猫",), "must_not_include": ("猫咪",)}, "'猫咪' overlaps with '猫'"),
        ({"must_include": ("dog",), "must_not_include": ("dog house",)}, "'dog house' overlaps with 'dog'"),
        ({"must_include": ("a", "b"), "max_words": 1}, "max_words"),
    ]
    for fields, name in refused:
        with pytest.raises(UnsupportedConstraint) as caught:
            bench.compile(Words(**fields))
        assert name in caught.value.message
        assert caught.value.param in (*fields, "max_words")


def test_gaps_are_part_of_no_word() -> None:
    import re

    gaps = re.compile("[" + re.sub(r"\\x\{(\w+)\}", lambda m: f"\\u{int(m[1], 16):04x}", _GAPS) + "]")
    assert not [hex(code) for code in range(0xD800) if gaps.fullmatch(chr(code)) and beside(chr(code))]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "/element"),
        ({"element": "1a"}, "/element"),
        ({"element": "xmlns"}, "/element"),
        ({"element": "a:b"}, "/element"),
        ({"element": "a", "colour": 1}, "/colour"),
        ({"element": "a", "text": "date"}, "/text/type"),
        ({"element": "a", "text": {}, "children": []}, "text or children"),
        ({"element": "a", "children": [{"element": "b", "min": 3, "max": 2}]}, "/children/0"),
        ({"element": "a", "children": [{"choice": []}]}, "/children/0/choice"),
        ({"element": "a", "text": {"enum": ["\x00"]}}, "/text/enum"),
        ({"element": "a", "attributes": {"b": {"required": 1}}}, "/attributes/b/required"),
        ([], "must be an object"),
    ],
)
def test_malformed_element_schemas_name_the_place(bench: Bench, schema: Any, words: str) -> None:
    with pytest.raises(InvalidConstraint) as caught:
        bench.compile(XmlSchema.of(schema))
    assert words in caught.value.message
    assert caught.value.param == "xml"


def test_a_trigger_inside_another_is_refused(bench: Bench) -> None:
    with pytest.raises(UnsupportedConstraint, match="would never open"):
        bench.compile(StructuralTag((Tag("a<b", None, "c"), Tag("<", None, "c")), ("a<b", "<")))


def test_the_relaxations_of_a_tags_content_are_said(bench: Bench) -> None:
    tags = StructuralTag((Tag("<f>", JsonSchema.of({"not": {}}), "</f>"),), ("<f>",))
    grammar = bench.compile(tags)
    assert grammar.step == "lenient"
    assert grammar.relaxed == ("in the tag '<f>': not at /not is not enforced",)


def test_a_grammar_can_be_a_tags_content(bench: Bench) -> None:
    tags = StructuralTag((Tag("<f>", Grammar('root ::= "a" | "中"'), "</f>"),), ("<f>",), at_least_one=True)
    assert bench.accepts(tags, "x<f>中</f>")
    assert not bench.accepts(tags, "x<f>b</f>")
    assert judge(tags, "x<f>中</f>") is None


def test_what_stands_instead_of_tags_needs_tags_without_text() -> None:
    with pytest.raises(InvalidConstraint, match="instead"):
        StructuralTag((Tag("<f>", None, "</f>"),), ("<f>",), instead=AnyJson())
