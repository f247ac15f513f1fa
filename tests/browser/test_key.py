"""A server that wants an API key: the page asks for it, once, and sends it."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.hands import RED, answers, ask, file, pick

pytestmark = pytest.mark.browser


def lock(page: Page, status: int = 401) -> list[str]:
    """Stands before the server like a proxy that knows one key; returns the keys that were tried."""
    expect(page.get_by_text("pocket-vl").first).to_be_visible()  # what the page asks at first has come through
    tried: list[str] = []

    def guard(route: Route) -> None:
        given = route.request.headers.get("authorization", "")
        tried.append(given)
        if given == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=status, body="no")

    page.route("**/v1/**", guard)
    return tried


@pytest.mark.parametrize("status", [401, 403])
def test_key_is_asked_for_kept_and_sent(page: Page, status: int) -> None:
    tried = lock(page, status)
    pick(page, file("red.png", RED))
    ask(page, "What?")
    dialog = page.get_by_role("dialog", name="This server wants an API key")
    expect(dialog.get_by_label("API key", exact=True)).to_be_focused()
    dialog.get_by_label("API key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("The server did not take this key")).to_be_visible()
    dialog.get_by_label("API key", exact=True).fill("right")
    dialog.get_by_role("button", name="Use this key").click()
    expect(answers(page)).to_have_text("It is a cat.")
    assert tried == ["", "Bearer wrong", "Bearer right", "Bearer right"]  # the picture is sent first
    page.reload()
    expect(page.get_by_text("pocket-vl").first).to_be_visible()
    expect(dialog).to_be_hidden()
    assert set(tried[4:]) == {"Bearer right"}


def test_without_a_key_it_is_said_what_to_do(page: Page) -> None:
    lock(page)
    pick(page, file("red.png", RED))
    ask(page, "What?")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".failure")).to_have_text("The server wants an API key. Ask again to type it in.")
    expect(page.get_by_label("Your question")).to_have_value("What?")


def test_many_refusals_ask_once(page: Page) -> None:
    lock(page)
    page.get_by_role("tab", name="Captions").click()
    page.locator("#caption-files").set_input_files([file(f"{i}.png", RED) for i in range(6)])
    page.get_by_role("button", name="Describe", exact=True).click()
    page.get_by_label("API key", exact=True).fill("right")
    page.keyboard.press("Enter")
    expect(page.get_by_text("6 of 6 described")).to_be_visible()
