"""The page on this machine: its weight, its first paint, and whether it stays smooth with 200 pictures to caption.

Over the embedded model, in headless Chromium. A page is smooth while frames keep coming: what is told is the longest
wait between two frames and the longest task, while pictures are added, captioned, scrolled through and typed beside.

    python -m bench.page --pictures 200
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bench.caption import draw
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from tour.shots import EXAMPLES, chromium
from web.app import create_app
from web.service import ServedModel, Service

STATIC = Path(__file__).parents[1] / "web" / "static"

_WATCH = """() => {
    const seen = window.seen = { frame: 0, task: 0 };
    let before = performance.now();
    const frame = (now) => {
        seen.frame = Math.max(seen.frame, now - before);
        before = now;
        requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    new PerformanceObserver((list) => {
        for (const { duration } of list.getEntries()) seen.task = Math.max(seen.task, duration);
    }).observe({ type: "longtask", buffered: false });
}"""
_TAKE = """() => {
    const { frame, task } = window.seen;
    Object.assign(window.seen, { frame: 0, task: 0 });
    return [frame, task];
}"""
_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"


@dataclass(frozen=True, slots=True)
class Smoothness:
    """The longest wait between two frames and the longest task, in milliseconds, while something went on."""

    what: str
    frame: float
    task: float


@contextmanager
def served() -> Iterator[str]:
    """The embedded model's page on a free port, its engine and its server in threads."""
    checkpoint, limits = load_registry().resolve("pocket-vl"), Limits()
    engine = LocalEngineClient(build_engine(checkpoint, EngineConfig(device="cpu")))
    service = Service(
        ServedModel(checkpoint.name, checkpoint.description),
        PromptBuilder(checkpoint, limits),
        engine,
        checkpoint.max_model_len,
        limits=limits,
        examples=EXAMPLES,
    )
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        closer = threading.Thread(target=lambda: asyncio.run(engine.close()))
        closer.start()
        closer.join()


def first_paints(browser: Browser, url: str, times: int) -> list[float]:
    """Milliseconds from asking for the page to its first content, nothing of it known before."""
    found = []
    for _ in range(times):
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        expect(page.locator(".example").first).to_be_visible()
        found.append(float(page.evaluate(_PAINT)))
        context.close()
    return found


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files of 1600 × 1200 pixels, each another. On disk, since Playwright makes bytes into files in the page."""
    rng = random.Random(1)
    found = [folder / f"{i:03}.jpg" for i in range(count)]
    for path in found:
        draw(rng, 64).resize((1600, 1200), Image.Resampling.BICUBIC).save(path, "JPEG", quality=85)
    return found


def smoothness(page: Page, pictures: list[Path]) -> list[Smoothness]:
    """Captions ``pictures`` in the page as a person would who cannot wait."""
    found = []

    def note(what: str) -> None:
        frame, task = page.evaluate(_TAKE)
        found.append(Smoothness(what, frame, task))

    page.locator("#tab-captions").click()
    page.evaluate(_WATCH)
    page.wait_for_timeout(300)
    page.evaluate(_TAKE)
    page.locator("#caption-files").set_input_files(pictures)
    expect(page.locator("#caption-list > li")).to_have_count(len(pictures))
    page.wait_for_timeout(500)
    note("adding the pictures")
    page.locator('#panel-captions input[type="number"]').first.fill("12")
    page.locator("button[data-t=captionStart]").click()
    done = page.locator('[data-state="done"], [data-state="failed"]')
    while done.count() < len(pictures):
        page.mouse.wheel(0, 900)
        page.locator("#panel-captions textarea").first.press_sequentially(" x")
    note("captioning, scrolling and typing")
    page.mouse.wheel(0, -(10**6))
    for _ in range(30):
        page.mouse.wheel(0, 1200)
        page.wait_for_timeout(16)
    note("scrolling through the captions")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--loads", type=int, default=7)
    arguments = parser.parse_args()
    weight = sum(path.stat().st_size for path in STATIC.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as place, served() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        paints = first_paints(browser, url, arguments.loads)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        found = smoothness(page, photographs(Path(place), arguments.pictures))
        version = browser.version
        browser.close()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, Chromium {version}, pocket-vl on the CPU")
    print(f"  the page weighs {weight / 1000:.0f} kB (uncompressed, all of it)")
    middle, worst = statistics.median(paints), max(paints)
    print(f"  first contentful paint: median {middle:.0f} ms, worst {worst:.0f} ms of {len(paints)} loads")
    print(f"  {arguments.pictures} photographs of 1600 x 1200 in the captioning tab:")
    for each in found:
        print(f"    {each.what}: longest wait for a frame {each.frame:.0f} ms, longest task {each.task:.0f} ms")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
