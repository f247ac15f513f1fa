"""Every spelling of a constraint arrives at the engine as the right one, and what is malformed is refused by name."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmserve.errors import BudgetTooSmall, InvalidConstraint, RequestError, UnsupportedConstraint
from mmserve.grammar.spec import (
    MAX_CHOICES,
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
from tests.web.fakes import FakeEngine
from tests.web.test_chat import chat
from tests.web.test_vqa import ask, error_of
from web.constraints import Wanted, from_chat, from_form, from_sampling_params

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": ["猫", "🐈"]}}}
TEXT = json.dumps(SCHEMA, ensure_ascii=False)
XML = {"element": "cat"}
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
TAGGED = StructuralTag((Tag("<f>", JsonSchema(TEXT), "</f>"),), ("<f",))
SPACED = '{ "type":  "integer" }'

FORM: list[tuple[dict[str, Any], Constraint]] = [
    ({"schema": TEXT}, JsonSchema(TEXT)),
    ({"schema": SPACED}, JsonSchema(SPACED)),
    ({"schema": "true"}, JsonSchema("true")),
    ({"schema": TEXT, "strict": "true"}, JsonSchema(TEXT, strict=True)),
    ({"schema": TEXT, "strict": "false", "json": "false"}, JsonSchema(TEXT)),
    ({"json": "true"}, AnyJson()),
    ({"regex": "[0-9]+ 猫"}, Regex("[0-9]+ 猫")),
    ({"choices": ["ja", "nein", "猫"]}, Choice(("ja", "nein", "猫"))),
    ({"choices": '["ja", "nein"]'}, Choice(("ja", "nein"))),
    ({"choices": "ja"}, Choice(("ja",))),
    ({"grammar": 'start: "a"'}, Grammar('start: "a"')),
    ({"xml": json.dumps(XML)}, XmlSchema(json.dumps(XML))),
    ({"structural_tag": json.dumps(TAG)}, TAGGED),
    ({"must_include": "cat"}, Words(must_include=("cat",))),
    (
        {"must_include": ["cat", "a hat"], "must_not_include": "dog", "start_with": "A photo", "max_words": "12"},
        Words(("cat", "a hat"), ("dog",), "A photo", 12),
    ),
    ({"max_words": "5"}, Words(max_words=5)),
]


@pytest.mark.parametrize(("fields", "constraint"), FORM, ids=str)
async def test_form(client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], constraint: object) -> None:
    response = await ask(client, fields)
    assert response.status_code == 200, response.text
    assert engine.requests[0].constraint == constraint


CHAT: list[tuple[dict[str, Any], Constraint]] = [
    ({"response_format": {"type": "json_object"}}, AnyJson()),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JsonSchema(TEXT)),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, JsonSchema(TEXT)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        JsonSchema(TEXT, strict=True),
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": TEXT, "strict": None, "name": None}}},
        JsonSchema(TEXT),
    ),
    ({"response_format": {"type": "structural_tag", **TAG}}, TAGGED),
    ({"response_format": {"type": "regex_schema", "regex_schema": "a+"}}, Regex("a+")),
    ({"structured_outputs": {"json": SCHEMA}}, JsonSchema(TEXT)),
    ({"structured_outputs": {"json": SPACED}}, JsonSchema(SPACED)),
    ({"structured_outputs": {"regex": "a+", "json": None, "whitespace_pattern": None}}, Regex("a+")),
    ({"structured_outputs": {"choice": ["a", "b"], "json_object": False}}, Choice(("a", "b"))),
    ({"structured_outputs": {"grammar": "root ::= [a-z]"}}, Grammar("root ::= [a-z]")),
    ({"structured_outputs": {"json_object": True, "disable_fallback": True}}, AnyJson()),
    ({"structured_outputs": {"structural_tag": json.dumps({"type": "structural_tag", **TAG})}}, TAGGED),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, JsonSchema(TEXT)),
    ({"guided_json": TEXT}, JsonSchema(TEXT)),
    ({"guided_regex": "a+"}, Regex("a+")),
    ({"guided_choice": ["a", "b"]}, Choice(("a", "b"))),
    ({"guided_grammar": "root ::= [a-z]"}, Grammar("root ::= [a-z]")),
    ({"regex": "a+"}, Regex("a+")),
    ({"ebnf": "root ::= [a-z]"}, Grammar("root ::= [a-z]")),
    ({"json_schema": TEXT}, JsonSchema(TEXT)),
    ({"json_schema": SCHEMA}, JsonSchema(TEXT)),
    ({"structural_tag": json.dumps({"type": "structural_tag", **TAG})}, TAGGED),
    ({"structural_tag": TAG}, TAGGED),
    ({"xml": XML}, XmlSchema(json.dumps(XML))),
    ({"must_include": ["cat"], "max_words": 3}, Words(must_include=("cat",), max_words=3)),
]


@pytest.mark.parametrize(("fields", "constraint"), CHAT, ids=str)
async def test_chat(client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], constraint: object) -> None:
    response = await chat(client, n=2, **fields)
    assert response.status_code == 200, response.text
    assert [request.constraint for request in engine.requests] == [constraint, constraint]
    assert (await chat(client, stream=True, **fields)).status_code == 200
    assert engine.requests[2].constraint == constraint


async def test_asking_for_nothing_is_no_constraint(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await chat(client, response_format={"type": "text"}, structured_outputs=None, regex=None)
    await ask(client, {"json": "false"})
    assert [request.constraint for request in engine.requests] == [None, None]


SAMPLING: list[tuple[dict[str, Any], Wanted]] = [
    ({"regex": "a+", "temperature": 0}, Wanted("sampling_params.regex", Regex("a+"))),
    ({"ebnf": "root ::= [a-z]"}, Wanted("sampling_params.ebnf", Grammar("root ::= [a-z]"))),
    ({"json_schema": TEXT}, Wanted("sampling_params.json_schema", JsonSchema(TEXT))),
    ({"structural_tag": json.dumps(TAG)}, Wanted("sampling_params.structural_tag", TAGGED)),
]


@pytest.mark.parametrize(("params", "wanted"), SAMPLING, ids=str)
async def test_sampling_params(params: dict[str, Any], wanted: Wanted) -> None:
    assert from_sampling_params(params) == wanted
    assert from_sampling_params(dict.fromkeys(params)) is None


async def test_sampling_params_with_two_or_none() -> None:
    assert from_sampling_params({"temperature": 1}) is None
    with pytest.raises(InvalidConstraint) as caught:
        from_sampling_params({"regex": "a", "ebnf": "root ::= [a-z]"})
    assert caught.value.param == "sampling_params.ebnf"


TWO_IN_A_FORM = [
    ({"schema": TEXT, "regex": "a"}, "regex"),
    ({"json": "true", "choices": ["a", "b"]}, "choices"),
    ({"grammar": 'start: "a"', "xml": json.dumps(XML)}, "xml"),
    ({"regex": "a", "must_include": "cat"}, "must_include"),
    ({"structural_tag": json.dumps(TAG), "max_words": "3"}, "max_words"),
]


@pytest.mark.parametrize(("fields", "param"), TWO_IN_A_FORM)
async def test_two_in_a_form(client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    message = error_of(await ask(client, fields), 400, "invalid_constraint", param)
    assert all(name in message for name in list(fields)[:2])
    assert not engine.requests


TWO_IN_A_CHAT = [
    ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
    ({"structured_outputs": {"regex": "a"}, "guided_choice": ["a"]}, "guided_choice"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
    ({"guided_json": {}, "json_schema": "{}"}, "json_schema"),
    ({"ebnf": "root ::= [a]", "start_with": "A"}, "start_with"),
]


@pytest.mark.parametrize(("fields", "param"), TWO_IN_A_CHAT)
async def test_two_in_a_chat(client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    error_of(await chat(client, **fields), 400, "invalid_constraint", param)
    assert not engine.requests


MALFORMED_FORM = [
    ({"schema": ""}, "schema"),
    ({"schema": "{"}, "schema"),
    ({"schema": "[]"}, "schema"),
    ({"schema": "3"}, "schema"),
    ({"schema": '"text"'}, "schema"),
    ({"schema": '{"minimum": NaN}'}, "schema"),
    ({"schema": '{"a":' + "[" * 200_000}, "schema"),
    ({"strict": "true"}, "strict"),
    ({"strict": "maybe", "schema": "{}"}, "strict"),
    ({"strict": "true", "regex": "a"}, "strict"),
    ({"json": "perhaps"}, "json"),
    ({"regex": ""}, "regex"),
    ({"choices": "[1, 2]"}, "choices"),
    ({"choices": "[]"}, "choices"),
    ({"choices": '["a"'}, "choices"),
    ({"choices": '[["a"]]'}, "choices"),
    ({"choices": ["a", "a"]}, "choices"),
    ({"choices": ["a", ""]}, "choices"),
    ({"choices": json.dumps([str(i) for i in range(MAX_CHOICES + 1)])}, "choices"),
    ({"grammar": ""}, "grammar"),
    ({"xml": "<cat/>"}, "xml"),
    ({"xml": "[]"}, "xml"),
    ({"structural_tag": "{}"}, "structural_tag.triggers"),
    ({"structural_tag": "[]"}, "structural_tag"),
    ({"structural_tag": "no"}, "structural_tag"),
    ({"must_include": ""}, "must_include"),
    ({"must_include": ["w"] * 65}, "must_include"),
    ({"max_words": "0"}, "max_words"),
    ({"max_words": "many"}, "max_words"),
    ({"start_with": "x" * 2001}, "start_with"),
]


@pytest.mark.parametrize(("fields", "param"), MALFORMED_FORM, ids=lambda value: str(value)[:40])
async def test_malformed_in_a_form(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = await ask(client, fields)
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert error["param"] == param, response.text
    assert error["code"] in ("invalid_constraint", "invalid_field")
    assert len(error["message"]) < 400
    assert not engine.requests


RESPONSE_FORMATS = [
    ({}, "response_format.type"),
    ({"type": None}, "response_format.type"),
    ({"type": 3}, "response_format.type"),
    ({"type": "yaml"}, "response_format.type"),
    ({"type": "json_schema"}, "response_format.json_schema"),
    ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.schema"),
    ({"type": "json_schema", "json_schema": {"schema": []}}, "response_format.json_schema.schema"),
    ({"type": "json_schema", "json_schema": {"schema": "{"}}, "response_format.json_schema.schema"),
    ({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, "response_format.json_schema.strict"),
    ({"type": "json_schema", "json_schema": {"schema": {}, "stict": True}}, "response_format.json_schema.stict"),
    ({"type": "json_schema", "json_schema": [1]}, "response_format.json_schema"),
    ({"type": "json_object", "json_schema": {}}, "response_format.json_schema"),
    ({"type": "regex_schema"}, "response_format.regex_schema"),
    ({"type": "regex_schema", "regex_schema": 3}, "response_format.regex_schema"),
    ({"type": "regex_schema", "regex_schema": ""}, "response_format.regex_schema"),
    ({"type": "structural_tag"}, "response_format.triggers"),
]


@pytest.mark.parametrize(("value", "param"), RESPONSE_FORMATS, ids=str)
async def test_malformed_response_format(client: httpx.AsyncClient, value: dict[str, Any], param: str) -> None:
    message = error_of(await chat(client, response_format=value), 400, "invalid_constraint", param)
    assert len(message) < 400


MALFORMED_CHAT = [
    ({"structured_outputs": {}}, "structured_outputs", 400),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs", 400),
    ({"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn", 400),
    ({"structured_outputs": {"json": 3}}, "structured_outputs.json", 400),
    ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object", 400),
    ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice", 400),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", 400),
    ({"structured_outputs": {"regex": ["a"]}}, "structured_outputs.regex", 400),
    (
        {"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
        422,
    ),
    (
        {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
        "structured_outputs.disable_additional_properties",
        422,
    ),
    ({"guided_json": "{"}, "guided_json", 400),
    ({"guided_json": ""}, "guided_json", 400),
    ({"guided_choice": []}, "guided_choice", 400),
    ({"guided_choice": [1]}, "guided_choice", 400),
    ({"guided_regex": ""}, "guided_regex", 400),
    ({"guided_grammar": ""}, "guided_grammar", 400),
    ({"regex": 3}, "regex", 400),
    ({"ebnf": ""}, "ebnf", 400),
    ({"json_schema": "[]"}, "json_schema", 400),
    ({"structural_tag": "x"}, "structural_tag", 400),
    ({"must_include": []}, "must_include", 400),
    ({"max_words": 0}, "max_words", 400),
    ({"xml": "<a>"}, "xml", 400),
]


@pytest.mark.parametrize(("fields", "param", "status"), MALFORMED_CHAT, ids=str)
async def test_malformed_in_a_chat(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, status: int
) -> None:
    response = await chat(client, **fields)
    error = response.json()["error"]
    assert response.status_code == status, response.text
    assert error["param"].split("[")[0] == param
    assert not engine.requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("raised", "param"),
    [
        (UnsupportedConstraint("the keyword not at /a cannot be enforced", param="schema"), "response_format"),
        (InvalidConstraint("a $ref leads nowhere"), "response_format"),
        (BudgetTooSmall("at least 9 tokens are needed", param="max_tokens"), "max_tokens"),
    ],
)
async def test_refusal_by_the_engine_names_the_callers_field(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool, raised: Exception, param: str
) -> None:
    engine.script = lambda _: [raised]
    response = await chat(client, response_format={"type": "json_object"}, stream=stream)
    status = 400 if type(raised) is InvalidConstraint else 422
    assert error_of(response, status, type(raised).code, param) == str(raised)  # type: ignore[attr-defined]


async def test_refusal_of_words_names_the_word_field(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda _: [UnsupportedConstraint("they exclude each other", param="must_not_include")]
    response = await ask(client, {"must_include": "cat", "must_not_include": "cat"})
    error_of(response, 422, "unsupported_constraint", "must_not_include")


NAMES = [
    *("type", "format", "structures", "triggers", "tags", "begin", "content", "end", "schema", "json_schema", "value"),
    *("elements", "pattern", "regex_schema", "json", "regex", "choice", "grammar", "json_object", "structural_tag"),
]
KINDS = [
    *("structural_tag", "json_schema", "json_object", "regex_schema", "triggered_tags", "tag", "or", "const_string"),
    *("any_text", "regex", "grammar", "{}", "[", ""),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(KINDS) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["response_format", "structured_outputs", "structural_tag", "xml", "json_schema"]), JSON)
@settings(max_examples=300, deadline=None)
def test_any_value_is_a_constraint_or_a_typed_refusal(name: str, value: object) -> None:
    for read in (from_chat, from_sampling_params, from_form):
        with contextlib.suppress(RequestError):
            wanted = read({name: value})
            assert wanted is None or wanted.field.endswith(name)
