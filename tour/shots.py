"""Pictures of the page. A shot is a function that brings a page, opened for it, to where it is worth a picture."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect

from tour.commands import ROOT, TourError

EXAMPLES = ROOT / "mmserve" / "assets" / "examples"
QUALITY = 82
_MANY = 1200


@dataclass(frozen=True, slots=True)
class Window:
    """How a page is opened: its size in CSS pixels, how dense a picture of it is, and what its reader prefers."""

    width: int = 1200
    height: int = 780
    density: float = 1.0
    scheme: Literal["light", "dark"] = "light"
    locale: str = "en-GB"
    phone: bool = False


PHONE = Window(390, 780, density=1.5, phone=True)
PHONE_IN_CHINESE = Window(390, 780, density=1.5, scheme="dark", locale="zh-CN", phone=True)


def gallery() -> list[dict[str, Any]]:
    """The examples that the page offers."""
    known: list[dict[str, Any]] = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    return known


def boxed() -> int | None:
    """Which example of the gallery is answered with a box; None where none is."""
    return next((i for i, example in enumerate(gallery()) if "<|box_start|>" in str(example["answer"])), None)


def chromium() -> str:
    """The browser to start: the one that CHROMIUM names, or the system's. Raises ``TourError``."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not found:
        raise TourError("the tour needs Chromium: install it, or set CHROMIUM to its path")
    return found


def check_fonts() -> None:
    """Raises ``TourError`` where there is no font for Chinese."""
    if not subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=True).stdout:
        raise TourError("the tour needs a font for Chinese: install one, Debian's fonts-droid-fallback for example")


def take(browser: Browser, url: str, name: str, pictures: Path, out: Path) -> None:
    """Writes ``out``/``name``.webp. Raises ``TourError`` for a name that there is no shot of."""
    if name not in SHOTS:
        raise TourError(f"no shot is called {name}")
    window, steps = SHOTS[name]
    context = browser.new_context(
        viewport={"width": window.width, "height": window.height},
        device_scale_factor=window.density,
        color_scheme=window.scheme,
        locale=window.locale,
        has_touch=window.phone,
        is_mobile=window.phone,
    )
    try:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#status")).to_have_class(re.compile("ready"))
        expect(page.locator(".example").first).to_be_visible()
        steps(page, pictures)
        page.mouse.move(1, 1)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        with Image.open(io.BytesIO(page.screenshot(animations="disabled"))) as picture:
            out.mkdir(parents=True, exist_ok=True)
            picture.convert("RGB").save(out / f"{name}.webp", "WEBP", quality=QUALITY, method=6)
    finally:
        context.close()


def _ask(page: Page, question: str) -> None:
    lines = page.locator(".meta")
    before = lines.count()
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    expect(lines).to_have_count(before + 1, timeout=60_000)


def _want(page: Page, kind: str) -> None:
    page.locator(f'input[name="shape"][value="{kind}"]').check(force=True)


# -- the shots --------------------------------------------------------------------------------------------------


def _welcome(page: Page, pictures: Path) -> None:  # noqa: ARG001
    return


def _answer(page: Page, pictures: Path) -> None:
    page.locator("#files").set_input_files(pictures / "red-circle.png")
    _ask(page, "What color is the circle?")
    _ask(page, "What shape is it?")


def _choice(page: Page, pictures: Path) -> None:
    page.locator("#files").set_input_files(pictures / "blue-rectangle.png")
    _want(page, "choice")
    page.locator("#options").fill("red, green, blue, black")
    _ask(page, "What color is it?")


def _fields(page: Page, pictures: Path) -> None:
    page.locator("#files").set_input_files(pictures / "green-triangle.png")
    _want(page, "json")
    rows = page.locator(".builder-row")
    for number, (name, kind, values) in enumerate(
        [("color", "oneOf", "red, green, blue"), ("shape", "oneOf", "circle, rectangle, triangle")]
    ):
        if number:
            page.locator(".builder > .plain").click()
        rows.nth(number).locator("input").first.fill(name)
        rows.nth(number).locator("select").select_option(value=kind)
        rows.nth(number).locator("input").nth(1).fill(values)
    _ask(page, "Answer in JSON.")
    expect(page.locator(".answer-body table")).to_be_visible()


def _boxes(page: Page, pictures: Path) -> None:  # noqa: ARG001
    which = boxed()
    assert which is not None
    page.locator(".example").nth(which).click()
    expect(page.locator(".boxed")).to_be_visible(timeout=60_000)


def _example(page: Page, pictures: Path) -> None:  # noqa: ARG001
    page.locator(".example").first.click()
    expect(page.locator(".meta")).to_have_count(1, timeout=60_000)


def _captions(page: Page, pictures: Path) -> None:
    page.locator("#tab-captions").click()
    page.locator("#caption-files").set_input_files(sorted(pictures.glob("*.png")))
    page.locator("#panel-captions button[data-t=captionStart]").click()
    expect(page.locator('[data-state="done"]').nth(4)).to_be_attached(timeout=60_000)
    expect(page.locator('[data-state="working"], [data-state="waiting"]')).to_have_count(0, timeout=60_000)


def _status(page: Page, pictures: Path) -> None:
    """Many pictures are captioned meanwhile. Bytes behind the end of a picture make it another one to the caches."""
    page.locator("#tab-status").click()
    page.wait_for_timeout(4000)
    page.locator("#tab-captions").click()
    shapes = [path.read_bytes() for path in sorted(pictures.glob("*-*.png"))]
    many: list[FilePayload] = [
        {"name": f"{i}.png", "mimeType": "image/png", "buffer": shapes[i % len(shapes)] + i.to_bytes(2)}
        for i in range(_MANY)
    ]
    page.locator("#caption-files").set_input_files(many)
    page.locator("#panel-captions button[data-t=captionStart]").click()
    page.locator("#tab-status").click()
    page.wait_for_timeout(11_000)


SHOTS: Mapping[str, tuple[Window, Callable[[Page, Path], None]]] = {
    "welcome": (Window(), _welcome),
    "answer": (Window(), _answer),
    "choice": (Window(), _choice),
    "fields": (Window(), _fields),
    "boxes": (Window(), _boxes),
    "captions": (Window(), _captions),
    "status": (Window(), _status),
    "phone": (PHONE, _answer),
    "phone-in-chinese": (PHONE_IN_CHINESE, _example),
}
