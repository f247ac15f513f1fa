"""``mmserve ask --schema …`` and its like, against a server whose engine is scripted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmserve.cli import main
from mmserve.grammar.spec import AnyJson, Choice, Constraint, Grammar, JsonSchema, Regex, Words, XmlSchema
from mmserve.types import ConstraintReport
from tests.web.fakes import FakeEngine, FakePrompts, png, say, serve
from web.service import ServedModel, Service

SCHEMA = '{"type":"object"}'
MODEL = """
import pydantic

class Cat(pydantic.BaseModel):
    legs: int = pydantic.Field(le=4)

    @pydantic.field_validator("legs")
    @classmethod
    def even(cls, legs):
        if legs % 2:
            raise ValueError("a cat's legs are even")
        return legs
"""


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(lambda request: say('{"legs":4}', request=request))


@pytest.fixture
def ask(engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The start of a command that asks the scripted engine; its folder is the working one."""
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    service = Service(ServedModel("pocket-vl"), FakePrompts(), engine, max_model_len=512, judge=lambda *_: False)
    with serve(service) as url:
        yield ["ask", "--server", url, "a.png", "What is it?"]


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        (["--schema", SCHEMA], JsonSchema(SCHEMA)),
        (["--schema", SCHEMA, "--strict"], JsonSchema(SCHEMA, strict=True)),
        (["--schema", "schema.json"], JsonSchema('{"type": "array"}')),
        (["--json-object"], AnyJson()),
        (["--regex", ".+"], Regex(".+")),
        (["--choice", '{"legs":4}', "--choice", "b"], Choice(('{"legs":4}', "b"))),
        (["--grammar", 'start: "a"'], Grammar('start: "a"')),
        (["--grammar", "cat.lark"], Grammar("start: /.+/")),
        (["--xml", '{"element": "cat"}'], XmlSchema('{"element": "cat"}')),
        (
            ["--must-include", "cat", "--must-include", "hat", "--start-with", "A", "--max-words", "9"],
            Words(("cat", "hat"), (), "A", 9),
        ),
        ([], None),
    ],
    ids=str,
)
def test_options_reach_the_engine_and_the_answer_is_printed_as_it_is(
    ask: list[str],
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    constraint: Constraint | None,
) -> None:
    Path("schema.json").write_text('{"type": "array"}')
    Path("cat.lark").write_text("start: /.+/")
    assert main([*ask, *options]) == 0
    assert capsys.readouterr().out == '{"legs":4}\n'
    [asked] = engine.requests
    if isinstance(constraint, JsonSchema):
        assert isinstance(asked.constraint, JsonSchema)
        assert json.loads(asked.constraint.schema) == json.loads(constraint.schema)
        assert asked.constraint.strict == constraint.strict
    else:
        assert asked.constraint == constraint


def test_a_models_name(ask: list[str], engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    Path("zoo.py").write_text(MODEL)
    assert main([*ask, "--schema", "zoo:Cat"]) == 0
    assert capsys.readouterr().out == '{"legs":4}\n'
    constraint = engine.requests[0].constraint
    assert isinstance(constraint, JsonSchema)
    assert json.loads(constraint.schema)["properties"]["legs"]["maximum"] == 4
    assert main([*ask, "--schema", "zoo:Cat", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parsed"] == {"legs": 4}
    assert printed["constraint"]["step"] == "strict"


def test_an_answer_that_the_model_refuses_is_printed_all_the_same(
    ask: list[str], engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("zoo2.py").write_text(MODEL)
    engine.script = lambda request: say('{"legs":3}', request=request)
    assert main([*ask, "--schema", "zoo2:Cat"]) == 1
    printed = capsys.readouterr()
    assert printed.out == '{"legs":3}\n'
    assert "even" in printed.err


def test_an_answer_that_was_judged_bad_says_so(
    ask: list[str], engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ConstraintReport("lenient", ("not is checked afterwards",))
    engine.script = lambda request: say("{}", request=request, report=report)
    assert main([*ask, "--schema", SCHEMA]) == 1
    printed = capsys.readouterr()
    assert printed.out == "{}\n"
    assert "not is checked afterwards" in printed.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--schema", "missing.json"], "missing.json"),
        (["--schema", "no_such_module:Cat"], "no_such_module"),
        (["--schema", "json:Missing"], "Missing"),
        (["--schema", "{"], "schema"),
        (["--grammar", "missing.lark"], "missing.lark"),
        (["--regex", "a", "--json-object"], "only one"),
        (["--strict"], "strict"),
    ],
)
def test_misuse_is_a_sentence(
    ask: list[str], engine: FakeEngine, capsys: pytest.CaptureFixture[str], options: list[str], word: str
) -> None:
    assert main([*ask, *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert word in printed.err
    assert not engine.requests
