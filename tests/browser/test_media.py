"""Videos and sounds on the page: chosen, sent, played, and what the model saw or heard of them marked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from mmserve.config import Limits
from mmserve.prompt import PromptBuilder
from tests.browser.hands import ask, catch_copies, copied, file, pick
from tests.checkpoints import tiny_qwen2_audio, tiny_qwen2_vl
from tests.models.equality import resolve
from tests.sounds.made import encoded, sine
from tests.vision.clips import clip
from tests.web.fakes import FakeEngine, png, serve
from web.service import ServedModel, Service

pytestmark = pytest.mark.browser
FILM = file("film.webm", clip(2.0, size=(160, 120), container="webm"), "video/webm")
SPEECH = file("speech.wav", encoded(sine(16_000, 16_000), 16_000), "audio/wav")


def serving(path: Path, engine: FakeEngine) -> Service:
    checkpoint = resolve(path)
    limits = Limits(max_videos=1, max_sound_bytes=200_000)
    prompts = PromptBuilder(checkpoint, limits)
    model = ServedModel("tiny", media=prompts.layout.kinds)
    return Service(model, prompts, engine, max_model_len=checkpoint.max_model_len, limits=limits)


def opened(browser: Browser, url: str) -> Page:
    """The page, once it knows its model. Fails the test on a script's error and on what the page's rules forbid."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.on("console", lambda m: pytest.fail(m.text) if "Content Security Policy" in m.text else None)
    page.goto(url)
    expect(page.locator("#about")).to_be_visible()
    return page


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine) -> Iterator[str]:
    with serve(serving(tiny_qwen2_vl(tmp_path_factory.mktemp("media") / "eyes"), engine)) as url:
        yield url


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine) -> Iterator[str]:
    with serve(serving(tiny_qwen2_audio(tmp_path_factory.mktemp("media") / "ears", seconds=3), engine)) as url:
        yield url


def plays(page: Page, kind: str) -> bool:
    """Whether the browser has read the file's beginning, and found out how long it is."""
    page.wait_for_function("kind => document.querySelector(`#stage ${kind}`).readyState >= 1", arg=kind)
    return float(page.evaluate("kind => document.querySelector(`#stage ${kind}`).duration", kind)) > 0.5


def kinds(engine: FakeEngine) -> list[str]:
    return [item.kind for item in engine.requests[-1].prompt.media]


def test_a_video_is_played_and_its_frames_are_marked(browser: Browser, eyes: str, engine: FakeEngine) -> None:
    page = opened(browser, eyes)
    pick(page, FILM)
    expect(page.locator("#stage video")).to_be_visible()
    assert plays(page, "video")
    ask(page, "What happens?")
    expect(page.locator(".answer-text")).to_have_text("It is a cat.")
    assert kinds(engine) == ["video", "video"]
    marks = page.locator("#stage .frame")
    expect(marks).to_have_count(4)
    marks.nth(2).click()
    page.wait_for_function("Math.abs(document.querySelector('#stage video').currentTime - 1) < 0.01")
    catch_copies(page)
    page.get_by_role("button", name="Copy as curl").click()
    assert "-F 'video=@\"film.webm\"'" in copied(page)
    page.get_by_role("button", name="Copy as Python").click()
    assert 'client.ask([], "What happens?", video=["film.webm"])' in copied(page)
    ask(page, "And then?")
    expect(page.locator(".answer-text")).to_have_count(2)
    assert kinds(engine) == ["video", "video"]
    page.get_by_role("button", name="Copy as Python").last.click()
    assert '{"type": "video_url", "video_url": {"url": "data:;base64," + b64encode(Path("film.webm")' in copied(page)
    page.context.close()


def test_pictures_and_videos_stand_side_by_side(browser: Browser, eyes: str, engine: FakeEngine) -> None:
    page = opened(browser, eyes)
    pick(page, file("a.png", png(64, 48)), FILM)
    expect(page.locator("#stage video")).to_be_visible()
    expect(page.locator("#stage-image")).to_be_hidden()
    page.get_by_role("button", name="Show Picture 1: a.png").click()
    expect(page.locator("#stage-image")).to_be_visible()
    expect(page.locator("#stage video")).to_have_count(0)
    page.get_by_role("button", name="Show Video 2: film.webm").click()
    expect(page.locator("#stage video")).to_be_visible()
    ask(page, "What is it?")
    expect(page.locator(".answer-text")).to_have_text("It is a cat.")
    assert kinds(engine) == ["image", "video", "video"]
    expect(page.locator(".meta")).to_contain_text("picture: cached")  # as the engine says; one picture
    pick(page, FILM)
    expect(page.locator("#notice")).to_contain_text("at most 1 videos")
    page.context.close()


def test_a_sound_is_played_and_what_was_heard_is_said_in_both_languages(
    browser: Browser, ears: str, engine: FakeEngine
) -> None:
    page = opened(browser, ears)
    pick(page, SPEECH)
    expect(page.locator("#stage audio")).to_be_visible()
    assert plays(page, "audio")
    ask(page, "Who speaks?")
    expect(page.locator(".answer-text")).to_have_text("It is a cat.")
    assert kinds(engine) == ["audio"]
    expect(page.locator("#stage .seen")).to_have_text("The model heard 1.0 s of it.")
    page.locator("#language").click()
    page.get_by_role("button", name="音频 1").click()
    expect(page.locator("#stage .seen")).to_have_text("模型听到了 1.0 s。")
    page.context.close()


def test_kinds_that_the_model_does_not_take_are_refused_in_words(browser: Browser, ears: str) -> None:
    page = opened(browser, ears)
    assert page.locator("#files").get_attribute("accept") == "audio/*"
    expect(page.locator(".drop-title.mouse")).to_have_text("Drop a file here")
    ask(page, "What?")
    expect(page.locator("#notice")).to_contain_text("Add a file first")
    pick(page, FILM)
    expect(page.locator("#notice")).to_contain_text("film.webm” is a video, and this model takes none")
    pick(page, file("a.txt", b"text", "text/plain"))
    expect(page.locator("#notice")).to_contain_text("a.txt")
    pick(page, file("long.wav", bytes(200_001), "audio/wav"))
    expect(page.locator("#notice")).to_contain_text("at most 0.2 MB")
    expect(page.locator("#photograph")).to_be_hidden()
    page.context.close()


def test_a_kept_conversation_plays_again_with_its_marks(browser: Browser, eyes: str) -> None:
    page = opened(browser, eyes)
    pick(page, FILM)
    ask(page, "What happens?")
    expect(page.locator("#stage .frame")).to_have_count(4)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#stage")).to_be_hidden()
    page.get_by_role("button", name="Conversations").click()
    page.locator("#kept .title").first.click()
    expect(page.locator("#stage video")).to_be_visible()
    assert plays(page, "video")
    expect(page.locator("#stage .frame")).to_have_count(4)
    page.context.close()
