"""What "copy as curl" and "copy as Python" give is run as it is, and asks the server the same."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mmserve.grammar.spec import JsonSchema
from tests.browser.hands import BLUE, RED, answers, ask, catch_copies, copied, field, file, pick, want
from tests.web.fakes import FakeEngine, FakePrompts, say, scored

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
AWKWARD = 'What\'s `this`? $HOME \\n "so" ; @a <b>\n2nd line 🐈'
NAMES = ('it\'s a "red", one;.png', "blue.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in zip(NAMES, (RED, BLUE), strict=True):
        (tmp_path / name).write_bytes(data)
    return tmp_path


def run(page: Page, folder: Path, name: str, which: int = -1) -> str:
    catch_copies(page)
    page.get_by_role("button", name=name).nth(which).click()
    expect(page.locator("#said")).to_have_text("Copied")
    command = ["bash", "-c"] if name == "Copy as curl" else [sys.executable, "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MMSERVE_API_KEY": "k"}
    done = subprocess.run([*command, copied(page)], cwd=folder, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def pick_both(page: Page) -> None:
    pick(page, file(NAMES[0], RED), file(NAMES[1], BLUE))


def test_question_with_awkward_words(page: Page, folder: Path, prompts: FakePrompts) -> None:
    pick_both(page)
    page.get_by_text("Instructions", exact=True).click()
    page.get_by_label("What the model is told before every question").fill("Don't $guess.")
    ask(page, AWKWARD)
    expect(answers(page)).to_have_text("It is a cat.")
    assert json.loads(run(page, folder, "Copy as curl"))["answer"] == "It is a cat."
    assert run(page, folder, "Copy as Python") == "It is a cat.\n"
    assert prompts.built[0] == prompts.built[1] == prompts.built[2]


def test_follow_up(page: Page, folder: Path, prompts: FakePrompts) -> None:
    pick(page, file(NAMES[0], RED))
    ask(page, "First?")
    expect(answers(page)).to_have_count(1)
    pick(page, file(NAMES[1], BLUE))
    ask(page, AWKWARD)
    expect(answers(page)).to_have_count(2)
    expect(page.locator(".meta")).to_have_count(2)
    said = json.loads(run(page, folder, "Copy as curl"))
    assert said["choices"][0]["message"]["content"] == "It is a cat."
    assert run(page, folder, "Copy as Python") == "It is a cat.\n"
    assert prompts.built[1] == prompts.built[2] == prompts.built[3]


def test_json(page: Page, folder: Path, engine: FakeEngine) -> None:
    engine.script = lambda request: say('{"it\'s":true}', request=request)
    pick(page, file(NAMES[1], BLUE))
    want(page, "JSON")
    field(page, 1, "it's", "yes or no")
    ask(page, "What?")
    expect(page.locator(".meta")).to_have_count(1)
    assert json.loads(run(page, folder, "Copy as curl"))["parsed"] == {"it's": True}
    assert run(page, folder, "Copy as Python") == '{"it\'s": True}\n'
    asked = [request.constraint for request in engine.requests]
    assert all(isinstance(each, JsonSchema) for each in asked)
    first, *rest = [json.loads(each.schema) for each in asked if isinstance(each, JsonSchema)]
    assert rest == [first, first]


def test_choice(page: Page, folder: Path, engine: FakeEngine) -> None:
    weights = {"a $b": 0.5, "c`d'": 0.25}
    engine.script = lambda request: scored(request, lambda text: math.log(weights[text]))
    pick(page, file(NAMES[1], BLUE))
    want(page, "Choice")
    page.get_by_label("Possible answers").fill("a $b, c`d'")
    ask(page, "Which?")
    expect(page.locator(".meta")).to_have_count(1)
    answer = json.loads(run(page, folder, "Copy as curl"))["answers"]["answer"]
    assert answer["choice"] == "a $b"
    assert run(page, folder, "Copy as Python").startswith("a $b {'a $b': 0.66")


def test_key_is_named_and_never_copied(page: Page) -> None:
    both = page.evaluate(
        """async () => {
            const { asCurl, asPython } = await import("/static/js/recipe.js");
            const turn = { question: "?", pictures: [{ name: "a.png" }], answer: { text: "" } };
            return ["text", "choice"].flatMap((kind) => {
                const shape = { kind, options: ["a", "b"] };
                const asked = { turns: [turn], system: "", shape, url: "http://x", key: true };
                return [asCurl(asked), asPython(asked)];
            });
        }"""
    )
    assert all("MMSERVE_API_KEY" in text for text in both)
    assert all("import os" in text for text in both[1::2])
