"""Changing what was asked, and conversations that the browser keeps."""

from __future__ import annotations

import base64
import json
import re

import pytest
from playwright.sync_api import Browser, Page, expect

from mmserve.types import ImagePart, TextPart
from tests.browser.hands import BLUE, RED, answers, ask, field, file, pick, want
from tests.web.fakes import FakeEngine, FakePrompts, eventually, say

pytestmark = pytest.mark.browser


def talk(page: Page, *questions: str) -> None:
    for question in questions:
        before = answers(page).count()
        ask(page, question)
        expect(answers(page)).to_have_count(before + 1)
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()


def test_edit_replaces_the_question_and_what_follows(page: Page, prompts: FakePrompts) -> None:
    pick(page, file("red.png", RED))
    talk(page, "one", "two")
    pick(page, file("blue.png", BLUE))
    talk(page, "three")
    page.get_by_role("button", name="Edit").nth(1).click()
    expect(page.get_by_text("Editing: asking again replaces")).to_be_visible()
    box = page.get_by_label("Your question")
    expect(box).to_have_value("two")
    expect(box).to_be_focused()
    ask(page, "zwei")
    expect(page.locator(".asked > p")).to_have_text(["one", "zwei"])
    expect(answers(page)).to_have_count(2)
    eventually(lambda: len(prompts.built) == 4)
    assert [message.parts for message in prompts.built[-1]] == [
        (ImagePart(RED), TextPart("one")),
        (TextPart("It is a cat."),),
        (TextPart("zwei"),),
    ]
    expect(page.get_by_role("button", name=re.compile("^Show Picture"))).to_have_count(1)


def test_edit_of_the_first_question_may_change_its_picture(page: Page, prompts: FakePrompts) -> None:
    pick(page, file("red.png", RED))
    talk(page, "one")
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("button", name="Remove Picture 1: red.png").click()
    pick(page, file("blue.png", BLUE))
    page.get_by_role("button", name="Ask", exact=True).click()
    eventually(lambda: len(prompts.built) == 2)
    assert prompts.built[-1][0].parts == (ImagePart(BLUE), TextPart("one"))


def test_edit_can_be_given_up(page: Page) -> None:
    pick(page, file("red.png", RED))
    talk(page, "one", "two")
    page.get_by_role("button", name="Edit").first.click()
    page.keyboard.press("Escape")
    expect(page.get_by_text("Editing: asking again replaces")).to_be_hidden()
    expect(page.get_by_label("Your question")).to_have_value("")
    expect(page.get_by_role("button", name=re.compile("^Remove Picture"))).to_have_count(0)
    expect(answers(page)).to_have_count(2)


def test_retry_asks_again_in_the_same_shape(page: Page, engine: FakeEngine, prompts: FakePrompts) -> None:
    engine.script = lambda request: say('{"name": "a"}', request=request)
    pick(page, file("red.png", RED))
    want(page, "JSON")
    field(page, 1, "name")
    ask(page, "What?")
    expect(page.locator(".answer-body table")).to_have_text("namea")
    want(page, "Text")
    engine.script = lambda request: say('{"name": "b"}', request=request)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".answer-body table")).to_have_text("nameb")
    assert prompts.built[0] == prompts.built[1]
    assert engine.requests[0].constraint == engine.requests[1].constraint


def test_conversations_are_kept_opened_renamed_and_deleted(page: Page, prompts: FakePrompts) -> None:
    pick(page, file("red.png", RED))
    talk(page, "What colour is it?", "Sure?")
    page.get_by_role("button", name="New conversation").click()
    pick(page, file("blue.png", BLUE))
    talk(page, "And this?")
    page.reload()
    expect(answers(page)).to_have_count(0)
    page.get_by_role("button", name="Conversations").click()
    titles = page.locator(".kept .title span")
    expect(titles).to_have_text(["And this?", "What colour is it?"])
    page.get_by_role("button", name="Rename: What colour is it?").click()
    page.get_by_label("New title").fill("The red one")
    page.keyboard.press("Enter")
    expect(titles).to_have_text(["And this?", "The red one"])
    titles.last.click()
    expect(page.locator(".asked > p")).to_have_text(["What colour is it?", "Sure?"])
    expect(page.get_by_role("img", name="red.png").first).to_be_visible()
    expect(page.locator(".meta").first).to_contain_text("picture: cached")
    talk(page, "Really?")
    assert prompts.built[-1][0].parts == (ImagePart(RED), TextPart("What colour is it?"))
    assert len(prompts.built[-1]) == 5
    page.get_by_role("button", name="Conversations").click()
    expect(titles).to_have_text(["The red one", "And this?"])
    page.get_by_role("button", name="Delete: The red one").click()
    expect(titles).to_have_count(2)
    page.get_by_role("button", name="Really delete? The red one").click()
    expect(titles).to_have_text(["And this?"])
    page.get_by_role("button", name="Close").click()
    expect(answers(page)).to_have_count(0)
    assert page.evaluate(COUNT) == [1, 1]


COUNT = """async () => {
    const request = indexedDB.open("mmserve");
    const database = await new Promise((resolve) => { request.onsuccess = () => resolve(request.result); });
    const count = (name) => new Promise((resolve) => {
        const counted = database.transaction(name).objectStore(name).count();
        counted.onsuccess = () => resolve(counted.result);
    });
    return [await count("conversations"), await count("pictures")];
}"""


def test_export_is_in_openais_shape_with_the_pictures(page: Page) -> None:
    pick(page, file("red.png", RED))
    talk(page, "What colour?")
    page.get_by_role("button", name="Conversations").click()
    with page.expect_download() as started:
        page.get_by_role("button", name="Export: What colour?").click()
    assert started.value.suggested_filename == "What-colour-.json"
    whole = json.loads(started.value.path().read_text())
    assert whole["title"] == "What colour?"
    assert [message["role"] for message in whole["messages"]] == ["user", "assistant"]
    [image, text] = whole["messages"][0]["content"]
    assert base64.b64decode(image["image_url"]["url"].split(",")[1]) == RED
    assert text == {"type": "text", "text": "What colour?"}
    assert whole["messages"][1]["content"] == "It is a cat."


def test_store_is_bounded_in_number_and_in_bytes(page: Page) -> None:
    """The oldest go; the one that is being kept stays, whatever its size."""
    kept = page.evaluate(
        """async () => {
            const { MOST, Store } = await import("/static/js/store.js");
            Object.assign(MOST, { conversations: 3, bytes: 100 });
            const store = new Store();
            const save = (id, size) => {
                const pictures = [{ id: `${id}-p`, name: "x", file: new Blob(["x".repeat(size)]) }];
                const turns = [{ question: "?", answer: { text: "" }, pictures }];
                return store.save({ id, title: id, created: 0, system: "", turns });
            };
            const ids = async () => (await store.list()).map(({ id }) => id);
            const seen = [];
            for (const [id, size] of [["a", 1], ["b", 1], ["c", 1], ["d", 1], ["e", 98], ["f", 500]]) {
                await save(id, size);
                await new Promise((resolve) => setTimeout(resolve, 3));
                seen.push(await ids());
            }
            return seen;
        }"""
    )
    assert kept == [["a"], ["b", "a"], ["c", "b", "a"], ["d", "c", "b"], ["e", "d", "c"], ["f"]]


def test_page_works_where_the_browser_keeps_nothing(browser: Browser, live: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(
        """for (const name of ["indexedDB", "localStorage", "sessionStorage"])
            Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });"""
    )
    page.goto(live)
    pick(page, file("red.png", RED))
    talk(page, "What?")
    expect(page.locator(".notice:visible")).to_have_count(0)
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_text("This browser keeps nothing for this page")).to_be_visible()
    context.close()
