"""axe-core finds nothing on any tab, light and dark, narrow too; and the page stays light."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.hands import RED, answers, ask, field, file, pick, want
from tests.web.fakes import FakeEngine, say

pytestmark = pytest.mark.browser

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
STATIC = Path(__file__).parents[2] / "web" / "static"


def violations(page: Page) -> list[str]:
    """What axe-core says of the page as it is, one line each."""
    page.evaluate(AXE)
    found = page.evaluate(
        "axe.run({ rules: { 'color-contrast-enhanced': { enabled: false } } }).then((r) => r.violations)"
    )
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_violation_on_any_tab(
    browser: Browser, live: str, engine: FakeEngine, scheme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(live)
    expect(page.locator(".example").first).to_be_visible()
    assert violations(page) == []
    page.get_by_text("What it can and cannot do").click()
    pick(page, file("red.png", RED))
    engine.script = lambda request: say('{"cat": [1, 2], "bbox_2d": [1, 1, 30, 30]}', request=request)
    want(page, "JSON")
    field(page, 1, "cat", "one of…")
    page.get_by_role("button", name="Add a field").click()
    page.get_by_text("Show the schema").click()
    ask(page, "What?")
    assert violations(page) == []
    page.get_by_role("button", name="Remove field 2").click()
    field(page, 1, "cat", "one of…", "a, b")
    ask(page, "What?")
    expect(page.locator(".boxed svg")).to_be_visible()
    page.get_by_text("Show the JSON").click()
    page.get_by_role("button", name="Edit").click()
    assert violations(page) == []
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Delete").click()
    assert violations(page) == []
    page.get_by_role("button", name="Close").click()
    page.get_by_role("tab", name="Captions").click()
    page.locator("#caption-files").set_input_files([file("red.png", RED), file("bad.png", b"no")])
    page.get_by_role("button", name="Describe", exact=True).click()
    expect(page.get_by_text("1 failed")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("tab", name="Status").click()
    page.get_by_text("All numbers").click()
    assert violations(page) == []
    context.close()


def test_no_violation_on_a_phone_in_chinese_and_nothing_sideways(browser: Browser, live: str) -> None:
    context = browser.new_context(
        viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True, locale="zh-CN"
    )
    page = context.new_page()
    page.goto(live)
    expect(page.get_by_role("button", name="拍照")).to_be_visible()
    assert page.locator("#camera").get_attribute("capture") == "environment"
    page.get_by_label("选择图片").set_input_files([file("red.png", RED)])
    for shape in ("选择", "JSON", "文字"):
        page.get_by_role("radio", name=shape).check(force=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        assert violations(page) == []
    page.get_by_label("你的问题").fill("是什么？")
    page.get_by_label("你的问题").press("Enter")
    expect(answers(page)).to_have_text("It is a cat.")
    for tab in ("提问", "批量描述", "状态"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        assert violations(page) == []
    context.close()


def test_page_is_light() -> None:
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 250_000
    long = {
        path.name: lines
        for path in files
        if path.suffix == ".js" and (lines := len(path.read_text().splitlines())) > 300
    }
    assert not long
