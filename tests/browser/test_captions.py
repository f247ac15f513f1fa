"""The captioning tab: many pictures in, captions out, by hand and by the model."""

from __future__ import annotations

import csv
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mmserve.errors import QueueFull
from mmserve.grammar.spec import Words
from mmserve.types import ImagePart, Request, TextPart
from tests.browser.hands import BLUE, RED, file, transfer
from tests.web.fakes import FakeEngine, FakePrompts, Step, eventually, forever, png, say

pytestmark = pytest.mark.browser

UMLAUT = "müller, der.png"


@pytest.fixture
def tab(page: Page) -> Page:
    page.get_by_role("tab", name="Captions").click()
    return page


def give(tab: Page, *names: str) -> None:
    tab.locator("#caption-files").set_input_files([file(name, png(8, 8 + i)) for i, name in enumerate(names)])


def describe(tab: Page) -> None:
    tab.get_by_role("button", name="Describe", exact=True).click()


def fetch(tab: Page, name: str) -> Path:
    with tab.expect_download() as started:
        tab.get_by_role("button", name=name).click()
    return started.value.path()


def test_pictures_are_described_edited_and_taken_away(tab: Page, engine: FakeEngine, prompts: FakePrompts) -> None:
    give(tab, "cat.png", UMLAUT, "dog.jpeg")
    tab.get_by_label("What to ask about each picture").fill("Describe {name}: {other}.")
    tab.get_by_label("Words that must be in it").fill("red, 猫")
    tab.get_by_label("It starts with").fill("a ")
    tab.get_by_label("Most words").fill("12")
    tab.get_by_label("At the same time").fill("1")
    describe(tab)
    expect(tab.get_by_label("Caption of cat.png")).to_have_value("It is a cat.")
    expect(tab.get_by_text("3 of 3 described")).to_be_visible()
    asked = [messages[0].parts[1] for messages in prompts.built]
    assert asked == [TextPart(f"Describe {name}: {{other}}.") for name in ("cat", "müller, der", "dog")]
    assert engine.requests[0].constraint == Words(must_include=("red", "猫"), start_with="a ", max_words=12)
    tab.get_by_label(f"Caption of {UMLAUT}").fill('A "quoted",\nlong one. 🐈')
    captions = {"cat.png": "It is a cat.", UMLAUT: 'A "quoted",\nlong one. 🐈', "dog.jpeg": "It is a cat."}
    with zipfile.ZipFile(fetch(tab, "Download .txt files (zip)")) as archive:
        assert archive.testzip() is None
        texts = {info.filename: archive.read(info).decode() for info in archive.infolist()}
    assert texts == {f"{name.rsplit('.', 1)[0]}.txt": caption for name, caption in captions.items()}
    lines = [json.loads(line) for line in fetch(tab, "Download JSONL").read_text().splitlines()]
    assert {line["file"]: line["caption"] for line in lines} == captions
    rows = list(csv.reader(io.StringIO(fetch(tab, "Download CSV").read_bytes().decode("utf-8-sig"), newline="")))
    assert rows == [["file", "caption"], *map(list, captions.items())]


def test_nothing_to_take_away_before_there_is_a_caption(tab: Page) -> None:
    expect(tab.get_by_text("{name} stands for the file's name, {directory} for its folder's.")).to_be_visible()
    for name in ("Download .txt files (zip)", "Download JSONL", "Download CSV", "Remove all"):
        expect(tab.get_by_role("button", name=name)).to_be_disabled()
    describe(tab)
    expect(tab.get_by_role("alert")).to_have_text("Add pictures first: drop them here, or choose files.")


def test_same_names_give_different_files(page: Page) -> None:
    names = page.evaluate(
        """async () => {
            const { toZip } = await import("/static/js/exports.js");
            const files = ["a.png", "a.jpg", "A.png", "a.jpg", "b/a.png"];
            const blob = toZip(files.map((file) => ({ file, caption: file })));
            return [...new Uint8Array(await blob.arrayBuffer())];
        }"""
    )
    with zipfile.ZipFile(io.BytesIO(bytes(names))) as archive:
        assert archive.namelist() == ["a.txt", "a.jpg.txt", "A.png.txt", "a.jpg-2.txt", "b/a.txt"]


def test_failures_are_told_beside_their_pictures_and_can_be_tried_again(tab: Page) -> None:
    tab.locator("#caption-files").set_input_files(
        [file("good.png", RED), file("bad.png", b"no"), file("big.png", RED + bytes(3_000_000))]
    )
    expect(tab.get_by_role("alert")).to_contain_text("“big.png” has 2.9 MB; at most 1.9 MB")
    describe(tab)
    expect(tab.locator('[data-state="failed"]')).to_contain_text("this file is not a picture")
    expect(tab.get_by_text("1 of 2 described · 1 failed")).to_be_visible()
    expect(tab.get_by_role("alert")).to_contain_text("press Describe to try them again")
    tab.get_by_label("Caption of bad.png").fill("by hand")
    expect(tab.get_by_text("2 of 2 described")).to_be_visible()
    describe(tab)
    expect(tab.get_by_role("alert")).to_contain_text("Every picture has its caption")


def test_a_busy_server_is_asked_again_later(tab: Page, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        if len(engine.requests) == 1:
            yield QueueFull("full")
        yield from say("fine", request=request)

    engine.script = script
    give(tab, "a.png")
    describe(tab)
    expect(tab.get_by_label("Caption of a.png")).to_have_value("fine")
    assert len(engine.requests) == 2


def test_stop_leaves_the_rest_and_again_redoes_one(tab: Page, engine: FakeEngine) -> None:
    engine.script = forever
    give(tab, *[f"{i}.png" for i in range(6)])
    describe(tab)
    eventually(lambda: len(engine.running) == 4)
    tab.get_by_role("button", name="Stop").click()
    eventually(lambda: not engine.running)
    expect(tab.locator('[data-state="waiting"]')).to_have_count(6)
    engine.script = lambda request: say("now", request=request)
    tab.get_by_role("button", name="Again: 3.png").click()
    expect(tab.get_by_label("Caption of 3.png")).to_have_value("now")
    expect(tab.get_by_text("1 of 6 described")).to_be_visible()


def test_dropped_pictures_go_to_the_tab_that_is_shown(tab: Page, prompts: FakePrompts) -> None:
    transfer(tab, "drop", "blue.png", BLUE, "image/png")
    expect(tab.get_by_label("Caption of blue.png")).to_be_visible()
    describe(tab)
    expect(tab.get_by_text("1 of 1 described")).to_be_visible()
    assert prompts.built[0][0].parts[0] == ImagePart(BLUE)


def test_two_hundred_pictures_and_typing_meanwhile(tab: Page, engine: FakeEngine) -> None:
    """The page answers all the time, and what is typed while it works is not lost."""
    lock = threading.Lock()
    widest = 0

    def script(request: Request) -> Iterator[Step]:
        nonlocal widest
        with lock:
            widest = max(widest, len(engine.running))
        yield 0.01
        yield from say("done", request=request)

    engine.script = script
    photo = png(1600, 1200, "olive")
    tab.get_by_label("At the same time").fill("6")
    tab.locator("#caption-files").set_input_files([file(f"{i}.png", photo) for i in range(200)])
    expect(tab.get_by_role("listitem")).to_have_count(200)
    describe(tab)
    expect(tab.get_by_text("pictures/s · about")).to_be_visible()
    tab.get_by_label("What to ask about each picture").press_sequentially(" Now.")
    expect(tab.get_by_text("200 of 200 described")).to_be_visible(timeout=30_000)
    assert 1 < widest <= 6
    expect(tab.get_by_label("What to ask about each picture")).to_have_value(
        "Describe this picture in one sentence. Now."
    )
