"""What is a key's own: cached work, kept pictures, names to abort by, and the count of its pictures.

The rule for caches: each key by itself, unless keys are put into one group by name. Otherwise ``cached_tokens`` and the
time to the first token would tell one key what another has asked.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from mmserve.keys import new_key
from tests.web.access.conftest import Clock, MakeKey, bearer
from tests.web.fakes import FakeEngine, FakePrompts, png, scored, serve, silence
from tests.web.native import spell
from web.access.meter import Meter
from web.access.owned import owned
from web.service import Service
from web.visit import Visit, acting, require_admin, visit

pytestmark = pytest.mark.anyio

RED = png(8, 6, "red")
URI = "data:image/png;base64," + base64.b64encode(RED).decode()


def turn(*urls: str) -> list[dict[str, Any]]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": "What?"}]}]


def form(picture: str) -> dict[str, tuple[None, str]]:
    """A question about a picture that is named."""
    return {"image": (None, picture), "question": (None, "What?")}


async def ask_everywhere(http: httpx.AsyncClient, engine: FakeEngine, secret: str, salt: str) -> None:
    """One request on each route that takes a salt."""
    given = {"cache_salt": salt} if salt else {}
    headers = bearer(secret)

    async def post(path: str, **rest: Any) -> None:
        response = await http.post(path, headers=headers, **rest)
        assert response.status_code == 200, response.text

    engine.script = lambda request: spell(request, "red")
    await post("/v1/chat/completions", json={"messages": turn(URI), "n": 2} | given)
    await post("/v1/chat/completions", json={"messages": turn(URI), "stream": True} | given)
    await post("/v1/vqa", files={"image": RED}, data={"question": "What?"} | given)
    await post("/v1/captions", files={"image": RED}, data=given)
    await post("/generate", json={"text": "What?"} | given)
    await post("/generate", json={"input_ids": [65, 66], "return_logprob": True, "logprob_start_len": 0} | given)
    engine.script = lambda request: scored(request, lambda _: -1.0)
    questions = [{"type": "continuation", "id": "a", "options": ["red", "blue"]}]
    await post("/v1/decisions", json={"messages": turn(URI), "questions": questions} | given)


def salts(engine: FakeEngine, prompts: FakePrompts) -> set[str]:
    """Those of the prompts and of what the engine was asked since the last time."""
    found = {request.cache_salt for request in engine.requests}
    assert set(prompts.salts) == found
    engine.requests.clear()
    prompts.salts.clear()
    return found


async def test_no_two_keys_share_a_cache_on_any_route(
    http: httpx.AsyncClient, secrets: Mapping[str, str], engine: FakeEngine, prompts: FakePrompts
) -> None:
    seen: list[str] = []
    for name in ("alice", "bob", "root"):
        for salt in ("", "mine"):
            await ask_everywhere(http, engine, secrets[name], salt)
            [own] = salts(engine, prompts)  # the same on every route, so that one's own questions do share
            assert own.endswith(salt)
            seen.append(own)
    assert len(set(seen)) == 6


async def test_no_salt_that_a_caller_gives_reaches_anothers_cache(
    http: httpx.AsyncClient, secrets: Mapping[str, str], engine: FakeEngine, prompts: FakePrompts
) -> None:
    await ask_everywhere(http, engine, secrets["alice"], "x")
    [alices] = salts(engine, prompts)
    for guess in (alices, alices.removesuffix("x"), "/" + alices, "../" + alices, "\0" + alices):
        await http.post(
            "/v1/chat/completions", json={"messages": turn(), "cache_salt": guess}, headers=bearer(secrets["bob"])
        )
        [bobs] = salts(engine, prompts)
        assert bobs != alices
        assert bobs.split("/")[:2] != alices.split("/")[:2]


async def test_keys_of_one_group_share_and_a_groups_name_is_no_keys(
    http: httpx.AsyncClient, make_key: MakeKey, clock: Clock, engine: FakeEngine, prompts: FakePrompts
) -> None:
    one, two = make_key("one", cache_group="lab"), make_key("two", cache_group="lab")
    three = make_key("three", cache_group="other")
    clock.now += 1
    found: list[str] = []
    for secret in (one, two, three):
        await ask_everywhere(http, engine, secret, "")
        found += salts(engine, prompts)
    assert found[0] == found[1] != found[2]
    key, _ = new_key("x")
    lookalike, _ = new_key("y", cache_group=key.identity)
    assert Visit(key).cache_root != Visit(lookalike).cache_root


async def test_a_new_key_of_an_old_name_begins_with_nothing() -> None:
    first, second = new_key("alice")[0], new_key("alice")[0]
    assert Visit(first).cache_root != Visit(second).cache_root


async def test_without_keys_salts_are_as_they_were_sent(
    client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts
) -> None:
    await ask_everywhere(client, engine, "none", "mine")
    assert salts(engine, prompts) == {"mine"}


async def test_work_of_the_server_itself_shares_with_nobody(service: Service, prompts: FakePrompts) -> None:
    assert (visit().owner, visit().cache_root, visit().admin) == ("", "", False)
    own = owned(service)
    own.prompts.build_text("1 2 3", ())
    key, _ = new_key("alice")
    with acting(Visit(key)):  # as a job that goes on for a key does
        own.prompts.build_text("1 2 3", ())
    own.prompts.build_text("1 2 3", ())
    assert prompts.salts == ["", f"key/{key.identity}/", ""]


async def test_a_kept_picture_is_its_keys_own(
    http: httpx.AsyncClient, secrets: Mapping[str, str], engine: FakeEngine
) -> None:
    kept = await http.post("/v1/pictures", files={"image": RED}, headers=bearer(secrets["alice"]))
    identity = kept.json()["data"][0]["id"]
    none = await http.post("/v1/vqa", files=form("pic-none"), headers=bearer(secrets["bob"]))
    for name in ("bob", "root"):
        headers = bearer(secrets[name])
        asked = await http.post("/v1/vqa", files=form(identity), headers=headers)
        assert asked.status_code == 404
        # Nothing tells a picture of somebody else's from one that never was.
        assert asked.text.replace(identity, "pic-none") == none.text
        chat = await http.post("/v1/chat/completions", json={"messages": turn(identity)}, headers=headers)
        assert chat.status_code == 404
        native = await http.post("/generate", json={"text": "\ufffc", "image_data": identity}, headers=headers)
        assert native.status_code == 404
        assert (await http.delete(f"/v1/pictures/{identity}", headers=headers)).status_code == 404
    assert engine.requests == []
    headers = bearer(secrets["alice"])
    assert (await http.post("/v1/vqa", files=form(identity), headers=headers)).is_success
    assert (await http.delete(f"/v1/pictures/{identity}", headers=headers)).is_success
    assert (await http.delete(f"/v1/pictures/{identity}", headers=headers)).status_code == 404


def test_a_key_that_fills_the_shelf_pushes_out_its_own_pictures(service: Service) -> None:
    limits = dataclasses.replace(service.limits, max_kept_bytes=100)
    shelf = dataclasses.replace(service, limits=limits).shelf
    alice, bob = Visit(new_key("alice")[0]), Visit(new_key("bob")[0])
    with acting(bob):
        kept = shelf.put(b"b" * 30)
    with acting(alice):
        ids = [shelf.put(b"a" * 20) for _ in range(10)]
        assert [identity for identity in ids if shelf._kept.get(identity)] == ids[-3:]
    with acting(bob):
        assert shelf.get(kept, "image") == b"b" * 30
    assert shelf.size == 90


async def test_a_name_to_abort_by_is_its_keys_own(
    http: httpx.AsyncClient, secrets: Mapping[str, str], engine: FakeEngine
) -> None:
    engine.script = silence

    async def begin(name: str) -> asyncio.Task[httpx.Response]:
        before = len(engine.running)
        asked = http.post("/generate", json={"text": "hi", "rid": "job"}, headers=bearer(secrets[name]))
        task = asyncio.create_task(asked)
        while len(engine.running) == before:
            await asyncio.sleep(0.001)
        return task

    async def abort(name: str) -> int:
        response = await http.post("/abort_request", json={"rid": "job"}, headers=bearer(secrets[name]))
        count: int = response.json()["aborted"]
        return count

    alices = await begin("alice")
    assert await abort("bob") == 0
    bobs = await begin("bob")  # the same name, and another's
    assert await abort("bob") == 1
    assert (await bobs).json()["meta_info"]["finish_reason"]["type"] == "abort"
    assert not alices.done()
    assert await abort("root") == 1  # an admin ends anybody's
    assert (await alices).json()["meta_info"]["finish_reason"]["type"] == "abort"


# -- pictures per minute ---------------------------------------------------------------------------------------------


@pytest.fixture
def few(make_key: MakeKey, clock: Clock) -> str:
    secret = make_key("few", pictures_per_minute=2)
    clock.now += 1
    return secret


def sent(count: int) -> Sequence[tuple[str, dict[str, Any]]]:
    """``count`` pictures on each route."""
    files = [("image", ("a.png", RED, "image/png"))] * count
    return [
        ("/v1/chat/completions", {"json": {"messages": turn(*[URI] * count)}}),
        ("/v1/vqa", {"files": files, "data": {"question": "What?"}}),
        ("/v1/captions", {"files": files}),
        ("/v1/pictures", {"files": files}),
        ("/generate", {"json": {"text": "\ufffc" * count, "image_data": [f"{URI[:-4]}{i}AAA" for i in range(count)]}}),
    ]


@pytest.mark.parametrize("route", range(5))
async def test_pictures_per_minute_on_every_route(
    http: httpx.AsyncClient, few: str, clock: Clock, engine: FakeEngine, route: int
) -> None:
    engine.script = lambda request: spell(request, "red")
    path, one = sent(1)[route]
    for _ in range(2):
        response = await http.post(path, headers=bearer(few), **one)
        assert response.status_code == 200, response.text
        clock.now += 6
    response = await http.post(path, headers=bearer(few), **one)
    assert (response.status_code, response.headers["retry-after"]) == (429, "48")
    assert "2 pictures a minute" in response.json()["error"]["message"]
    clock.now += 48
    assert (await http.post(path, headers=bearer(few), **one)).status_code == 200


@pytest.mark.parametrize("route", range(5))
async def test_a_request_with_too_many_pictures_counts_none_of_them(
    http: httpx.AsyncClient, few: str, engine: FakeEngine, route: int
) -> None:
    engine.script = lambda request: spell(request, "red")
    path, three = sent(3)[route]
    for _ in range(3):
        response = await http.post(path, headers=bearer(few), **three)
        assert response.status_code == 429
        assert "fewer at a time" in response.json()["error"]["message"]
    path, two = sent(2)[route]
    assert (await http.post(path, headers=bearer(few), **two)).status_code == 200


async def test_words_alone_are_no_pictures(http: httpx.AsyncClient, few: str) -> None:
    for _ in range(5):
        response = await http.post("/v1/chat/completions", json={"messages": turn()}, headers=bearer(few))
        assert response.status_code == 200


async def test_naming_a_kept_picture_counts_as_sending_one(http: httpx.AsyncClient, few: str) -> None:
    kept = await http.post("/v1/pictures", files={"image": RED}, headers=bearer(few))
    body = {"messages": turn(kept.json()["data"][0]["id"])}
    assert (await http.post("/v1/chat/completions", json=body, headers=bearer(few))).status_code == 200
    assert (await http.post("/v1/chat/completions", json=body, headers=bearer(few))).status_code == 429


def test_a_visit_of_nobody_is_no_admin() -> None:
    with pytest.raises(Exception, match="admin"):
        require_admin("this")
    with acting(Visit(admin=True)):
        require_admin("this")
    with acting(Visit(new_key("alice")[0], Meter())), pytest.raises(Exception, match="admin"):
        require_admin("this")


async def test_a_request_leaves_no_visit_to_the_next_of_its_connection(
    locked: Service, secrets: Mapping[str, str], engine: FakeEngine
) -> None:
    """uvicorn makes the next request's task in whatever context resumed the reading of its connection."""
    big = json.dumps({"messages": turn(URI), "pad": "x" * 400_000}).encode()  # over the mark at which reading pauses
    with serve(locked) as url:
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=1)) as http:
            for name in ("alice", "bob", "alice", "root"):
                response = await http.post("/v1/chat/completions", content=big, headers=bearer(secrets[name]))
                assert response.status_code == 200
                assert (await http.post("/v1/chat/completions", content=big)).status_code == 401
                assert (await http.get("/health")).status_code == 200
    roots = [request.cache_salt for request in engine.requests]
    assert roots[0] == roots[2]
    assert len(set(roots)) == 3
