from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from mmserve.config import Limits
from tests.web.fakes import FakeEngine, FakePrompts, png, serve
from web.service import ServedModel, Service

CARD = """\
---
license: apache-2.0
---

# It can
- name the shape and its colour
- count up to six things
# It cannot
- recognise people, places or brands
- read handwriting

1. Pictures **far from** what it was
   trained on get a guess.

| task | right |
|------|------:|
| `count` | 97 % |

```
mmserve ask cat.png "What?"
```
See [the recipe](training/README.md) <b>here</b>."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One headless Chromium. Not for the session: while Playwright's loop runs, no other test can start one."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def service(engine: FakeEngine, prompts: FakePrompts, tmp_path: Path) -> Service:
    """A service with two example pictures."""
    (tmp_path / "red.png").write_bytes(png(64, 64, "firebrick"))
    (tmp_path / "blue.png").write_bytes(png(96, 64, "steelblue"))
    known = [
        {"file": "red.png", "question": "What colour is this square?", "answer": "red"},
        {"file": "blue.png", "question": "Is it wider than it is high?", "answer": "yes"},
    ]
    (tmp_path / "examples.json").write_text(json.dumps(known))
    model = ServedModel("pocket-vl", "A very small model for simple pictures; it runs anywhere.", CARD)
    limits = Limits(max_picture_bytes=2_000_000, max_pictures=3)
    return Service(model, prompts, engine, max_model_len=512, limits=limits, examples=tmp_path)


@pytest.fixture
def live(service: Service) -> Iterator[str]:
    with serve(service) as url:
        yield url


@pytest.fixture
def page(browser: Browser, live: str) -> Iterator[Page]:
    """The page, opened in a wide window. Fails the test on a script's error and on a request to anywhere else."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(10_000)
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda r: faults.append(r.url) if not r.url.startswith((live, "blob:", "data:")) else None)
    opened.on("console", lambda m: faults.append(m.text) if "Content Security Policy" in m.text else None)
    opened.goto(live)
    yield opened
    context.close()
    assert not faults
