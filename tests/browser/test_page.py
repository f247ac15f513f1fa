"""The page, driven as a person would: pick, drop and paste pictures, ask, ask on, stop, be told what is wrong."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from playwright.sync_api import Request as PageRequest

from mmserve.errors import QueueFull
from mmserve.types import ImagePart, Request, TextPart, TokenEvent
from tests.browser.hands import BLUE, RED, answers, ask, file, pick, transfer
from tests.web.fakes import FakeEngine, FakePrompts, Step, eventually, forever, png, say, serve
from web.service import Service

pytestmark = pytest.mark.browser


def test_first_sight(page: Page) -> None:
    expect(page.get_by_role("heading", name="Ask about a picture")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("ready")
    expect(page.get_by_text("pocket-vl")).to_be_visible()
    page.get_by_text("What it can and cannot do").click()
    expect(page.get_by_role("listitem").filter(has_text="count up to six things")).to_be_visible()
    expect(page.get_by_role("heading", name="It cannot")).to_be_visible()
    expect(page.get_by_role("cell", name="97 %")).to_be_visible()
    expect(page.get_by_role("columnheader", name="right")).to_be_visible()
    expect(page.get_by_text("Pictures far from what it was trained on get a guess.")).to_be_visible()
    expect(page.get_by_text("See the recipe <b>here</b>.")).to_be_visible()
    expect(page.get_by_text("license:")).to_have_count(0)
    assert page.title() == "pocket-vl · mmserve"


def test_pick_ask_and_ask_on(page: Page, prompts: FakePrompts) -> None:
    pick(page, file("red.png", RED))
    expect(page.get_by_role("img", name="red.png")).to_be_visible()
    expect(page.get_by_text("red.png · 64 × 48")).to_be_visible()
    ask(page, "What colour is it?")
    expect(answers(page)).to_have_text("It is a cat.")
    expect(page.locator(".meta")).to_have_text(re.compile(r"^first token \d+ ms · (\d+ tokens/s · )?picture: cached$"))
    expect(page.get_by_label("Your question")).to_have_value("")
    expect(page.get_by_label("Your question")).to_be_focused()
    expect(page.get_by_role("heading", name="Ask about a picture")).to_be_hidden()
    ask(page, "And now?")
    expect(answers(page)).to_have_count(2)
    eventually(lambda: len(prompts.built) == 2)
    assert [(message.role, message.parts) for message in prompts.built[1]] == [
        ("user", (ImagePart(RED), TextPart("What colour is it?"))),
        ("assistant", (TextPart("It is a cat."),)),
        ("user", (TextPart("And now?"),)),
    ]


def test_answer_is_shown_while_it_is_written_and_can_be_stopped(page: Page, engine: FakeEngine) -> None:
    engine.script = forever
    pick(page, file("red.png", RED))
    ask(page, "Tell me all.")
    expect(answers(page)).to_contain_text("w5 ")
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_hidden()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".meta")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    eventually(lambda: not engine.running)
    assert len(engine.aborted) == 1


def test_stop_before_the_answer_begins_keeps_the_question(page: Page, engine: FakeEngine) -> None:
    engine.script = lambda _: [3600.0]
    pick(page, file("red.png", RED))
    ask(page, "What?")
    eventually(lambda: bool(engine.running))
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").filter(has_text="Stopped")).to_be_visible()
    expect(page.get_by_label("Your question")).to_have_value("What?")
    eventually(lambda: not engine.running)


def test_drop_and_paste(page: Page, prompts: FakePrompts) -> None:
    transfer(page, "drop", "red.png", RED, "image/png")
    expect(page.get_by_role("button", name="Show Picture 1: red.png")).to_be_visible()
    expect(page.locator("#veil")).to_be_hidden()
    transfer(page, "paste", "blue.png", BLUE, "image/png")
    expect(page.get_by_role("button", name="Show Picture 2: blue.png")).to_be_visible()
    ask(page, "Which is red?")
    expect(answers(page)).to_have_text("It is a cat.")
    assert prompts.built[0][0].parts == (ImagePart(RED), ImagePart(BLUE), TextPart("Which is red?"))
    expect(page.locator(".meta")).to_contain_text("pictures: 1 of 2 cached")


def test_thumbnails_show_and_remove(page: Page, prompts: FakePrompts) -> None:
    pick(page, file("red.png", RED), file("blue.png", BLUE))
    expect(page.get_by_role("img", name="blue.png")).to_be_visible()
    page.get_by_role("button", name="Show Picture 1: red.png").click()
    expect(page.get_by_role("img", name="red.png")).to_be_visible()
    page.get_by_role("button", name="Remove Picture 1: red.png").click()
    expect(page.get_by_role("img", name="blue.png")).to_be_visible()
    ask(page, "What?")
    expect(answers(page)).to_have_text("It is a cat.")
    assert prompts.built[0][0].parts[:-1] == (ImagePart(BLUE),)
    expect(page.get_by_role("button", name=re.compile("^Remove"))).to_have_count(0)


def test_picture_added_later_goes_with_the_next_question(page: Page, prompts: FakePrompts) -> None:
    pick(page, file("red.png", RED))
    ask(page, "What?")
    expect(answers(page)).to_have_count(1)
    pick(page, file("blue.png", BLUE))
    ask(page, "And this?")
    expect(answers(page)).to_have_count(2)
    expect(answers(page).last).to_have_text("It is a cat.")
    assert prompts.built[1][-1].parts == (ImagePart(BLUE), TextPart("And this?"))


def test_a_picture_is_sent_once_and_named_by_follow_ups(page: Page, service: Service, prompts: FakePrompts) -> None:
    sent: list[tuple[str, int]] = []

    def note(request: PageRequest) -> None:
        if request.method == "POST":
            sent.append((request.url.rsplit("/", 1)[1], len(request.post_data_buffer or b"")))

    page.on("request", note)
    pick(page, file("red.png", RED), file("blue.png", BLUE))
    for count, question in enumerate(["Which is red?", "Sure?"], start=1):
        ask(page, question)
        expect(page.locator(".meta")).to_have_count(count)
    assert [name for name, _ in sent] == ["pictures", "pictures", "completions", "completions"]
    assert all(size < 700 for name, size in sent if name == "completions")
    for name in list(service.shelf._kept):  # as if the server had been started again
        service.shelf.drop(name)
    ask(page, "Really?")
    expect(page.locator(".meta")).to_have_count(3)
    assert prompts.built[2][0].parts == (ImagePart(RED), ImagePart(BLUE), TextPart("Which is red?"))
    assert [name for name, _ in sent[4:]] == ["completions", "pictures", "pictures", "completions"]


def test_a_server_that_keeps_no_pictures_gets_them_with_each_question(
    browser: Browser, service: Service, prompts: FakePrompts
) -> None:
    limits = dataclasses.replace(service.limits, max_kept_bytes=0)
    with serve(dataclasses.replace(service, limits=limits)) as url:
        page = browser.new_page()
        page.goto(url)
        pick(page, file("red.png", RED))
        for count, question in enumerate(["What?", "And now?"], start=1):
            ask(page, question)
            expect(page.locator(".meta")).to_have_count(count)
        page.close()
    assert [built[0].parts[0] for built in prompts.built] == [ImagePart(RED)] * 2


def test_new_conversation_forgets(page: Page, prompts: FakePrompts) -> None:
    pick(page, file("red.png", RED))
    ask(page, "What?")
    expect(answers(page)).to_have_text("It is a cat.")
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("Drop a picture here")).to_be_visible()
    expect(answers(page)).to_have_count(0)
    pick(page, file("blue.png", BLUE))
    ask(page, "What?")
    expect(answers(page)).to_have_text("It is a cat.")
    assert [len(messages) for messages in prompts.built] == [1, 1]


def test_example_is_asked_by_one_click(page: Page, prompts: FakePrompts) -> None:
    page.get_by_role("button", name="What colour is this square?").click()
    expect(answers(page)).to_have_text("It is a cat.")
    assert prompts.built[0][0].parts == (ImagePart(png(64, 64, "firebrick")), TextPart("What colour is this square?"))


def test_text_file_is_refused_in_words(page: Page, engine: FakeEngine) -> None:
    transfer(page, "drop", "notes.txt", b"hello", "text/plain")
    expect(page.get_by_role("alert")).to_contain_text("“notes.txt” is not a picture")
    assert not engine.requests


def test_text_file_named_png_is_refused_by_the_server_in_words_and_can_be_replaced(page: Page) -> None:
    pick(page, file("fake.png", b"hello"))
    expect(page.get_by_text("your browser cannot show this file")).to_be_visible()
    ask(page, "What is this?")
    expect(page.get_by_role("alert").filter(has_text="not a picture")).to_be_visible()
    expect(page.get_by_label("Your question")).to_have_value("What is this?")
    page.get_by_role("button", name="Remove Picture 1: fake.png").click()
    pick(page, file("red.png", RED))
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(answers(page)).to_have_text("It is a cat.")
    expect(page.locator(".failure")).to_have_count(0)


def test_limits_are_told_before_anything_is_sent(page: Page) -> None:
    expect(page.get_by_text("pocket-vl")).to_be_visible()
    pick(page, file("big.png", RED + bytes(3_000_000)))
    expect(page.get_by_role("alert")).to_contain_text("at most 1.9 MB")
    pick(page, *[file(f"{i}.png", RED) for i in range(4)])
    expect(page.get_by_role("alert")).to_contain_text("at most 3 pictures")


def test_question_without_a_picture_says_what_to_do(page: Page, engine: FakeEngine) -> None:
    ask(page, "What?")
    expect(page.get_by_role("alert")).to_contain_text("Add a picture first")
    expect(page.get_by_label("Your question")).to_have_value("What?")
    assert not engine.requests


def test_errors_of_the_server_are_shown_in_its_words(page: Page, engine: FakeEngine) -> None:
    pick(page, file("red.png", RED))
    engine.script = lambda _: [QueueFull("4096 requests wait already; try again in a moment")]
    ask(page, "What?")
    expect(page.locator(".failure")).to_have_text("4096 requests wait already; try again in a moment")
    engine.script = lambda request: [TokenEvent(request.id, text="It"), QueueFull("the device is busy")]
    ask(page, "What?")
    expect(page.locator(".failure")).to_have_text("the device is busy")
    expect(page.locator(".asked")).to_have_count(1)


def test_words_of_the_model_are_text_and_never_markup(page: Page, engine: FakeEngine) -> None:
    engine.script = lambda request: say("<img src=x onerror=alert(1)>", " <b>bold</b>\nline 2 🐈", request=request)
    pick(page, file("red.png", RED))
    ask(page, "<i>What?</i>")
    expect(answers(page)).to_have_text("<img src=x onerror=alert(1)> <b>bold</b>\nline 2 🐈")
    expect(page.locator(".asked p")).to_have_text("<i>What?</i>")


def test_page_waits_for_a_model_that_loads(page: Page, engine: FakeEngine) -> None:
    engine.ready = False
    page.reload()
    expect(page.get_by_role("status")).to_contain_text("not ready yet")
    engine.ready = True
    expect(page.get_by_role("status")).to_have_text("ready")


def test_keyboard_alone(page: Page, prompts: FakePrompts) -> None:
    expect(page.locator(".example").first).to_be_visible()  # fetched: an early Tab would find the page without them
    focused = []
    for _ in range(24):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    wanted = ["skip", "files", "example", "question", "send"]
    assert [name for name in dict.fromkeys(focused) if name in wanted] == wanted
    pick(page, file("red.png", RED))
    page.get_by_label("Your question").focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("It is a cat.")
    assert prompts.built[0][0].parts[-1] == TextPart("one\ntwo")


def test_long_answers_scroll_and_nothing_is_wider_than_the_window(page: Page, engine: FakeEngine) -> None:
    engine.script = lambda request: say(*["a" * 40 + " "] * 200, "x" * 500, request=request)
    for width, height in ((1280, 800), (390, 844), (320, 600)):
        page.set_viewport_size({"width": width, "height": height})
        page.reload()
        pick(page, file("a very long name " * 10 + ".png", RED), file("blue.png", BLUE))
        ask(page, "Tell me all about " + "w" * 300)
        expect(answers(page)).to_contain_text("x" * 500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        expect(page.locator(".meta")).to_be_in_viewport()
        expect(page.get_by_label("Your question")).to_be_in_viewport()


def test_narrow_window(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    drop, question = page.locator("#drop"), page.get_by_label("Your question")
    expect(drop).to_be_in_viewport()
    expect(question).to_be_in_viewport()
    pick(page, file("red.png", RED))
    ask(page, "What?")
    expect(answers(page)).to_be_in_viewport()


def test_dark_mode_is_dark_and_readable(browser: Browser, live: str) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(live)
    brightness = """(selector) => {
        const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const style = getComputedStyle(document.querySelector(selector));
        const mean = (c) => (c[0] + c[1] + c[2]) / 3;
        return [mean(numbers(style.color)), mean(numbers(style.backgroundColor))];
    }"""
    ink, paper = page.evaluate(brightness, "body")
    assert paper < 50 < 200 < ink
    context.close()


def test_contrast_of_all_text_is_enough(browser: Browser, live: str, engine: FakeEngine) -> None:
    """WCAG AA, 4.5 : 1, over what a question, an answer and an error show, light and dark."""
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
        page = context.new_page()
        page.goto(live)
        expect(page.get_by_role("status")).to_have_text("ready")
        assert page.evaluate(CONTRAST) == []
        engine.script = lambda request: say("a", request=request)
        pick(page, file("red.png", RED))
        ask(page, "What?")
        expect(answers(page)).to_have_text("a")
        engine.script = lambda _: [QueueFull("full")]
        ask(page, "What?")
        expect(page.locator(".failure")).to_be_visible()
        assert page.evaluate(CONTRAST) == []
        context.close()


CONTRAST = """() => {
    const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
    const linear = (v) => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (node) => {
        for (let n = node; n; n = n.parentElement) {
            const c = parse(getComputedStyle(n).backgroundColor);
            if (c[3] === 1) return c;
        }
        return [255, 255, 255];
    };
    const low = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!node.checkVisibility() || node.closest("script, noscript, :disabled")) continue;
        if (!walker.currentNode.data.trim()) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push(walker.currentNode.data.trim());
    }
    return low;
}"""


def test_every_control_has_a_name(page: Page) -> None:
    pick(page, file("red.png", RED))
    ask(page, "What?")
    expect(answers(page)).to_have_text("It is a cat.")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, summary")]
            .filter((node) => !(node.hidden || node.ariaLabel || node.textContent.trim() || node.labels?.length))
            .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("img:not([alt])").count() == 0


def test_slow_answer_shows_that_it_is_waited_for(page: Page, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield 0.5
        yield from say("done", request=request)

    engine.script = script
    pick(page, file("red.png", RED))
    started = time.monotonic()
    ask(page, "What?")
    expect(page.get_by_label("waiting for the answer")).to_be_visible()
    expect(answers(page)).to_have_text("done")
    expect(page.get_by_label("waiting for the answer")).to_have_count(0)
    assert time.monotonic() - started >= 0.5


def test_the_page_of_a_server_without_examples_shows_none(browser: Browser, service: Service) -> None:
    with serve(dataclasses.replace(service, examples=None)) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.get_by_role("status")).to_have_text("ready")
        expect(page.get_by_text("Or try one of these")).to_be_hidden()
        page.close()
