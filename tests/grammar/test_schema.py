"""JSON Schema: the chain of steps, what strictness promises, and six hundred real schemas."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from mmserve.errors import ConstraintError, InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.compiler import GrammarCompiler
from mmserve.grammar.judge import judge
from mmserve.grammar.lowered import SPACED
from mmserve.grammar.spec import AnyJson, JsonSchema, StructuralTag, Tag
from tests.grammar.conftest import Bench
from tests.grammar.sample import Case, compact, load, spellings
from tests.grammar.support import accepts, generate


def of(**schema: Any) -> JsonSchema:
    return JsonSchema.of(schema, strict=True)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string"}}},
            ['{"a":"x"}', '{"b":1}'],
            ['{"a":1}', '{"\\u0061":1}'],
        ),
        (
            {"type": "object", "properties": {"é\n": {"type": "null"}}},
            ['{"é\\n":null,"z":[1]}'],
            ['{"\\u00e9\\n":1}', '{"é\\u000a":1}'],
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
            ['{"a":"x","b":1}'],
            ['{"a":"x","\\u0061":1}', '{"b":"x"}'],
        ),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "string"}}},
            ['{"xa":"1","b":2}'],
            ['{"xa":2}', '{"\\u0078a":2}'],
        ),
        ({"type": "integer", "maximum": 2**53 + 1}, ["9007199254740992", "-5"], ["9007199254740994"]),
        ({"type": "integer", "minimum": 0, "maximum": 2**64}, ["9223372036854774784"], ["18446744073709551617", "-1"]),
        ({"type": "string", "pattern": r"^\D\W\S$"}, ['"a-b"'], ['"٣-b"', '"aéb"', '"a-\\u001c"']),
        ({"type": "string", "pattern": "^a.c$"}, ['"abc"'], ['"a\\nc"', '"abc\\n"']),
        ({"type": "string"}, ['"\\u0041"', '"\\ud83d\\ude00"', '"😀"'], ['"\\ud83d"', '"a', "1"]),
        ({"type": "string", "maxLength": 2}, ['"😀😀"', '"\\ud83d\\ude00a"'], ['"😀😀😀"']),
        ({"enum": ["是", "否", "😀", 1, None]}, ['"是"', '"😀"', "1", "null"], ['"不"', "2"]),
        ({"const": {"名": [1, "猫"]}}, ['{"名":[1,"猫"]}'], ['{"名":[1,"狗"]}']),
        ({"type": "number", "multipleOf": 0.01}, ["4.35"], ["4.351"]),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1}, ["[true,false]"], ["[]", "[true, false]"]),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/a", "type": "string",
             "definitions": {"a": {"type": "integer"}}},
            ["3"],
            ['"3"'],
        ),
    ],
)  # fmt: skip
def test_strict_is_exact(bench: Bench, schema: Any, right: Sequence[str], wrong: Sequence[str]) -> None:
    constraint = JsonSchema.of(schema, strict=True)
    grammar = bench.compile(constraint)
    assert grammar.step == "strict"
    assert grammar.relaxed == ()
    for text in right:
        assert accepts(grammar, bench.vocabulary, text), text
        assert judge(constraint, text) is True, text
    for text in wrong:
        assert not accepts(grammar, bench.vocabulary, text), text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"items": {"not": {"type": "null"}}}, "not at /items/not"),
        ({"properties": {"a/b": {"uniqueItems": True}}}, "uniqueItems at /properties/a~1b/uniqueItems"),
        ({"properties": {"a": {"oneOf": [{"minimum": 1}, {"maximum": 3}]}}}, "oneOf at /properties/a/oneOf"),
        ({"items": {"format": "topic"}}, "format at /items/format"),
        ({"items": {"pattern": "(?=a)b"}}, "pattern at /items/pattern cannot be enforced: a lookaround"),
        ({"$ref": "http://127.0.0.1:9/x.json"}, "$ref at /$ref leads outside"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "$ref at /items/$ref leads outside"),
        ({"const": 2**53 + 1}, "const at /const has a number"),
        ({"type": "object", "minProperties": 2}, "minProperties at /minProperties"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "draft 3"),
        ({"patternProperties": {"a": {}, "b": {}}}, "patternProperties at /patternProperties"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "nothing satisfies"),
        ({"enum": []}, "nothing satisfies"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "satisfies"),
    ],
)
def test_what_strict_cannot_do_is_named_with_its_place(bench: Bench, schema: Any, words: str) -> None:
    with pytest.raises(UnsupportedConstraint) as caught:
        bench.compile(JsonSchema.of(schema, strict=True))
    assert words in caught.value.message
    assert caught.value.param == "schema"


@pytest.mark.parametrize(
    "schema",
    ['{"type":"strin"}', '{"minLength":"x","type":"string"}', "[1]", '"a"', '{"a"', '{"const":NaN}', '{"$ref":"#/no"}'],
)
def test_malformed_schemas_are_invalid(bench: Bench, schema: str) -> None:
    with pytest.raises(InvalidConstraint):
        bench.compile(JsonSchema(schema))


def test_each_step_says_what_it_relaxes(bench: Bench) -> None:
    options = [{"minimum": 1}, {"maximum": 3}]
    coerced = bench.compile(JsonSchema.of({"type": "integer", "oneOf": options, "format": "big"}))
    assert coerced.step == "coerced"
    assert set(coerced.relaxed) == {"format 'big' at /format is not enforced", "oneOf at /oneOf is enforced as anyOf"}
    lenient = bench.compile(JsonSchema.of({"items": {"not": {}, "pattern": "(?=a)"}}))
    assert lenient.step == "lenient"
    assert set(lenient.relaxed) == {"not at /items/not is not enforced", "pattern at /items/pattern is not enforced"}


def test_the_callers_options_for_llguidance_are_dropped(bench: Bench) -> None:
    schema = {"x-guidance": {"item_separator": "x", "lenient": True}, "type": "array"}
    assert bench.accepts(JsonSchema.of(schema, strict=True), "[1,2]")
    assert not bench.accepts(JsonSchema.of(schema, strict=True), "[1x2]")
    with pytest.raises(UnsupportedConstraint):
        bench.compile(JsonSchema.of({**schema, "not": {}}, strict=True))


def test_any_json_is_an_object_of_bounded_depth(bench: Bench) -> None:
    for text in ("{}", '{"名":[1,{"b":null}],"😀":-1.5e3,"c":"\\u00e9\\n"}', '{"a":' * 32 + "1" + "}" * 32):
        assert bench.accepts(AnyJson(), text), text
        assert judge(AnyJson(), text)
    for text in ("[]", "1", '{"a": 1}', '{"a":01}', '{"a":' * 33 + "1" + "}" * 33, '{"a":"\\ud800"}', ""):
        assert not bench.accepts(AnyJson(), text), text


def test_a_models_style_puts_one_blank_behind_commas_and_colons(bench: Bench) -> None:
    compiler = GrammarCompiler(bench.vocabulary, threads=1, json_style=SPACED)
    schema = of(type="object", properties={"a": {"type": "array", "items": {"type": "integer"}}, "b": {"type": "null"}})
    inside = StructuralTag((Tag("<", schema, ">"),), ("<",))
    for constraint, open_, close in ((schema, "", ""), (AnyJson(), "", ""), (inside, "<", ">")):
        grammar = compiler.submit(constraint).result(30)
        assert accepts(grammar, bench.vocabulary, open_ + '{"a": [1, 2], "b": null}' + close)
        for text in ('{"a":[1,2],"b":null}', '{"a":  [1, 2], "b": null}', '{ "a": [1, 2], "b": null}'):
            assert not accepts(grammar, bench.vocabulary, open_ + text + close)
    compiler.close()


@pytest.mark.parametrize("seed", range(12))
def test_what_is_generated_satisfies_the_schema(bench: Bench, seed: int) -> None:
    constraint = of(
        type="object",
        properties={
            "名字": {"type": "string", "maxLength": 5},
            "n": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["猫", "😀", 3]}, "maxItems": 3},
            "x": {"type": "number", "minimum": -2, "maximum": 7.5},
            "code": {"type": "string", "pattern": r"^\w{2,4}-\d+$"},
        },
        required=["名字", "code"],
    )
    for constraint_ in (constraint, AnyJson()):
        text = generate(bench.compile(constraint_), bench.vocabulary, seed)
        assert judge(constraint_, text) is True, text


def verdicts(bench: Bench, cases: Sequence[Case], *, strict: bool) -> tuple[Counter[str], Counter[str], list[str]]:
    """Schemas by step, those of them that are judged right throughout, and the invalid instances strict let through."""
    steps: Counter[str] = Counter()
    right: Counter[str] = Counter()
    leaks = []
    for case in cases:
        constraint = JsonSchema.of(case.schema, strict=strict)
        try:
            grammar = bench.compile(constraint)
        except ConstraintError:
            steps["refused"] += 1
            continue
        steps[grammar.step] += 1
        good = True
        for instance, valid in case.tests:
            taken = [text for text in spellings(case.schema, instance) if accepts(grammar, bench.vocabulary, text)]
            if grammar.step != "strict":
                taken = [text for text in taken if judge(constraint, text)]
            if taken and not valid and grammar.step == "strict":
                leaks.append(f"{case.name}: {compact(instance)[:200]}")
            good &= bool(taken) == valid
        right[grammar.step] += good
    return steps, right, leaks


def test_a_tenth_of_the_sample(bench: Bench) -> None:
    steps, right, leaks = verdicts(bench, load()[::10], strict=False)
    assert leaks == []
    assert right["strict"] == steps["strict"] >= 48
    assert sum(right.values()) >= 56


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_the_whole_sample(bench: Bench) -> None:
    cases = load()
    assert len(cases) == 600
    steps, right, leaks = verdicts(bench, cases, strict=True)
    print(f"strict, 600 schemas: {dict(steps)}, every instance right: {dict(right)}, invalid ones accepted: {leaks}")
    assert leaks == []
    assert steps["strict"] >= 0.87 * 600
    assert right["strict"] >= 0.998 * steps["strict"]
    steps, right, leaks = verdicts(bench, cases, strict=False)
    print(f"the chain, 600 schemas: {dict(steps)}, every instance right: {dict(right)}, invalid ones accepted: {leaks}")
    assert leaks == []
    assert 600 - steps["refused"] >= 0.99 * 600
    assert sum(right.values()) >= 0.96 * 600


def test_the_sample_is_what_its_note_says() -> None:
    cases = load()
    assert sum(len(case.tests) for case in cases) == 2004
    assert spellings({"properties": {"b": {}, "a": {}}}, {"a": 1, "b": 2}) == ['{"a":1,"b":2}', '{"b":2,"a":1}']
    assert json.loads(spellings(cases[0].schema, cases[0].tests[0][0])[0]) == cases[0].tests[0][0]
