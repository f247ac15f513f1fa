"""Answers as choices with probabilities and as JSON: the builder, what is sent, how it is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from mmserve.grammar.spec import JsonSchema
from mmserve.types import ConstraintReport, Request, TokenEvent
from tests.browser.hands import BLUE, RED, answers, ask, field, file, pick, want
from tests.web.fakes import FakeEngine, FakePrompts, Step, eventually, say, scored, usage_of

pytestmark = pytest.mark.browser


def likely(**probabilities: float) -> dict[str, float]:
    return probabilities


def weigh(engine: FakeEngine, probabilities: dict[str, float]) -> None:
    engine.script = lambda request: scored(request, lambda text: math.log(probabilities[text]))


def test_choice_shows_probabilities_as_bars(page: Page, engine: FakeEngine) -> None:
    weigh(engine, likely(red=0.2, blue=0.7, green=0.00001))
    pick(page, file("red.png", RED))
    want(page, "Choice")
    page.get_by_label("Possible answers").fill("red, blue，green")
    ask(page, "Which colour?")
    expect(answers(page)).to_have_text("blue")
    rows = page.get_by_role("list", name="Probabilities").get_by_role("listitem")
    expect(rows).to_have_text(["blue78 %", "red22 %", "green< 0.1 %"])
    widths = [
        page.locator(".bar-fill").nth(i).evaluate("(n) => n.offsetWidth / n.parentNode.offsetWidth") for i in range(3)
    ]
    assert [round(width, 2) for width in widths] == [0.78, 0.22, 0.0]
    expect(page.locator(".flag")).to_have_count(0)
    expect(page.locator(".meta")).to_contain_text("took")


def test_choice_in_a_conversation_sees_what_was_said(page: Page, engine: FakeEngine, prompts: FakePrompts) -> None:
    pick(page, file("red.png", RED))
    ask(page, "What is it?")
    expect(answers(page)).to_have_text("It is a cat.")
    weigh(engine, likely(yes=0.9, no=0.05))
    want(page, "Choice")
    page.get_by_label("Possible answers").fill("yes, no")
    ask(page, "Is it black?")
    expect(answers(page).last).to_have_text("yes")
    assert [message.role for message in prompts.built[-1]] == ["user", "assistant", "user"]
    want(page, "Text")
    engine.script = lambda request: say("Because.", request=request)
    ask(page, "Why?")
    expect(answers(page).last).to_have_text("Because.")
    assert [part.text for part in prompts.built[-1][3].parts] == ["yes"]  # type: ignore[union-attr]


def test_choice_that_the_model_would_not_have_made_is_flagged(page: Page, engine: FakeEngine) -> None:
    weigh(engine, likely(cat=0.02, dog=0.01))
    pick(page, file("red.png", RED))
    want(page, "Choice")
    page.get_by_label("Possible answers").fill("cat, dog")
    ask(page, "What is it?")
    expect(page.locator(".flag")).to_contain_text("only 3.0 %: the model would rather have said something else")


def test_choices_are_judged_while_they_are_typed(page: Page, engine: FakeEngine) -> None:
    pick(page, file("red.png", RED))
    want(page, "Choice")
    ask(page, "Which?")
    options = page.get_by_label("Possible answers")
    expect(page.locator("#options-fault")).to_have_text("Give at least two, with commas between.")
    expect(options).to_be_focused()
    expect(options).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("alert")).to_contain_text("what is missing is marked")
    options.fill("a, a")
    expect(page.locator("#options-fault")).to_have_text("One of them is there twice.")
    options.fill("a, b")
    expect(page.locator("#options-fault")).to_be_hidden()
    expect(options).to_have_attribute("aria-invalid", "false")
    expect(page.get_by_label("Your question")).to_have_value("Which?")
    assert not engine.requests


def build_animal(page: Page) -> None:
    want(page, "JSON")
    add = page.get_by_role("button", name="Add a field")
    field(page, 1, "name")
    for number, (name, kind, values) in enumerate(
        [
            ("legs", "whole number", ""),
            ("weight", "number", ""),
            ("tame", "yes or no", ""),
            ("size", "one of…", "small, large"),
            ("colours", "list of…", ""),
        ],
        start=2,
    ):
        add.click()
        expect(page.get_by_label(f"Name {number}")).to_be_focused()
        field(page, number, name, kind, values)
    page.get_by_role("checkbox", name="required: field 6").uncheck()


ANIMAL = {"name": "Tom", "legs": 4, "weight": 3.5, "tame": True, "size": "small", "colours": ["black", "white"]}


def test_json_is_asked_for_by_the_builder_and_shown_as_a_table(page: Page, engine: FakeEngine) -> None:
    text = json.dumps(ANIMAL)
    engine.script = lambda request: say(text[:20], text[20:], request=request)
    pick(page, file("red.png", RED))
    build_animal(page)
    ask(page, "Which animal?")
    table = page.locator(".answer-body table")
    expect(table.get_by_role("row")).to_have_text(
        ["nameTom", "legs4", "weight3.5", "tameyes", "sizesmall", "coloursblackwhite"]
    )
    expect(page.locator(".flag")).to_have_count(0)
    page.get_by_text("Show the JSON").click()
    assert json.loads(answers(page).inner_text()) == ANIMAL
    [request] = engine.requests
    assert isinstance(request.constraint, JsonSchema)
    assert json.loads(request.constraint.schema) == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "legs": {"type": "integer"},
            "weight": {"type": "number"},
            "tame": {"type": "boolean"},
            "size": {"type": "string", "enum": ["small", "large"]},
            "colours": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "legs", "weight", "tame", "size"],
        "additionalProperties": False,
    }


def test_json_is_shown_while_it_is_written(page: Page, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield TokenEvent(request.id, text='{"name": "T')
        yield 0.4
        yield from say('om"}', request=request)

    engine.script = script
    pick(page, file("red.png", RED))
    want(page, "JSON")
    field(page, 1, "name")
    ask(page, "Which animal?")
    expect(answers(page)).to_have_text('{"name": "T')
    expect(page.locator(".answer-body table")).to_have_text("nameTom")


def test_lists_of_objects_are_tables_of_their_own(page: Page, engine: FakeEngine) -> None:
    text = json.dumps({"found": [{"what": "cat", "sure": False}, {"what": "dog", "age": None}], "rest": []})
    engine.script = lambda request: say(text, request=request)
    pick(page, file("red.png", RED))
    want(page, "JSON")
    field(page, 1, "found")
    ask(page, "What is there?")
    expect(page.get_by_role("columnheader")).to_have_text(["what", "sure", "age"])
    expect(page.locator(".answer-body table table tr")).to_have_text(["whatsureage", "catno", "dog–"])
    expect(page.get_by_text("(none)")).to_be_visible()


def test_builder_is_judged_while_it_is_filled_in(page: Page, engine: FakeEngine) -> None:
    pick(page, file("red.png", RED))
    want(page, "JSON")
    expect(page.locator(".fault")).to_be_hidden()
    ask(page, "What?")
    expect(page.locator(".fault")).to_have_text("Give the field a name.")
    expect(page.get_by_label("Name 1")).to_be_focused()
    field(page, 1, "colour", "one of…")
    expect(page.locator(".fault")).to_have_text("Give at least two, with commas between.")
    expect(page.get_by_label("Values 1")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Values 1").fill("red, blue")
    expect(page.locator(".fault")).to_be_hidden()
    page.get_by_role("button", name="Add a field").click()
    page.get_by_label("Name 2").fill("colour")
    expect(page.locator(".fault").last).to_have_text("Another field has this name already.")
    page.get_by_text("Show the schema").click()
    expect(page.locator(".schema")).to_have_text("Complete the fields to see it.")
    page.get_by_role("button", name="Remove field 2").click()
    page.get_by_text("Show the schema").click()
    expect(page.locator(".schema")).to_contain_text('"enum"')
    assert not engine.requests


def test_how_the_schema_was_kept_is_said_in_words(page: Page, engine: FakeEngine) -> None:
    report = ConstraintReport(step="lenient", relaxed=("uniqueItems at $ is not enforced",), closed_early=True)
    engine.script = lambda request: say('{"name":"x"}', request=request, report=report)
    pick(page, file("red.png", RED))
    want(page, "JSON")
    field(page, 1, "name", "whole number")
    ask(page, "What?")
    expect(page.locator(".flag")).to_have_text(
        [
            "The length limit ended this answer. It is complete, but the model had more to say.",
            "Only a part of the schema could be enforced:",
            "uniqueItems at $ is not enforced",
            "The answer does not keep the schema: check it before you use it.",
        ]
    )


def test_json_that_was_stopped_is_shown_as_it_is(page: Page, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield TokenEvent(request.id, text='{"name": "T')
        yield 60.0

    engine.script = script
    pick(page, file("red.png", RED), file("blue.png", BLUE))
    want(page, "JSON")
    field(page, 1, "name")
    ask(page, "What?")
    expect(answers(page)).to_have_text('{"name": "T')
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".flag")).to_have_text("The answer is not complete JSON.")
    expect(answers(page)).to_have_text('{"name": "T')
    eventually(lambda: not engine.running)


def test_instructions_go_first_and_it_is_said_what_of_them_was_cached(
    page: Page, engine: FakeEngine, prompts: FakePrompts
) -> None:
    cached = iter((1, 2))

    def script(request: Request) -> Iterator[Step]:
        usage = usage_of(request, 1, cached=next(cached))
        yield TokenEvent(request.id, text="ok", token_ids=(1,), finish_reason="stop", usage=usage)

    engine.script = script
    pick(page, file("red.png", RED))
    page.get_by_text("Instructions", exact=True).click()
    page.get_by_label("What the model is told before every question").fill("Be brief.")
    ask(page, "What?")
    expect(page.locator(".meta")).to_contain_text("picture: cached · system prompt: new")
    ask(page, "And?")
    expect(page.locator(".meta").last).to_contain_text("picture: cached · system prompt: cached")
    assert prompts.built[0][0].role == "system"
