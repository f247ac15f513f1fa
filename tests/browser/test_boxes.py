"""Boxes in answers: both of Qwen-VL's spellings, and how they lie over the picture."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.hands import RED, ask, file, pick
from tests.web.fakes import FakeEngine, png, say

pytestmark = pytest.mark.browser

PARSE = "([text, size]) => import('/static/js/boxes.js').then((module) => module.parseBoxes(text, size))"


def box(label: str, *numbers: float) -> dict[str, Any]:
    return {"label": label, **dict(zip(("x", "y", "width", "height"), numbers, strict=True))}


CASES: list[tuple[str, list[dict[str, Any]]]] = [
    (
        "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(100,200),(300,600)<|box_end|>",
        [box("the cat", 20, 20, 40, 40)],
    ),
    ("cat (0,0),(1000,1000) and (500, 500), (750, 1000)", [box("", 0, 0, 200, 100), box("", 100, 50, 50, 50)]),
    ('[{"bbox_2d": [10, 20, 60, 40], "label": "cat"}]', [box("cat", 10, 20, 50, 20)]),
    ('Here:\n```json\n{"found": [{"bbox_2d": [60.5, 40, 10, 20]}, {"n": 1}]}\n```', [box("", 10, 20, 50.5, 20)]),
    ('{"bbox_2d": [-5, 50, 500, 500], "name": "edge"}', [box("edge", 0, 50, 200, 50)]),
    ("(10,10),(10,90)", []),
    ("(10,10),(2000,90)", []),
    ('{"bbox_2d": [1, 2, 3]}', []),
    ('{"bbox_2d": ["a", 2, 3, 4]}', []),
    ("It is a cat, 3 of (4, 5).", []),
    ('{"a": 1}', []),
    ("null", []),
    ("", []),
]


def test_both_spellings_are_read(page: Page) -> None:
    for text, wanted in CASES:
        assert page.evaluate(PARSE, [text, {"width": 200, "height": 100}]) == wanted, text


def test_boxes_lie_over_the_picture(page: Page, engine: FakeEngine) -> None:
    answer = '[{"bbox_2d": [50, 0, 150, 50], "label": "<b>cat</b>"}, {"bbox_2d": [0, 50, 50, 100]}]'
    engine.script = lambda request: say(answer, request=request)
    pick(page, file("old.png", RED), file("wide.png", png(200, 100, "navy")))
    ask(page, "Where is the cat?")
    drawing = page.get_by_role("img", name="2 marked in wide.png: <b>cat</b>, unnamed")
    expect(drawing).to_be_visible()
    expect(drawing.locator("text")).to_have_text("<b>cat</b>")
    picture = page.locator(".boxed img").bounding_box()
    first = drawing.locator("rect").first.bounding_box()
    assert picture is not None
    assert first is not None
    assert abs((first["x"] - picture["x"]) / picture["width"] - 0.25) < 0.02
    assert abs((first["x"] + first["width"] - picture["x"]) / picture["width"] - 0.75) < 0.02
    assert abs((first["y"] + first["height"] - picture["y"]) / picture["height"] - 0.5) < 0.03


def test_answers_without_boxes_have_no_drawing(page: Page, engine: FakeEngine) -> None:
    engine.script = lambda request: say("There are 3 cats.", request=request)
    pick(page, file("red.png", RED))
    ask(page, "How many?")
    expect(page.locator(".meta")).to_have_count(1)
    expect(page.locator(".boxed")).to_have_count(0)
