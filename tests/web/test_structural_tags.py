"""Structural tags in xgrammar's format objects: what maps onto a constraint, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from mmserve.errors import ConstraintError, InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.spec import Choice, Constraint, Grammar, JsonSchema, Regex, StructuralTag, Tag
from web.constraints.structural import structural_tag

CONST: dict[str, Any] = {"type": "const_string", "value": "yes"}
TAG: dict[str, Any] = {"begin": "<f=a>", "content": {"type": "json_schema", "json_schema": {}}, "end": "</f>"}


def triggered(*tags: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "triggered_tags", "triggers": ["<f"], "tags": list(tags), **fields}


def tag(content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": "<f>", "content": content, "end": "</f>", **fields}


@pytest.mark.parametrize(
    ("value", "constraint"),
    [
        ({"type": "json_schema", "json_schema": {"type": "null"}}, JsonSchema('{"type": "null"}')),
        ({"type": "json_schema", "json_schema": True, "style": "json", "any_order": False}, JsonSchema("true")),
        ({"type": "regex", "pattern": "a+"}, Regex("a+")),
        ({"type": "grammar", "grammar": 'root ::= "a"'}, Grammar('root ::= "a"')),
        (CONST, Choice(("yes",))),
        ({"type": "or", "elements": [CONST, {"type": "const_string", "value": "猫"}]}, Choice(("yes", "猫"))),
        (triggered(TAG), StructuralTag((Tag("<f=a>", JsonSchema("{}"), "</f>"),), ("<f",))),
        (
            triggered(TAG, at_least_one=True, stop_after_first=True, excludes=[]),
            StructuralTag((Tag("<f=a>", JsonSchema("{}"), "</f>"),), ("<f",), True, True),
        ),
        (
            triggered(tag({"type": "any_text"}), tag(CONST, end=["</g>"])),
            StructuralTag((Tag("<f>", None, "</f>"), Tag("<f>", Choice(("yes",)), "</g>")), ("<f",)),
        ),
        (
            triggered(tag({"type": "any_text", "excludes": []}), triggers="<f"),
            StructuralTag((Tag("<f>", None, "</f>"),), ("<f",)),
        ),
    ],
)
def test_formats(value: dict[str, Any], constraint: Constraint) -> None:
    assert structural_tag({"type": "structural_tag", "format": value}, "tag") == constraint
    assert structural_tag({"format": value}, "tag") == constraint


@pytest.mark.parametrize(
    ("value", "param", "word"),
    [
        ({"type": "sequence", "elements": []}, "tag.format", "sequence"),
        ({"type": "qwen_xml_parameter"}, "tag.format", "qwen_xml_parameter"),
        ({"type": "dispatch"}, "tag.format", "dispatch"),
        (tag(CONST), "tag.format", "tag"),
        ({"type": "json_schema", "json_schema": {}, "style": "glm_xml"}, "tag.format.style", "glm_xml"),
        ({"type": "json_schema", "json_schema": {}, "any_order": True}, "tag.format.any_order", "any_order"),
        ({"type": "or", "elements": [{"type": "regex", "pattern": "a"}]}, "tag.format.elements[0]", "const_string"),
        (triggered(TAG, excludes=["x"]), "tag.format.excludes", "excludes"),
        (triggered(tag(CONST, end=["a", "b"])), "tag.format.tags[0].end", "ends"),
        (triggered(tag(CONST), tag({"type": "star"})), "tag.format.tags[1].content", "star"),
        (triggered(tag({"type": "any_text", "max_chars": 9})), "tag.format.tags[0].content", "limits"),
    ],
)
def test_what_cannot_be_enforced_is_named(value: dict[str, Any], param: str, word: str) -> None:
    with pytest.raises(UnsupportedConstraint, match=word) as caught:
        structural_tag({"format": value}, "tag")
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (3, "tag"),
        ("{", "tag"),
        ({"type": "tag"}, "tag.type"),
        ({"format": {}}, "tag.format.type"),
        ({"format": []}, "tag.format"),
        ({"format": {"type": 3}}, "tag.format.type"),
        ({"format": CONST, "triggers": ["a"]}, "tag.triggers"),
        ({"format": {"type": "any_text"}}, "tag.format"),
        ({"format": {"type": "regex"}}, "tag.format.pattern"),
        ({"format": {"type": "regex", "pattern": ""}}, "tag.format.pattern"),
        ({"format": {"type": "regex", "pattern": "a", "flags": "i"}}, "tag.format.flags"),
        ({"format": {"type": "const_string", "value": 3}}, "tag.format.value"),
        ({"format": {"type": "or", "elements": []}}, "tag.format.elements"),
        ({"format": {"type": "or", "elements": "ab"}}, "tag.format.elements"),
        ({"format": {"type": "triggered_tags", "tags": []}}, "tag.format.triggers"),
        ({"format": triggered()}, "tag.format"),
        ({"format": triggered("x")}, "tag.format.tags[0]"),  # type: ignore[arg-type]
        ({"format": triggered(TAG, at_least_one=1)}, "tag.format.at_least_one"),
        ({"format": triggered({**TAG, "begin": "other"})}, "tag.format"),
        ({"format": triggered({**TAG, "begin": 3})}, "tag.format.tags[0].begin"),
        ({"format": triggered({**TAG, "type": "regex"})}, "tag.format.tags[0].type"),
        ({"format": triggered({"begin": "<f", "end": ">"})}, "tag.format.tags[0].content"),
        ({"structures": [], "triggers": ["a"]}, "tag"),
        ({"structures": {}, "triggers": ["a"]}, "tag.structures"),
        ({"structures": [{"begin": "a", "end": "b"}], "triggers": ["a"]}, "tag.structures[0].schema"),
        ({"structures": [{"begin": "a", "schema": 3, "end": "b"}], "triggers": ["a"]}, "tag.structures[0].schema"),
        ({"structures": [{"begin": "a", "schema": {}, "end": "b"}], "triggers": [""]}, "tag"),
        ({"structures": [{"begin": "a", "schema": {}, "end": "b"}], "triggers": 3}, "tag.triggers"),
        ({"structures": [{"begin": "a", "schema": {}, "end": "b"}]}, "tag.triggers"),
    ],
)
def test_malformed_names_the_place(value: object, param: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        structural_tag(value, "tag")
    assert type(caught.value) is InvalidConstraint
    assert caught.value.param == param, caught.value
