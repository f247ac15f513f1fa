"""What ``gen`` and its kin make of their arguments."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from pydantic import BaseModel

import mmserve as sgl
from mmserve.errors import InvalidConstraint, InvalidField, UnsupportedPicture
from mmserve.grammar.spec import Grammar, JsonSchema, Regex
from mmserve.lang.expressions import Expr, Gen, Image, Select, leaves
from tests.engine.pictures import png


class Person(BaseModel):
    name: str
    age: int


@dataclasses.dataclass
class Point:
    x: int


def gen(**arguments: Any) -> Gen:
    made = sgl.gen("x", **arguments)
    assert isinstance(made, Gen)
    return made


def test_regex_takes_a_pattern_a_compiled_one_a_schema_and_a_model() -> None:
    assert gen(regex=r"\d+").constraint == gen(regex=re.compile(r"\d+")).constraint == Regex(r"\d+")
    schema = Person.model_json_schema()
    assert gen(regex=schema).constraint == gen(json_schema=schema).constraint == JsonSchema.of(schema)
    assert gen(regex=Person).constraint == gen(json_schema=Person).constraint
    assert gen(json_schema=json.dumps(schema)).constraint == JsonSchema.of(schema)


@pytest.mark.parametrize(("kind", "field"), [(Person, "name"), (Point, "x"), (list[Person], "items")])
def test_types_that_pydantic_knows_are_schemas_with_their_own_fields_only(kind: type, field: str) -> None:
    constraint = gen(json_schema=kind).constraint
    assert isinstance(constraint, JsonSchema)
    assert f'"{field}"' in constraint.schema
    assert '"additionalProperties": false' in constraint.schema


def test_other_forms() -> None:
    assert gen(ebnf="root ::= [a-z]+").constraint == Grammar("root ::= [a-z]+")
    assert gen().constraint is None
    for kind, good, bad in [(int, ["0", "-12", "7"], ["", "007", "1.5"]), (str, ['""', '"a b"'], ["a", '"a"b"'])]:
        constraint = gen(dtype=kind).constraint
        assert isinstance(constraint, Regex)
        assert all(re.fullmatch(constraint.pattern, text) for text in good)
        assert not any(re.fullmatch(constraint.pattern, text) for text in bad)
    assert sgl.gen_int("n", temperature=0.5).options.temperature == 0.5  # type: ignore[attr-defined]
    assert sgl.gen_string("n").constraint == gen(dtype=str).constraint  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regex": "a", "json_schema": {}}, "one form, and these are given: regex, json_schema"),
        ({"choices": ["a"], "ebnf": "b"}, "choices, ebnf"),
        ({"regex": ""}, "regex is empty"),
        ({"choices": []}, "choices is empty"),
        ({"choices": ["a", "a"]}, "a choice is given twice"),
        ({"json_schema": "{"}, "not valid JSON"),
        ({"dtype": float}, "dtype is int or str"),
    ],
)
def test_forms_that_are_none_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConstraint, match=message):
        sgl.gen("x", **arguments)


@pytest.mark.parametrize("choices", [None, "abc", [1, 2]])
def test_choices_are_a_list_of_strings(choices: Any) -> None:
    with pytest.raises(InvalidField, match="list of strings"):
        sgl.select("x", choices)


def test_options_are_kept_as_they_are_said() -> None:
    options = gen(max_tokens=3, stop="a", stop_token_ids=[1], return_logprob=True, top_logprobs_num=2, top_k=0).options
    said = {"max_tokens": 3, "stop": ("a",), "stop_token_ids": (1,), "logprobs": 2, "top_k": 0}
    assert options.said() == said
    assert gen(return_logprob=True).options.logprobs == 0
    assert gen(stop=["a", "b"]).options.stop == ("a", "b")
    with pytest.raises(TypeError, match="stop is a string"):
        gen(stop=[1])


def test_choices_make_a_select_that_knows_its_line() -> None:
    made = sgl.gen("x", choices=["a", "b"])
    assert isinstance(made, Select)
    assert (made.choices, made.temperature) == (("a", "b"), 0.0)
    assert str(made.place).startswith('gen "x" in test_api.py, line ')
    assert str(sgl.gen_int("n").place).startswith('gen "n" in test_api.py')  # type: ignore[attr-defined]


def test_expressions_and_text_join_in_either_order() -> None:
    joined = "a" + sgl.image(b"p") + "b" + sgl.user("c" + sgl.gen("x")) + sgl.select("y", ["d"])
    kinds = [type(leaf).__name__ for leaf in leaves(joined)]
    assert kinds == ["Text", "Image", "Text", "Begin", "Text", "Gen", "End", "Select"]
    with pytest.raises(TypeError, match="not int"):
        _ = sgl.gen("x") + 1  # type: ignore[operator]
    assert isinstance(joined, Expr)


def test_a_picture_is_whatever_has_one(tmp_path: Path) -> None:
    data = png("red")
    file = tmp_path / "a.png"
    file.write_bytes(data)
    uri = "data:image/png;base64,iVBORw0KGgo="
    assert source(str(file)) == source(file) == source(data) == source(bytearray(data)) == data
    assert source(uri) == b"\x89PNG\r\n\x1a\n"
    pixels = np.zeros((4, 5, 3), np.uint8)
    for made in (source(PillowImage.fromarray(pixels)), source(pixels)):
        assert isinstance(made, bytes)
        assert PillowImage.open(io.BytesIO(made)).size == (5, 4)
    assert source("https://example.org/a.png") == "https://example.org/a.png"  # fetched when it is needed


def source(picture: Any) -> bytes | str:
    made = sgl.image(picture)
    assert isinstance(made, Image)
    return made.source


def test_what_is_no_picture_is_refused_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sgl.image(str(tmp_path / "none.png"))
    with pytest.raises(TypeError, match="a picture is a path"):
        sgl.image(3.5)  # type: ignore[arg-type]
    for uri in ("data:image/png,abc", "data:image/png;base64,a"):
        with pytest.raises(UnsupportedPicture, match="data URI"):
            sgl.image(uri)
