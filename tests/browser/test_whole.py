"""The page over the real engine with the embedded model: whole flows, in both languages."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from tests.browser.hands import answers, ask, field, want
from tests.web.fakes import serve
from web.service import ServedModel, Service

pytestmark = pytest.mark.browser

EXAMPLES = Path(__file__).parents[2] / "mmserve" / "assets" / "examples"


@pytest.fixture(scope="module")
def real(pocket_vl: Checkpoint) -> Iterator[str]:
    """The base URL of a server with the embedded model."""
    checkpoint = pocket_vl
    client = LocalEngineClient(build_engine(checkpoint, EngineConfig(device="cpu")))
    limits = Limits()
    prompts = PromptBuilder(checkpoint, limits)
    service = Service(
        ServedModel("pocket-vl"), prompts, client, checkpoint.max_model_len, limits=limits, examples=EXAMPLES
    )
    try:
        with serve(service) as url:
            yield url
    finally:
        # In a thread of its own: Playwright's loop runs in this one.
        closer = threading.Thread(target=lambda: asyncio.run(client.close()))
        closer.start()
        closer.join()


@pytest.fixture
def whole(browser: Browser, real: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.goto(real)
    yield page
    context.close()


def test_ask_choose_and_fill_in_fields_in_one_conversation(whole: Page) -> None:
    whole.locator("#files").set_input_files(EXAMPLES / "red-circle.png")
    ask(whole, "What color is the circle?")
    expect(whole.locator(".meta")).to_have_count(1)
    expect(answers(whole)).to_have_text("red")
    want(whole, "Choice")
    whole.get_by_label("Possible answers").fill("red, blue, black")
    whole.get_by_role("button", name="New conversation").click()
    whole.locator("#files").set_input_files(EXAMPLES / "red-circle.png")
    ask(whole, "What color is the circle?")
    expect(whole.get_by_role("list", name="Probabilities").get_by_role("listitem").first).to_have_text(
        re.compile(r"^red\d+ %$")
    )
    expect(whole.locator(".meta")).to_contain_text("picture: cached")
    want(whole, "JSON")
    field(whole, 1, "color", "one of…", "red, blue")
    whole.get_by_role("button", name="Add a field").click()
    field(whole, 2, "round", "yes or no")
    ask(whole, "Answer in JSON.")
    expect(whole.locator(".answer-body table")).to_have_text(re.compile(r"^color(red|blue)round(yes|no)$"))
    expect(whole.locator(".flag")).to_have_count(0)


def test_example_in_chinese(whole: Page) -> None:
    whole.get_by_role("button", name="中文").click()
    whole.get_by_role("button", name="What color is the circle?").click()
    expect(answers(whole)).to_have_text("red")
    expect(whole.locator(".meta")).to_contain_text("首字")
    whole.get_by_role("button", name="历史对话").click()
    expect(whole.locator(".kept .title span")).to_have_text("What color is the circle?")


def test_captions_with_a_word_that_must_be_in_them(whole: Page) -> None:
    pictures = sorted(EXAMPLES.glob("*.png"))
    whole.get_by_role("tab", name="Captions").click()
    whole.locator("#caption-files").set_input_files(pictures)
    whole.get_by_label("Words that must be in it").fill("picture")
    whole.get_by_role("button", name="Describe", exact=True).click()
    expect(whole.get_by_text(f"{len(pictures)} of {len(pictures)} described")).to_be_visible(timeout=30_000)
    with whole.expect_download() as started:
        whole.get_by_role("button", name="Download .txt files (zip)").click()
    with zipfile.ZipFile(started.value.path()) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert sorted(texts) == [f"{picture.stem}.txt" for picture in pictures]
    assert all(re.search(r"\bpicture\b", text) for text in texts.values())


def test_status_shows_the_engine_and_empties_its_cache(whole: Page, real: str) -> None:
    whole.get_by_role("tab", name="Status").click()
    whole.get_by_role("button", name="Empty the cache").click()
    expect(whole.locator("#flushed")).to_have_text(re.compile(r"^Emptied: [\d,]+ tokens\.$"))
    whole.get_by_text("All numbers").click()
    expect(whole.get_by_role("row", name=re.compile("^slots_cached 0$"))).to_be_visible()
    info = json.loads(whole.request.get(f"{real}/server_info").body())
    assert info["stats"]["slots_cached"] == 0
