"""The page at a server with API keys, under its own security headers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mmserve.keys import add_key, new_key
from tests.browser.hands import RED, answers, ask, file, pick
from tests.web.fakes import FakeEngine, serve
from web.access.ring import KeyRing
from web.safety import Safety
from web.service import Service

pytestmark = pytest.mark.browser


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    made = {"alice": new_key("alice"), "root": new_key("root", admin=True)}
    for key, _ in made.values():
        add_key(tmp_path / "keys.json", key)
    return {name: secret for name, (_, secret) in made.items()}


@pytest.fixture
def live(service: Service, secrets: dict[str, str], tmp_path: Path) -> Iterator[str]:
    assert secrets
    with serve(dataclasses.replace(service, safety=Safety(KeyRing(tmp_path / "keys.json")))) as url:
        yield url


def unlock(page: Page, secret: str) -> None:
    dialog = page.get_by_role("dialog", name="This server wants an API key")
    dialog.get_by_label("API key", exact=True).fill(secret)
    page.keyboard.press("Enter")


def test_the_key_is_asked_for_once_and_everything_works_with_it(page: Page, secrets: dict[str, str]) -> None:
    unlock(page, "mms-wrong")
    expect(page.get_by_text("The server did not take this key")).to_be_visible()
    unlock(page, secrets["alice"])
    expect(page.get_by_text("pocket-vl").first).to_be_visible()
    expect(page.get_by_text("A very small model")).to_be_visible()
    pick(page, file("red.png", RED))
    ask(page, "What?")
    expect(answers(page)).to_have_text("It is a cat.")


def test_a_users_key_may_not_flush_and_an_admins_may(page: Page, secrets: dict[str, str], engine: FakeEngine) -> None:
    unlock(page, secrets["alice"])
    expect(page.get_by_text("pocket-vl").first).to_be_visible()
    page.get_by_role("tab", name="Status").click()
    flush = page.get_by_role("button", name="Empty the cache")
    flush.click()
    expect(page.get_by_role("dialog", name="This server wants an API key")).to_be_visible()
    assert engine.flushed == 0
    unlock(page, secrets["root"])
    expect(page.locator("#flushed")).not_to_be_empty()
    assert engine.flushed == 1
