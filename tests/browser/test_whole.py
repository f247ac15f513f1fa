"""The page over the real engine with the embedded model: every flow, in English and in Chinese.

The model is small and may be another tomorrow: it is asked what it surely knows, the colour of a drawn shape.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, Route, expect

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from tests.browser.hands import catch_copies, copied, transfer
from tests.browser.reader import Reader, line
from tests.web.fakes import serve
from web.service import ServedModel, Service

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "mmserve" / "assets" / "examples"
COLOURS = ("red", "blue")
QUESTION = "What color is the circle?"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A circle in each colour, drawn as those that easy-vqa asks about."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour, fill in zip(COLOURS, ((255, 0, 0), (0, 0, 255)), strict=True):
        picture = Image.new("RGB", (64, 64), (238, 245, 250))
        ImageDraw.Draw(picture).ellipse((14, 18, 46, 50), fill=fill)
        picture.save(folder / f"{colour}.png")
    return {colour: folder / f"{colour}.png" for colour in COLOURS}


@pytest.fixture(scope="module")
def real(pocket_vl: Checkpoint) -> Iterator[str]:
    """The base URL of a server with the embedded model."""
    client = LocalEngineClient(build_engine(pocket_vl, EngineConfig(device="cpu")))
    limits = Limits()
    service = Service(
        ServedModel("pocket-vl"),
        PromptBuilder(pocket_vl, limits),
        client,
        pocket_vl.max_model_len,
        limits=limits,
        examples=EXAMPLES,
    )
    try:
        with serve(service) as url:
            yield url
    finally:
        # In a thread of its own: Playwright's loop runs in this one.
        closer = threading.Thread(target=lambda: asyncio.run(client.close()))
        closer.start()
        closer.join()


@pytest.fixture(params=["en", "zh"])
def reader(browser: Browser, real: str, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """A person whose browser speaks the language."""
    locale = {"en": "en-GB", "zh": "zh-CN"}[request.param]
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale=locale)
    context.set_default_timeout(20_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(real)
    expect(page.locator("#status")).to_have_class(re.compile("ready"))
    yield Reader(page, request.param)
    context.close()
    assert not faults


def test_ask_and_ask_on_and_see_what_was_reused(reader: Reader, pictures: dict[str, Path]) -> None:
    page = reader.page
    page.get_by_text(reader.says("system"), exact=True).click()
    reader.field("systemHint").fill(f"Answer in a word ({reader.language}).")
    reader.pick(pictures["red"])
    reader.ask(QUESTION)
    expect(reader.answers).to_have_text("red")
    expect(reader.line).to_have_text(line(reader, ["firstToken", "systemNew"], time=""))
    reader.ask("What shape is it?")
    expect(reader.line).to_have_text(line(reader, ["pictureCached", "systemCached"]))
    reader.start_over()
    reader.pick(pictures["blue"])
    reader.ask(QUESTION)
    expect(reader.answers).to_have_text("blue")
    expect(reader.line).to_contain_text(reader.says("systemCached"))


def test_several_pictures_dropped_pasted_and_photographed(reader: Reader, pictures: dict[str, Path]) -> None:
    page = reader.page
    transfer(page, "drop", "red.png", pictures["red"].read_bytes(), "image/png")
    transfer(page, "paste", "blue.png", pictures["blue"].read_bytes(), "image/png")
    page.locator("#camera").set_input_files(pictures["red"])
    assert page.locator("#camera").get_attribute("capture") == "environment"
    expect(page.locator(".thumb")).to_have_count(3)
    page.get_by_role("button", name=re.compile(f"^{reader.says('remove')} ")).last.click()
    reader.ask("Which colors are there?")
    expect(reader.answers).to_have_text(re.compile(r"\w"))
    expect(page.locator(".asked .with img")).to_have_count(2)
    reader.ask("Sure?")
    expect(reader.line).to_contain_text(reader.says("picturesCached"))


def test_stop_edit_and_retry(reader: Reader, pictures: dict[str, Path]) -> None:
    page = reader.page

    def endless(route: Route) -> None:
        body = route.request.post_data_json
        assert isinstance(body, dict)
        route.continue_(post_data=json.dumps({**body, "ignore_eos": True, "max_tokens": 400}))

    page.route("**/v1/chat/completions", endless)
    reader.pick(pictures["red"])
    reader.field("yourQuestion").fill("Tell me all.")
    reader.button("ask").click()
    expect(reader.answers).to_have_text(re.compile(r"\w"))
    reader.button("stop").click()
    expect(reader.line).to_contain_text(reader.says("stopped"))
    page.unroute("**/v1/chat/completions")
    reader.button("edit").click()
    expect(page.get_by_text(reader.says("editing"))).to_be_visible()
    expect(reader.field("yourQuestion")).to_have_value("Tell me all.")
    reader.field("yourQuestion").fill(QUESTION)
    reader.button("ask").click()
    expect(reader.answers).to_have_text("red")
    expect(page.locator(".asked > p")).to_have_text([QUESTION])
    reader.button("retry").click()
    expect(reader.answers).to_have_text("red")
    expect(page.locator(".asked > p")).to_have_text([QUESTION])


def test_a_choice_with_its_probabilities(reader: Reader, pictures: dict[str, Path]) -> None:
    reader.pick(pictures["red"])
    reader.want("choice")
    reader.field("options").fill("blue, red，black")
    reader.ask(QUESTION)
    bars = reader.page.get_by_role("list", name=reader.says("probabilities")).get_by_role("listitem")
    expect(bars).to_have_count(3)
    expect(bars.first).to_have_text(re.compile(r"^red\d+ %$"))
    expect(reader.line).to_contain_text(reader.says("took", time="").strip())


def test_an_object_by_the_schema_builder(reader: Reader, pictures: dict[str, Path]) -> None:
    page = reader.page
    reader.pick(pictures["blue"])
    reader.want("json")
    reader.fill_row(1, "color", "oneOf")
    reader.button("ask").click()
    reader.field("yourQuestion").fill("Answer in JSON.")
    reader.button("ask").click()
    expect(page.get_by_text(reader.says("faultFew"))).to_be_visible()
    expect(page.get_by_role("alert")).to_have_text(reader.says("needShape"))
    reader.fill_row(1, "color", "oneOf", "red, blue")
    reader.button("addField").click()
    reader.fill_row(2, "round", "yesno")
    reader.button("addField").click()
    reader.fill_row(3, "sides", "integer")
    page.get_by_text(reader.says("showSchema")).click()
    expect(page.locator(".schema")).to_contain_text('"enum"')
    reader.ask("Answer in JSON.")
    yes_or_no = f"({reader.says('yes')}|{reader.says('no')})"
    expect(page.locator(".answer-body table")).to_have_text(re.compile(rf"^color(red|blue)round{yes_or_no}sides-?\d+$"))
    page.get_by_text(reader.says("showJSON")).click()
    assert json.loads(reader.page.locator(".raw").inner_text()).keys() == {"color", "round", "sides"}
    expect(page.locator(".flag")).to_have_count(0)


def test_boxes_are_drawn(reader: Reader, pictures: dict[str, Path]) -> None:
    """The model is made to write a box, by a pattern; what comes of it is the page's and the server's own."""
    page = reader.page

    def boxed(route: Route) -> None:
        body = route.request.post_data_json
        assert isinstance(body, dict)
        assert body["skip_special_tokens"] is False
        route.continue_(post_data=json.dumps({**body, "regex": r"a circle \(218,281\),\(719,782\)"}))

    page.route("**/v1/chat/completions", boxed)
    reader.pick(pictures["red"])
    reader.ask("Where is the circle?")
    drawing = page.get_by_role("img", name=reader.says("boxesOver", count=1, name="red.png", labels=reader.says("box")))
    expect(drawing).to_be_visible()
    expect(drawing.locator("rect")).to_have_attribute("x", re.compile(r"^13\.9"))


def test_every_example_of_the_gallery_is_answered_as_it_says(reader: Reader) -> None:
    page = reader.page
    for number, example in enumerate(json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))):
        cards = page.locator(".example")
        if number:
            reader.start_over()
        expect(cards.nth(number)).to_contain_text(example["question"])
        cards.nth(number).click()
        expect(page.locator(".meta")).to_have_count(1)
        readable = page.evaluate(
            "(text) => import('/static/js/boxes.js').then((module) => module.readable(text))", example["answer"]
        )
        expect(reader.answers.first).to_have_text(readable)
        expect(page.locator(".boxed")).to_have_count(int("<|box_start|>" in example["answer"]))


KEPT = """async () => {
  if (!(await indexedDB.databases()).length) return 0;
  const done = (request) => new Promise((resolve) => { request.onsuccess = () => resolve(request.result); });
  const database = await done(indexedDB.open("mmserve"));
  const count = await done(database.transaction("conversations").objectStore("conversations").count());
  database.close();
  return count;
}"""


def until_kept(page: Page) -> None:
    """A page that is left while the browser writes keeps nothing of what it had not written."""
    for _ in range(400):
        if page.evaluate(KEPT):
            return
        page.wait_for_timeout(50)
    raise AssertionError("no conversation is kept")


def test_conversations_are_kept_and_gone_on_with(reader: Reader, pictures: dict[str, Path]) -> None:
    page = reader.page
    reader.pick(pictures["red"])
    reader.ask(QUESTION)
    until_kept(page)
    page.reload()
    reader.button("conversations").click()
    page.locator(".kept .title").click()
    expect(reader.answers).to_have_text("red")
    reader.ask("What shape is it?")
    expect(reader.line).to_contain_text(reader.says("pictureCached"))
    reader.button("conversations").click()
    expect(page.locator(".kept .title small")).to_contain_text("2")
    page.get_by_role("button", name=re.compile(f"^{reader.says('delete')}")).click()
    page.get_by_role("button", name=re.compile("^" + re.escape(reader.says("reallyDelete")))).click()
    expect(page.get_by_text(reader.says("historyEmpty"))).to_be_visible()


@pytest.mark.parametrize("kind", ["text", "choice"])
def test_what_is_copied_runs(reader: Reader, pictures: dict[str, Path], kind: str) -> None:
    page = reader.page
    reader.pick(pictures["red"])
    reader.want(kind)
    if kind == "choice":
        reader.field("options").fill("red, blue")
    reader.ask(QUESTION)
    catch_copies(page)
    for key, command in (("copyCurl", ["bash", "-c"]), ("copyPython", [sys.executable, "-c"])):
        reader.button(key).click()
        expect(page.locator("#said")).to_have_text(reader.says("copied"))
        done = subprocess.run(
            [*command, copied(page)],
            cwd=pictures["red"].parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "red" in done.stdout


def test_captions_by_the_model_and_by_hand(reader: Reader) -> None:
    page = reader.page
    drawn = sorted(EXAMPLES.glob("*.png"))
    reader.open_tab("tabCaptions")
    page.locator("#caption-files").set_input_files(drawn)
    reader.field("mustInclude").fill("picture")
    reader.button("captionStart").click()
    expect(page.get_by_text(reader.says("progress", done=len(drawn), total=len(drawn)))).to_be_visible(timeout=60_000)
    page.get_by_label(f"{reader.says('captionOf')} {drawn[0].name}").fill("by hand, 手写")
    with page.expect_download() as started:
        reader.button("downloadZip").click()
    with zipfile.ZipFile(started.value.path()) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert sorted(texts) == [f"{picture.stem}.txt" for picture in drawn]
    assert texts.pop(f"{drawn[0].stem}.txt") == "by hand, 手写"
    assert all(re.search(r"\bpicture\b", text) for text in texts.values())
    with page.expect_download() as started:
        reader.button("downloadJSONL").click()
    lines = [json.loads(each) for each in started.value.path().read_text(encoding="utf-8").splitlines()]
    assert {each["file"] for each in lines} == {picture.name for picture in drawn}
    with page.expect_download() as started:
        reader.button("downloadCSV").click()
    rows = list(csv.reader(io.StringIO(started.value.path().read_bytes().decode("utf-8-sig"), newline="")))
    assert rows[1] == [drawn[0].name, "by hand, 手写"]


def test_status_shows_the_engine_and_empties_its_cache(reader: Reader, pictures: dict[str, Path], real: str) -> None:
    page = reader.page
    reader.pick(pictures["red"])
    reader.ask(QUESTION)
    reader.open_tab("tabStatus")
    expect(page.get_by_role("img", name=re.compile(f"^{reader.says('chartQueue')}: 0"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile(f"^{reader.says('chartPictures')}: [1-9]"))).to_be_visible()
    reader.button("flush").click()
    said = re.escape(reader.says("flushed", count="N")).replace("N", r"[\d,]+")
    expect(page.locator("#flushed")).to_have_text(re.compile(f"^{said}$"))
    page.get_by_text(reader.says("allNumbers"), exact=True).click()
    expect(page.get_by_role("row", name=re.compile("^slots_cached 0$"))).to_be_visible()
    info = json.loads(page.request.get(f"{real}/server_info").body())
    assert info["stats"]["slots_cached"] == 0


def test_a_server_behind_a_key(reader: Reader, pictures: dict[str, Path]) -> None:
    """Keys are checked by whatever stands before the server, as here by a proxy that knows one."""
    page = reader.page

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, body="no")

    page.route("**/v1/**", guard)
    reader.pick(pictures["red"])
    reader.field("yourQuestion").fill(QUESTION)
    reader.button("ask").click()
    dialog = page.get_by_role("dialog", name=reader.says("keyTitle"))
    dialog.locator("#key").fill("wrong")
    reader.button("useKey").click()
    expect(dialog.get_by_text(reader.says("keyRefused"))).to_be_visible()
    dialog.locator("#key").fill("right")
    reader.button("useKey").click()
    expect(reader.answers).to_have_text("red")


def test_what_is_refused_is_said_in_words(reader: Reader, tmp_path: Path) -> None:
    page = reader.page
    broken = tmp_path / "broken.png"
    broken.write_bytes((EXAMPLES / "red-circle.png").read_bytes()[:60])
    reader.pick(broken)
    reader.field("yourQuestion").fill(QUESTION)
    reader.button("ask").click()
    if reader.language == "zh":
        expect(page.locator(".failure")).to_contain_text(reader.says("code_corrupt_image"))
    else:
        expect(page.locator(".failure")).to_contain_text(re.compile("damaged|incomplete|truncated|ends early|cut"))
    expect(reader.field("yourQuestion")).to_have_value(QUESTION)
