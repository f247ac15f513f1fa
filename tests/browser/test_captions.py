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
    tab.get_by_label("What to ask about each picture").fill(r"Describe {name}: \{other\}.")
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
    expect(tab.get_by_text("The captions come here, as they are ready.")).to_be_visible()
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
    eventually(lambda: len(engine.running) == 6)
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


def test_a_folder_gives_its_pictures_and_their_places(tab: Page, prompts: FakePrompts, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "photos" / "cats" / "a.png").write_bytes(RED)
    (tmp_path / "photos" / "b.png").write_bytes(BLUE)
    (tmp_path / "photos" / "b.txt").write_text("old caption")
    expect(tab.get_by_role("button", name="Add a folder")).to_be_visible()
    tab.locator("#caption-folder").set_input_files(tmp_path / "photos")
    expect(tab.get_by_role("listitem")).to_have_count(2)
    expect(tab.get_by_role("alert")).to_be_hidden()
    tab.get_by_label("What to ask about each picture").fill("{name} in {directory}?")
    describe(tab)
    expect(tab.get_by_text("2 of 2 described")).to_be_visible()
    assert {messages[0].parts[1] for messages in prompts.built} == {TextPart("a in cats?"), TextPart("b in photos?")}
    with zipfile.ZipFile(fetch(tab, "Download .txt files (zip)")) as archive:
        assert sorted(archive.namelist()) == ["photos/b.txt", "photos/cats/a.txt"]


DROP = """async () => {
    const { droppedFiles, placeOf } = await import("/static/js/folders.js");
    const make = (name, type) => new File(["x"], name, { type });
    const leaf = (path, type) => ({
        isFile: true, fullPath: path, file: (resolve) => resolve(make(path.split("/").pop(), type)),
    });
    const folder = (path, ...batches) => ({
        isDirectory: true, fullPath: path,
        createReader: () => ({ readEntries: (resolve) => resolve(batches.shift() ?? []) }),
    });
    const drop = async (...entries) => {
        const items = entries.map((entry) => ({ webkitGetAsEntry: () => entry }));
        return (await droppedFiles({ files: [make("plain.txt", "text/plain")], items })).map(placeOf);
    };
    const inner = folder("/p/q", [leaf("/p/q/c.png", "image/png")]);
    const outer = folder("/p", [leaf("/p/a.png", "image/png"), leaf("/p/n.txt", "text/plain")], [inner]);
    const note = leaf("/n.txt", "text/plain");
    return [await drop(outer, note), await drop(note), await drop(null)];
}"""


def test_dropped_folders_are_walked_through(page: Page) -> None:
    walked, plain, unknown = page.evaluate(DROP)
    assert walked == ["p/a.png", "p/q/c.png", "n.txt"]
    assert plain == unknown == ["plain.txt"]


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
    tab.get_by_label("At the same time").fill("12")
    tab.locator("#caption-files").set_input_files([file(f"{i}.png", photo + bytes([i])) for i in range(200)])
    expect(tab.get_by_role("listitem")).to_have_count(200)
    describe(tab)
    expect(tab.get_by_text("pictures/s · about")).to_be_visible()
    tab.get_by_label("What to ask about each picture").press_sequentially(" Now.")
    expect(tab.get_by_text("200 of 200 described")).to_be_visible(timeout=30_000)
    assert 6 < widest <= 15  # a request of three is always there for when one ends
    expect(tab.get_by_label("What to ask about each picture")).to_have_value(
        "Describe this picture in one sentence. Now."
    )


def test_what_is_wrong_with_the_request_is_said_once_and_the_pictures_wait(tab: Page, engine: FakeEngine) -> None:
    give(tab, *[f"{i}.png" for i in range(6)])
    tab.get_by_label("What to ask about each picture").fill("Describe {nmae}.")
    describe(tab)
    expect(tab.get_by_role("alert")).to_contain_text("did you mean {name}?")
    expect(tab.get_by_role("alert")).to_contain_text("What is left waits: press Describe to go on.")
    expect(tab.locator('[data-state="waiting"]')).to_have_count(6)
    assert not engine.requests
    tab.get_by_label("What to ask about each picture").fill("Describe {name}.")
    describe(tab)
    expect(tab.get_by_text("6 of 6 described")).to_be_visible()
    expect(tab.get_by_role("alert")).to_be_hidden()


def test_what_is_typed_beside_a_picture_is_not_overwritten(tab: Page, engine: FakeEngine) -> None:
    release = threading.Event()

    def script(request: Request) -> Iterator[Step]:
        while not release.is_set():
            yield 0.01
        yield from say("by the model", request=request)

    engine.script = script
    give(tab, "a.png", "b.png", "c.png")
    tab.get_by_label("At the same time").fill("2")
    describe(tab)
    expect(tab.locator('[data-state="working"]')).to_have_count(2)
    tab.get_by_label("Caption of b.png").fill("by hand")
    tab.get_by_label("Caption of c.png").fill("by hand too")
    release.set()
    expect(tab.get_by_label("Caption of a.png")).to_have_value("by the model")
    expect(tab.get_by_text("3 of 3 described")).to_be_visible()
    expect(tab.get_by_label("Caption of b.png")).to_have_value("by hand")
    expect(tab.get_by_label("Caption of c.png")).to_have_value("by hand too")
    assert len(engine.requests) == 2


def test_a_connection_that_breaks_leaves_what_it_has_brought(tab: Page) -> None:
    line = json.dumps({"index": 0, "name": "0.png", "caption": "a red thing"}) + "\n"
    tab.route("**/v1/captions", lambda route: route.fulfill(content_type="application/x-ndjson", body=line))
    give(tab, *[f"{i}.png" for i in range(6)])  # two a request
    describe(tab)
    expect(tab.get_by_role("alert")).to_contain_text("The connection broke before the answer was complete.")
    expect(tab.get_by_text("3 of 6 described")).to_be_visible()
    expect(tab.locator('[data-state="waiting"]')).to_have_count(3)
    tab.unroute("**/v1/captions")
    describe(tab)
    expect(tab.get_by_text("6 of 6 described")).to_be_visible()


BATCH = """async ({ sizes, width, script }) => {
    const { runBatch } = await import("/static/js/batch.js");
    const items = sizes.map((size, id) => ({ id, file: { size } }));
    const [requests, results] = [[], []];
    async function* work(chunk) {
        const fault = script[requests.length];
        requests.push(chunk.map(({ id }) => id));
        if (fault?.status) throw Object.assign(new Error("fault"), { retryAfter: null }, fault);
        for (const index of chunk.keys()) {
            const error = fault?.lines?.[index];
            if (error) yield { index, error: Object.assign(new Error("line"), { retryAfter: null }, error) };
            else yield { index, value: "ok" };
        }
    }
    let thrown = null;
    try {
        await runBatch(items, {
            width, work, signal: new AbortController().signal, wanted: () => true, onStart() {}, onLeft() {},
            onResult: ({ id }, value, error) => results.push([id, value ?? error.message]),
        });
    } catch (error) {
        thrown = error.message;
    }
    return { requests, results: results.sort(([a], [b]) => a - b), thrown };
}"""


@pytest.mark.parametrize(
    ("sizes", "width", "script", "requests", "results", "thrown"),
    [
        ([1] * 5, 8, [], [[0, 1], [2, 3], [4]], ["ok"] * 5, None),
        ([1] * 3, 1, [], [[0], [1], [2]], ["ok"] * 3, None),
        ([5 << 20, 5 << 20, 1, 9 << 20, 1], 5, [], [[0], [1, 2], [3], [4]], ["ok"] * 5, None),
        ([1] * 2, 1, [{"status": 429, "retryAfter": 0.01}], [[0], [0], [1]], ["ok"] * 2, None),
        ([1], 1, [{"status": 503, "retryAfter": 0.001}] * 9, [[0]] * 6, ["fault"], None),
        ([1] * 2, 1, [{"status": 500}], [[0], [1]], ["fault", "ok"], None),
        ([1] * 2, 1, [{"lines": [{"retryAfter": 0.01}]}], [[0], [0], [1]], ["ok"] * 2, None),
        ([1] * 2, 1, [{"lines": [{"code": "corrupt_image"}]}], [[0], [1]], ["line", "ok"], None),
        ([1] * 2, 1, [{"status": 400}], [[0]], [], "fault"),
        ([], 4, [], [], [], None),
    ],
)
def test_requests_of_a_batch(
    page: Page,
    sizes: list[int],
    width: int,
    script: list[object],
    requests: list[list[int]],
    results: list[str],
    thrown: str | None,
) -> None:
    done = page.evaluate(BATCH, {"sizes": sizes, "width": width, "script": script})
    assert sorted(done["requests"]) == sorted(requests)
    assert [text for _, text in done["results"]] == results
    assert done["thrown"] == thrown


def test_a_request_that_the_server_fails_on_is_taken_apart(page: Page) -> None:
    """So that the one picture which is to blame is the only one without a caption."""
    done = page.evaluate(BATCH, {"sizes": [1] * 5, "width": 8, "script": [{"status": 500}]})
    assert sorted(done["requests"]) == [[0], [0, 1], [1], [2, 3], [4]]
    assert [text for _, text in done["results"]] == ["ok"] * 5
