"""Boxes in answers: Qwen-VL's spellings, how they lie over the picture, and what the reader sees of them as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from mmserve.types import Request, TextPart
from tests.browser.hands import RED, answers, ask, catch_copies, copied, file, pick
from tests.web.fakes import FakeEngine, FakePrompts, Step, png, say

pytestmark = pytest.mark.browser

PARSE = """([text, size, seen]) => import('/static/js/boxes.js').then(({ parseBoxes, words, readable, plain }) => ({
    boxes: parseBoxes(text, size, seen),
    words: words(text).map((part) => part.label === undefined ? part : `[${part.label}]`).join(""),
    growing: readable(text),
    plain: plain(text),
}))"""


def box(label: str, *numbers: float, shade: int = 0) -> dict[str, Any]:
    return {"label": label, "shade": shade, **dict(zip(("x", "y", "width", "height"), numbers, strict=True))}


def ref(label: str) -> str:
    return f"<|object_ref_start|>{label}<|object_ref_end|>"


def marked(numbers: str, kind: str = "box") -> str:
    return f"<|{kind}_start|>{numbers}<|{kind}_end|>"


CASES: list[tuple[str, list[dict[str, Any]]]] = [
    (ref("the cat") + marked("(100,200),(300,600)"), [box("the cat", 20, 20, 40, 40)]),
    (
        f"Here: {ref('a dog')}{marked('(0,0),(500,500)')}{marked('(500,500),(1000,1000)')} and {ref('猫')}"
        + marked("(0,500),(500,1000)"),
        [
            box("a dog", 0, 0, 100, 50),
            box("a dog", 100, 50, 100, 50),
            box("猫", 0, 50, 100, 50, shade=1),
        ],
    ),
    (ref("sign") + marked("(100,100),(300,200),(280,400),(120,300)", "quad"), [box("sign", 20, 10, 40, 30)]),
    ("cat (0,0),(1000,1000) and (500, 500), (750, 1000)", [box("", 0, 0, 200, 100), box("", 100, 50, 50, 50)]),
    ("(10,10),(10,90)", []),
    ("(10,10),(2000,90)", []),
    ("It is a cat, 3 of (4, 5).", []),
    (f"{ref('a cat')} without a place, {ref('or two')}", []),
    ("<|box_start|>(10,10)", []),
    ("null", []),
    ("", []),
]


def test_qwens_boxes_are_read(page: Page) -> None:
    for text, wanted in CASES:
        assert page.evaluate(PARSE, [text, {"width": 200, "height": 100}, None])["boxes"] == wanted, text


def test_json_is_in_pixels_of_the_picture_as_the_model_saw_it(page: Page) -> None:
    for text, wanted in [
        ('[{"bbox_2d": [10, 20, 60, 40], "label": "cat"}]', [box("cat", 10, 20, 50, 20)]),
        ('Here:\n```json\n{"found": [{"bbox_2d": [60.5, 40, 10, 20]}, {"n": 1}]}\n```', [box("", 10, 20, 50.5, 20)]),
        ('{"bbox_2d": [-5, 50, 500, 500], "name": "edge"}', [box("edge", 0, 50, 200, 50)]),
        ('{"bbox_2d": [1, 2, 3]}', []),
        ('{"bbox_2d": ["a", 2, 3, 4]}', []),
        ('{"a": 1}', []),
    ]:
        assert page.evaluate(PARSE, [text, {"width": 200, "height": 100}, None])["boxes"] == wanted, text
    text = '[{"bbox_2d": [40, 10, 80, 20], "label": "cat"}, {"bbox_2d": [0, 0, 8, 4], "label": "dog"}]'
    scaled = page.evaluate(PARSE, [text, {"width": 200, "height": 100}, [400, 50]])["boxes"]
    assert scaled == [box("cat", 20, 20, 20, 20), box("dog", 0, 0, 4, 8, shade=1)]


@pytest.mark.parametrize(
    ("text", "words", "plain"),
    [
        (ref("a dog") + marked("(1,2),(30,40)") + ".", "[a dog].", "a dog(1,2),(30,40)."),
        (ref("dogs") + marked("(1,2),(3,4)") + marked("(5,6),(7,8)"), "[dogs]", "dogs(1,2),(3,4)(5,6),(7,8)"),
        (marked("(1,2),(30,40)"), "(1,2),(30,40)", "(1,2),(30,40)"),
        (f"{ref('it')} is <|im_end|><|box_end|>there", "it is there", "it is there"),
        ("It is <b>bold</b> <|and|> (3,4).", "It is <b>bold</b> <|and|> (3,4).", "It is <b>bold</b> <|and|> (3,4)."),
    ],
)
def test_readers_see_names_and_programs_get_numbers(page: Page, text: str, words: str, plain: str) -> None:
    seen = page.evaluate(PARSE, [text, {"width": 10, "height": 10}, None])
    assert (seen["words"], seen["plain"]) == (words, plain)
    assert seen["growing"] == words.replace("[", "").replace("]", "")


def test_what_is_still_being_written_shows_no_half_of_a_box(page: Page) -> None:
    whole = f"See {ref('a dog')}{marked('(1,2),(30,40)')}, there"
    size = {"width": 1, "height": 1}
    grown = [page.evaluate(PARSE, [whole[:end], size, None])["growing"] for end in (25, 50, 60, 80)]
    assert grown == ["See a", "See a dog", "See a dog", "See a dog"]


def test_boxes_lie_over_the_picture_and_their_names_in_the_text(
    page: Page, engine: FakeEngine, prompts: FakePrompts
) -> None:
    answer = f"{ref('<b>cat</b>')}{marked('(250,0),(750,500)')} and {ref('dog')}{marked('(0,500),(250,1000)')}"

    def script(request: Request) -> Iterator[Step]:
        yield from say(*(answer[at : at + 7] for at in range(0, len(answer), 7)), request=request)

    engine.script = script
    pick(page, file("old.png", RED), file("wide.png", png(200, 100, "navy")))
    ask(page, "Where is the cat?")
    drawing = page.get_by_role("img", name="2 marked in wide.png: <b>cat</b>, dog")
    expect(drawing).to_be_visible()
    expect(drawing.locator("text")).to_have_text(["<b>cat</b>", "dog"])
    expect(answers(page)).to_have_text("<b>cat</b> and dog")
    expect(page.locator(".thing")).to_have_text(["<b>cat</b>", "dog"])
    assert engine.requests[0].sampling.skip_special_tokens is False
    picture = page.locator(".boxed img").bounding_box()
    first = drawing.locator("rect").first.bounding_box()
    assert picture is not None
    assert first is not None
    assert abs((first["x"] - picture["x"]) / picture["width"] - 0.25) < 0.02
    assert abs((first["x"] + first["width"] - picture["x"]) / picture["width"] - 0.75) < 0.02
    assert abs((first["y"] + first["height"] - picture["y"]) / picture["height"] - 0.5) < 0.03
    catch_copies(page)
    page.get_by_role("button", name="Copy", exact=True).click()
    assert copied(page) == "<b>cat</b>(250,0),(750,500) and dog(0,500),(250,1000)"
    ask(page, "And now?")
    expect(page.locator(".meta")).to_have_count(2)
    assert prompts.built[1][1].parts == (TextPart(copied(page)),)


def test_boxes_in_json_are_drawn_at_the_models_scale_and_again_from_the_browsers_memory(
    page: Page, engine: FakeEngine
) -> None:
    """The fake model sees pictures at twice their size."""
    answer = '[{"bbox_2d": [100, 0, 300, 100], "label": "cat"}]'
    engine.script = lambda request: say(answer, request=request)
    pick(page, file("wide.png", png(200, 100, "navy")))
    ask(page, "Where is the cat?")
    frame = page.locator(".boxed rect")
    expect(frame).to_have_attribute("x", "50")
    expect(frame).to_have_attribute("width", "100")
    expect(page.locator(".answer-body table")).to_contain_text("cat")
    page.reload()
    page.get_by_role("button", name="Conversations").click()
    page.locator(".kept .title").click()
    expect(frame).to_have_attribute("x", "50")


def test_answers_without_boxes_have_no_drawing(page: Page, engine: FakeEngine) -> None:
    engine.script = lambda request: say("There are 3 cats.", request=request)
    pick(page, file("red.png", RED))
    ask(page, "How many?")
    expect(page.locator(".meta")).to_have_count(1)
    expect(page.locator(".boxed")).to_have_count(0)
