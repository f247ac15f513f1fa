"""Pictures that are sent once and named afterwards, on every route that takes one."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from threading import Thread
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmserve.config import Limits
from mmserve.errors import InvalidField, PictureNotKept, PictureTooLarge
from mmserve.types import ImagePart, TextPart
from tests.web.fakes import PLACEHOLDER, FakeEngine, FakePrompts, png, say, scored
from web.pictures import PREFIX, PictureShelf

pytestmark = pytest.mark.anyio

RED, BLUE = png(8, 6, "red"), png(4, 2, "blue")


def shelf(most: int = 100, seconds: float = 10.0, now: Iterator[float] | None = None) -> PictureShelf:
    times = now or iter(lambda: 0.0, None)
    return PictureShelf(Limits(max_kept_bytes=most, kept_seconds=seconds), clock=lambda: next(times))


class TestShelf:
    def test_what_is_put_comes_back_under_an_id_that_tells_nothing(self) -> None:
        kept = shelf()
        one, same, other = kept.put(b"one"), kept.put(b"one"), kept.put(b"other")
        assert len({one, same, other}) == 3
        assert all(each.startswith(PREFIX) and len(each) >= 28 for each in (one, same, other))
        assert [kept.get(each, "x") for each in (one, same, other)] == [b"one", b"one", b"other"]
        assert kept.size == 11

    def test_the_longest_unused_goes_first(self) -> None:
        kept = shelf(most=10)
        first, second = kept.put(b"aaaaa"), kept.put(b"bbbbb")
        kept.get(first, "x")
        third = kept.put(b"c")
        assert (kept.get(first, "x"), kept.get(third, "x")) == (b"aaaaa", b"c")
        with pytest.raises(PictureNotKept, match="send it again") as caught:
            kept.get(second, "here")
        assert caught.value.param == "here"

    def test_each_is_kept_for_a_time_after_its_last_use(self) -> None:
        kept = shelf(now=iter([0.0, 9.0, 18.0, 28.0]))
        name = kept.put(b"a")
        assert kept.get(name, "x") == kept.get(name, "x") == b"a"
        with pytest.raises(PictureNotKept):
            kept.get(name, "x")

    def test_what_is_past_makes_room(self) -> None:
        kept = shelf(now=iter([0.0, 1.0, 10.5]))
        kept.put(b"a")
        kept.put(b"b")
        kept.put(b"c")
        assert kept.size == 2

    def test_what_is_larger_than_the_shelf_is_refused(self) -> None:
        kept = shelf(most=3)
        name = kept.put(b"abc")
        with pytest.raises(PictureTooLarge, match="with each question"):
            kept.put(b"abcd")
        assert kept.get(name, "x") == b"abc"
        with pytest.raises(PictureTooLarge):
            shelf(most=0).put(b"a")

    def test_dropped_is_gone(self) -> None:
        kept = shelf()
        name = kept.put(b"a")
        assert kept.drop(name)
        assert not kept.drop(name)
        assert kept.size == 0

    def test_an_address_is_a_data_uri_or_an_id(self) -> None:
        kept = shelf()
        assert kept.read(kept.put(b"a"), "x") == b"a"
        assert kept.read(f"data:image/png;base64,{base64.b64encode(b'b').decode()}", "x") == b"b"
        for address in ("https://example.com/a.png", "file:///etc/passwd", "PIC-a", " pic-a"):
            with pytest.raises(InvalidField):
                kept.read(address, "x")

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["put", "get", "drop"]), st.integers(0, 12)), max_size=60))
    def test_it_is_a_bounded_dictionary(self, steps: list[tuple[str, int]]) -> None:
        kept, names, alive = shelf(most=30), list[str](), dict[str, bytes]()
        for act, number in steps:
            if act == "put":
                names.append(kept.put(bytes(number)))
                alive[names[-1]] = bytes(number)
                while sum(map(len, alive.values())) > 30:
                    del alive[next(iter(alive))]
            elif number < len(names):
                name = names[number]
                if act == "drop":
                    assert kept.drop(name) == (alive.pop(name, None) is not None)
                elif name in alive:
                    alive[name] = alive.pop(name)
                    assert kept.get(name, "x") == alive[name]
                else:
                    with pytest.raises(PictureNotKept):
                        kept.get(name, "x")
            assert kept.size == sum(map(len, alive.values())) <= 30

    def test_threads_may_share_it(self) -> None:
        kept = shelf(most=50)

        def work() -> None:
            for _ in range(300):
                name = kept.put(b"12345")
                kept.drop(name)

        threads = [Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kept.size == 0


# -- over HTTP --------------------------------------------------------------------------------------------------


async def keep(client: httpx.AsyncClient, *pictures: bytes) -> list[str]:
    response = await client.post("/v1/pictures", files=[("image", ("a.png", data, "image/png")) for data in pictures])
    assert response.status_code == 200, response.text
    return [each["id"] for each in response.json()["data"]]


async def test_what_is_told_of_a_kept_picture(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/pictures", files=[("image", ("ä.png", RED, "image/png"))])
    [told] = response.json()["data"]
    assert told.pop("id").startswith(PREFIX)
    assert told == {
        "object": "picture",
        "name": "ä.png",
        "bytes": len(RED),
        "width": 8,
        "height": 6,
        "expires_after": 3600.0,
    }


async def test_a_form_may_mix_files_and_ids_in_any_order(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    red, blue = await keep(client, RED, BLUE)
    parts: list[tuple[str, Any]] = [
        ("image", (None, blue)),
        ("image", ("b.png", RED, "image/png")),
        ("image", (None, red)),
    ]
    response = await client.post("/v1/vqa", data={"question": "What?"}, files=parts)
    assert response.status_code == 200, response.text
    assert prompts.built[0][0].parts == (ImagePart(BLUE), ImagePart(RED), ImagePart(RED), TextPart("What?"))


async def test_chat_decisions_and_the_native_route_take_ids(
    client: httpx.AsyncClient, prompts: FakePrompts, engine: FakeEngine
) -> None:
    [red] = await keep(client, RED)
    content = [{"type": "image_url", "image_url": {"url": red}}, {"type": "text", "text": "What?"}]
    chat = {"messages": [{"role": "user", "content": content}]}
    assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
    engine.script = lambda request: scored(request, lambda _: -1.0)
    asked = {"images": [red], "questions": [{"type": "yes_no", "id": "a", "question": "Red?"}]}
    assert (await client.post("/v1/decisions", json=asked)).status_code == 200
    more = {**chat, "questions": [{"type": "continuation", "id": "a", "options": ["x", "y"]}]}
    assert (await client.post("/v1/decisions", json=more)).status_code == 200
    assert [built[0].parts[0] for built in prompts.built] == [ImagePart(RED)] * 3
    engine.script = lambda request: say("a", request=request)
    native = {"text": f"{PLACEHOLDER}What?", "image_data": red}
    assert (await client.post("/generate", json=native)).status_code == 200
    assert engine.requests[-1].prompt.pictures[0].data == RED


async def test_captions_name_what_is_not_kept_in_its_line(client: httpx.AsyncClient) -> None:
    [red] = await keep(client, RED)
    parts: list[tuple[str, Any]] = [("image", (None, red)), ("image", (None, "pic-nothing"))]
    response = await client.post("/v1/captions", files=parts)
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert {line["index"]: line.get("caption") or line["error"]["code"] for line in lines} == {
        0: "It is a cat.",
        1: "image_not_kept",
    }


@pytest.mark.parametrize("path", ["/v1/vqa", "/v1/chat/completions", "/v1/decisions", "/generate"])
async def test_what_is_not_kept_is_a_404_that_names_the_field(client: httpx.AsyncClient, path: str) -> None:
    url = "pic-nothing"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    bodies: dict[str, Any] = {
        "/v1/vqa": {"data": {"question": "?"}, "files": [("image", (None, url))]},
        "/v1/chat/completions": {"json": {"messages": messages}},
        "/v1/decisions": {"json": {"images": [url], "questions": [{"type": "yes_no", "id": "a", "question": "?"}]}},
        "/generate": {"json": {"text": PLACEHOLDER, "image_data": url}},
    }
    params = {
        "/v1/vqa": "image",
        "/v1/chat/completions": "messages[0].content[0].image_url",
        "/v1/decisions": "images[0].url",
        "/generate": "image_data",
    }
    response = await client.post(path, **bodies[path])
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "image_not_kept", params[path])


async def test_deleted_is_gone(client: httpx.AsyncClient) -> None:
    [red] = await keep(client, RED)
    assert (await client.delete(f"/v1/pictures/{red}")).json() == {"id": red, "object": "picture", "deleted": True}
    assert (await client.delete(f"/v1/pictures/{red}")).status_code == 404
    asked = await client.post("/v1/vqa", data={"question": "?"}, files=[("image", (None, red))])
    assert asked.status_code == 404


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([], 400, "invalid_field"),
        ([("image", ("a.png", b"no picture", "image/png"))], 400, "unsupported_image"),
        ([("image", ("a.png", b"", "image/png"))], 400, "unsupported_image"),
        ([("image", ("a.png", bytes(700_000), "image/png"))], 413, "image_too_large"),
        ([("image", (None, "photo.jpg"))], 400, "invalid_field"),
        ([("image", ("a.png", RED, "image/png"))] * 4, 400, "too_many_images"),
    ],
)
async def test_what_could_not_be_asked_about_is_not_kept(
    client: httpx.AsyncClient, parts: list[Any], status: int, code: str
) -> None:
    response = await client.post("/v1/pictures", files=parts)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, "image")
