"""The status tab: charts of what the server is doing, and emptying its cache."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from playwright.sync_api import Page, expect

from tests.web.fakes import FakeEngine, eventually

pytestmark = pytest.mark.browser


class Busy(FakeEngine):
    """Writes 50 tokens between any two looks, half of each prompt reused, a quarter of the cache taken."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def stats(self) -> Mapping[str, float]:
        self.looks += 1
        return {
            "generated_tokens": 50.0 * self.looks,
            "prefilled_tokens": 10.0 * self.looks,
            "prompt_tokens": 20.0 * self.looks,
            "cached_tokens": 10.0 * self.looks,
            "requests_running": 3.0,
            "requests_waiting": 2.0,
            "requests_finished": 1234.0,
            "slots_total": 400.0,
            "slots_cached": 100.0,
            "encoder_cache_pictures": 7.0,
        }


@pytest.fixture
def engine() -> Busy:
    return Busy()


def test_charts_move(page: Page) -> None:
    page.get_by_role("tab", name="Status").click()
    expect(page.get_by_role("img", name="Requests running and waiting: 5")).to_be_visible()
    expect(page.get_by_role("img", name="Cache in use: 25 %")).to_be_visible()
    expect(page.get_by_role("img", name="Share of prompts reused: 50 %")).to_be_visible()
    expect(page.get_by_role("img", name="Pictures in the cache: 7")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile(r"Tokens written per second: (4\d|50|5\d)$"))).to_be_visible()
    expect(page.locator(".facts")).to_contain_text("Answered1,234")
    page.get_by_text("All numbers").click()
    expect(page.get_by_role("row", name="encoder_cache_pictures 7")).to_be_visible()


def test_server_is_not_looked_at_while_the_tab_is_not_shown(page: Page, engine: Busy) -> None:
    page.get_by_role("tab", name="Status").click()
    eventually(lambda: engine.looks > 2)
    page.get_by_role("tab", name="Questions").click()
    page.wait_for_timeout(200)
    before = engine.looks
    page.wait_for_timeout(1300)
    assert engine.looks == before


def test_flush(page: Page, engine: Busy) -> None:
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("button", name="Empty the cache").click()
    expect(page.locator("#flushed")).to_have_text("Emptied: 7 tokens.")
    assert engine.flushed == 1


def test_lost_server_is_said_and_found_again(page: Page) -> None:
    page.route("**/server_info", lambda route: route.abort())
    page.get_by_role("tab", name="Status").click()
    expect(page.locator("#panel-status").get_by_role("alert")).to_have_text(
        "The server cannot be reached. Is it still running?"
    )
    page.unroute("**/server_info")
    expect(page.locator("#panel-status").get_by_role("alert")).to_be_hidden()


def test_upper_ends_are_round_numbers(page: Page) -> None:
    ask = "(values) => import('/static/js/chart.js').then((module) => values.map(module.niceCeiling))"
    assert page.evaluate(ask, [0, 0.3, 1, 1.1, 3, 5, 5.1, 99, 101, 4321]) == [1, 1, 1, 2, 5, 5, 10, 100, 200, 5000]


def test_tabs_are_moved_through_by_arrows(page: Page) -> None:
    page.get_by_role("tab", name="Questions").focus()
    for key, name in (
        ("ArrowRight", "Captions"),
        ("End", "Status"),
        ("ArrowRight", "Questions"),
        ("ArrowLeft", "Status"),
    ):
        page.keyboard.press(key)
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
        expect(page.get_by_role("tabpanel")).to_have_count(1)
