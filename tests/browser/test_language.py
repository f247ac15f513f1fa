"""English and Chinese: both whole, remembered, and said to the browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.hands import RED, answers, ask, file, pick
from tests.web.fakes import FakeEngine

pytestmark = pytest.mark.browser

HAN = re.compile(r"[\u4e00-\u9fff]")
STATIC = Path(__file__).parents[2] / "web" / "static"


def test_switch_is_remembered_and_switches_back(page: Page) -> None:
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.get_by_role("button", name="中文").click()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.get_by_role("heading", name="看图提问")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("就绪")
    expect(page.get_by_label("你的问题")).to_have_attribute("placeholder", "想知道什么？")
    page.reload()
    expect(page.get_by_role("heading", name="看图提问")).to_be_visible()
    page.get_by_role("button", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.get_by_role("heading", name="Ask about a picture")).to_be_visible()


def test_a_conversation_changes_its_language_too(page: Page) -> None:
    pick(page, file("red.png", RED))
    ask(page, "What?")
    expect(page.locator(".meta")).to_contain_text("picture: cached")
    page.get_by_role("button", name="中文").click()
    expect(page.locator(".meta")).to_contain_text("图片：已缓存")
    expect(answers(page)).to_have_text("It is a cat.")
    expect(page.get_by_role("button", name="复制为 curl")).to_be_visible()
    page.get_by_label("你的问题").fill("然后呢？")
    page.get_by_label("你的问题").press("Enter")
    expect(answers(page)).to_have_count(2)


def test_the_browser_says_which_language_is_first(browser: Browser, live: str) -> None:
    context = browser.new_context(locale="zh-TW")
    page = context.new_page()
    page.goto(live)
    expect(page.get_by_role("heading", name="看图提问")).to_be_visible()
    context.close()


def test_errors_of_the_server_are_explained_in_chinese(page: Page) -> None:
    page.get_by_role("button", name="中文").click()
    page.get_by_label("选择图片").set_input_files([file("fake.png", b"hello")])
    page.get_by_label("你的问题").fill("是什么？")
    page.get_by_label("你的问题").press("Enter")
    expect(page.locator(".failure")).to_contain_text("无法读取此图片，请换一张（")


def test_all_text_of_every_tab_is_chinese(page: Page, engine: FakeEngine) -> None:  # noqa: ARG001
    page.get_by_role("button", name="中文").click()
    page.get_by_role("radio", name="JSON").check(force=True)
    for tab in ("提问", "批量描述", "状态"):
        page.get_by_role("tab", name=tab).click()
        left = [text for text in page.evaluate(TEXTS) if not HAN.search(text)]
        assert [text for text in left if re.search("[A-Za-z]{3,}", text) and text not in PROPER] == []


PROPER = {"mmserve", "JSON", "English", "pocket-vl", "image/*"}
TEXTS = """() => {
    const texts = [];
    for (const node of document.querySelectorAll("main *, header *")) {
        if (!node.checkVisibility() || node.closest("[lang=en], .examples, .facts dd, .fields")) continue;
        if (node.closest("details:not([open]) > :not(summary)")) continue;
        texts.push(node.ariaLabel, node.placeholder, node.title);
        for (const child of node.childNodes) if (child.nodeType === Node.TEXT_NODE) texts.push(child.data.trim());
    }
    return texts.filter(Boolean);
}"""


def test_dictionary_is_whole_and_each_entry_is_used(page: Page) -> None:
    words = page.evaluate("import('/static/js/words.js').then((module) => module.words)")
    for key, texts in words.items():
        assert len(texts) == 2, key
        assert all(text.strip() for text in texts), key
        assert set(re.findall(r"\{\w+\}", texts[0])) == set(re.findall(r"\{\w+\}", texts[1])), key
        assert HAN.search(texts[1]) or key == "shape_json" or key.startswith("tokens"), key
    parts = [*STATIC.glob("js/*.js"), STATIC / "index.html"]
    source = "".join(part.read_text() for part in parts if part.name != "words.js")
    built = ("code_", "type_", "shape_", "flag_", "state_", "kind_", "notTaken_")  # put together from a value
    assert [
        key for key in words if f'"{key}"' not in source and f"{key}:" not in source and not key.startswith(built)
    ] == []
