"""The judge knows what schemas say, without llguidance."""

from __future__ import annotations

from typing import Any

import pytest

from mmserve.grammar.judge import judge
from mmserve.grammar.spec import AnyJson, Choice, Grammar, JsonSchema, Regex

DRAFT_4 = "http://json-schema.org/draft-04/schema#"


@pytest.mark.parametrize(
    ("schema", "text", "verdict"),
    [
        ({"type": "integer"}, "3", True),
        ({"type": "integer"}, "3 4", False),
        ({"type": "integer"}, "", False),
        ({"type": "number"}, "NaN", False),
        ({"type": "number", "multipleOf": 0.01}, "4.35", True),
        ({"type": "number", "multipleOf": 0.01}, "4.351", False),
        ({"type": "string", "format": "date"}, '"no date"', True),
        ({"type": "number", "minimum": 1, "exclusiveMinimum": True, "$schema": DRAFT_4}, "1", False),
        ({"type": "number", "minimum": 1, "exclusiveMinimum": True}, "1", False),
        ({"items": [{"type": "integer"}], "additionalItems": False}, "[1,2]", False),
        ({"items": [{"type": "integer"}], "additionalItems": False}, "[1]", True),
        ({"prefixItems": [{"type": "integer"}]}, '["a"]', False),
        ({"pattern": r"\p{L}"}, '"a"', None),
        ({"$ref": "http://127.0.0.1:9/x"}, "1", None),
        ({"$ref": "#/nowhere"}, "1", None),
        ({"type": "strin"}, "1", None),
        ({"not": {}}, "1", False),
    ],
)
def test_schemas(schema: Any, text: str, verdict: bool | None) -> None:
    assert judge(JsonSchema.of(schema), text) is verdict


def test_the_other_kinds() -> None:
    assert judge(AnyJson(), '{"a": [1]}') is True
    assert judge(AnyJson(), "[]") is False
    assert judge(AnyJson(), "[" * 100_000) is False
    assert judge(Regex("a+"), "aa") is True
    assert judge(Regex("a+"), "aa\n") is False
    assert judge(Choice(("a", "b")), "b") is True
    assert judge(Choice(("a", "b")), "B") is False
    assert judge(Grammar('root ::= "a"'), "a") is None
