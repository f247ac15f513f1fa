"""Who gets in: keys, their limits, and what is open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from openai import AuthenticationError, OpenAI

from mmserve.client import AsyncClient
from mmserve.errors import KeyRefused, NotAllowed, RateLimited
from mmserve.keys import revoke_key
from tests.web.access.conftest import Clock, MakeKey, bearer
from tests.web.fakes import FakeEngine, eventually, png, say, serve, silence
from web.app import create_app
from web.service import Service

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "What?"}]}
URI = "data:image/png;base64,iVBORw0KGgo="


async def chat(http: httpx.AsyncClient, secret: str, **body: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=CHAT | body, headers=bearer(secret))


@pytest.mark.parametrize("path", ["/", "/static/js/app.js", "/examples/examples.json", "/health", "/live"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_page_and_health_are_open(http: httpx.AsyncClient, path: str, method: str) -> None:
    assert (await http.request(method, path)).status_code in (200, 405)


async def test_every_other_route_is_locked(http: httpx.AsyncClient, locked: Service) -> None:
    routes = [r for r in create_app(locked).router.routes if isinstance(r, APIRoute)]
    schema = create_app(locked).openapi()["paths"]
    paths = {r.path for r in routes} | set(schema)
    assert {"/v1/chat/completions", "/generate", "/v1/pictures", "/flush_cache", "/health_generate"} <= paths
    for path in [
        *(paths - {"/", "/health", "/live", "/examples/examples.json"}),
        "/openapi.json",
        "/none",
        "/static",
        "/metrics",
    ]:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            response = await http.request(method, path.replace("{", "").replace("}", ""))
            assert response.status_code == 401, (method, path)


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/static/x", "/health", "/live"])
async def test_what_is_open_is_open_for_reading_only(http: httpx.AsyncClient, method: str, path: str) -> None:
    assert (await http.request(method, path)).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/static/../flush_cache",
        "/static/%2e%2e/flush_cache",
        "//flush_cache",
        "/./flush_cache",
        "/flush_cache/",
        "/FLUSH_CACHE",
        "/examples/../v1/models",
        "/health/../v1/models",
        "/static/..;/flush_cache",
    ],
)
async def test_no_spelling_of_a_path_gets_around_the_gate(locked: Service, engine: FakeEngine, path: str) -> None:
    with serve(locked) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        status = int((await reader.readline()).split()[1])
        writer.close()
        await writer.wait_closed()
    assert status in (401, 404)
    assert engine.flushed == 0


@pytest.mark.parametrize("path", ["/health", "/v1/chat/completions"])
async def test_a_body_with_two_lengths_is_refused_and_nothing_after_it_is_read(
    service: Service, engine: FakeEngine, path: str
) -> None:
    """A proxy that reads the one and a server that reads the other disagree on where the next request begins."""
    with serve(service) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n".encode())
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /flush_cache HTTP/1.1\r\nHost: x\r\n\r\n")
        answered = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answered.startswith(b"HTTP/1.1 400 ")
    assert answered.count(b"HTTP/1.1") == 1
    assert engine.flushed == 0


async def test_a_key_opens_by_either_header(http: httpx.AsyncClient, secrets: Mapping[str, str]) -> None:
    alice = secrets["alice"]
    for headers in (
        bearer(alice),
        {"Authorization": f"bearer {alice}"},
        {"Authorization": f"Bearer  {alice} "},
        {"X-API-Key": alice},
        {"X-API-Key": alice, "Authorization": f"Bearer {alice}"},
        {"X-API-Key": alice, "Authorization": "Basic eDp5"},  # a proxy's own
    ):
        assert (await http.get("/v1/models", headers=headers)).status_code == 200, headers


async def test_401_is_typed_and_says_how(http: httpx.AsyncClient, secrets: Mapping[str, str]) -> None:
    alice, bob = secrets["alice"], secrets["bob"]
    for headers in (
        {},
        bearer(""),
        bearer(alice[:-1]),
        bearer(alice + "x"),
        bearer(alice.upper()),
        {"Authorization": alice},
        {"Authorization": f"Basic {alice}"},
        {"Authorization": f"Bearer {alice}", "X-API-Key": bob},
        {"Cookie": f"key={alice}"},
    ):
        response = await http.get("/v1/models", headers=headers)
        assert response.status_code == 401, headers
        assert response.headers["www-authenticate"] == 'Bearer realm="mmserve"'
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert alice[4:] not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"
    assert (await http.get(f"/v1/models?api_key={alice}")).status_code == 401  # addresses are logged


async def test_a_refused_request_reaches_no_route_and_no_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 401
    assert (await http.post("/v1/vqa", files={"image": png()}, data={"question": "What?"})).status_code == 401
    assert engine.requests == []


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_flushing_the_caches_needs_an_admin(
    http: httpx.AsyncClient, secrets: Mapping[str, str], engine: FakeEngine, method: str
) -> None:
    response = await http.request(method, "/flush_cache", headers=bearer(secrets["alice"]))
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "not_allowed"
    assert "--admin" in response.json()["error"]["message"]
    assert engine.flushed == 0
    assert (await http.request(method, "/flush_cache", headers=bearer(secrets["root"]))).status_code == 200
    assert engine.flushed == 1


async def test_ending_all_requests_needs_an_admin(http: httpx.AsyncClient, secrets: Mapping[str, str]) -> None:
    asked = {"abort_all": True}
    assert (await http.post("/abort_request", json=asked, headers=bearer(secrets["alice"]))).status_code == 403
    assert (await http.post("/abort_request", json=asked, headers=bearer(secrets["root"]))).status_code == 200


async def test_metrics_need_an_admin(http: httpx.AsyncClient, secrets: Mapping[str, str]) -> None:
    assert (await http.get("/metrics", headers=bearer(secrets["alice"]))).status_code == 403
    assert (await http.get("/metrics", headers=bearer(secrets["root"]))).status_code in (200, 404)


async def test_an_admin_route_below_a_mount_point_stays_one(
    locked: Service, secrets: Mapping[str, str], engine: FakeEngine
) -> None:
    transport = httpx.ASGITransport(create_app(locked), root_path="/below")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.get("/below/flush_cache", headers=bearer(secrets["alice"]))).status_code == 403
        assert (await http.get("/flush_cache", headers=bearer(secrets["alice"]))).status_code in (403, 404)
        assert (await http.get("/below/health")).status_code == 200
    assert engine.flushed == 0


async def test_counters_are_for_admins(http: httpx.AsyncClient, secrets: Mapping[str, str]) -> None:
    for path in ("/server_info", "/get_server_info"):
        info = (await http.get(path, headers=bearer(secrets["alice"]))).json()
        assert info["stats"] == {}
        assert info["limits"]["max_pictures"] == 3
        assert (await http.get(path, headers=bearer(secrets["root"]))).json()["stats"] == {"requests_total": 0.0}


async def test_requests_per_minute(
    http: httpx.AsyncClient, make_key: MakeKey, secrets: Mapping[str, str], clock: Clock, engine: FakeEngine
) -> None:
    slow = make_key("slow", requests_per_minute=2)
    clock.now += 1.5
    for _ in range(2):
        assert (await chat(http, slow)).status_code == 200
        clock.now += 10
    response = await chat(http, slow)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "40"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "2 requests a minute" in error["message"]
    assert len(engine.requests) == 2
    assert (await chat(http, secrets["bob"])).status_code == 200  # another's limit is another's
    clock.now += 40
    assert (await chat(http, slow)).status_code == 200


async def test_looking_at_the_server_uses_up_nothing(http: httpx.AsyncClient, make_key: MakeKey, clock: Clock) -> None:
    slow = make_key("slow", requests_per_minute=1)
    clock.now += 2
    for _ in range(5):
        for path in ("/server_info", "/v1/models", "/v1/models/default", "/model_info"):
            assert (await http.get(path, headers=bearer(slow))).status_code == 200
    assert (await chat(http, slow)).status_code == 200
    assert (await http.get("/health_generate", headers=bearer(slow))).status_code == 429  # that one asks the model


async def test_requests_at_a_time_and_their_end(
    http: httpx.AsyncClient, make_key: MakeKey, secrets: Mapping[str, str], clock: Clock, engine: FakeEngine
) -> None:
    narrow = make_key("narrow", concurrency=2)
    clock.now += 2
    engine.script = silence
    running = [asyncio.create_task(chat(http, narrow)) for _ in range(2)]
    while len(engine.running) < 2:
        await asyncio.sleep(0.001)
    response = await chat(http, narrow)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "2 requests at a time" in response.json()["error"]["message"]
    assert (await http.get("/v1/models", headers=bearer(narrow))).status_code == 429
    assert (await http.get("/v1/models", headers=bearer(secrets["bob"]))).status_code == 200
    for task in running:  # however a request ends, its place is free
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    engine.script = lambda request: say("yes", request=request)
    for _ in range(5):
        assert (await chat(http, narrow)).status_code == 200
        assert (await http.post("/v1/chat/completions", content=b"{", headers=bearer(narrow))).status_code == 400


async def test_a_stream_holds_its_place_until_it_ends(locked: Service, make_key: MakeKey, engine: FakeEngine) -> None:
    narrow = make_key("narrow", concurrency=1)
    ring = locked.safety.keys
    assert ring is not None
    ring._signature = None  # the file is looked at again
    ring._looked = -10.0
    engine.script = lambda request: iter([*list(say("a", "b", request=request))[:1], 3600.0])
    with serve(locked) as url:
        async with httpx.AsyncClient(base_url=url) as http:
            body, headers = CHAT | {"stream": True}, bearer(narrow)
            async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status_code == 200
                await anext(response.aiter_bytes())
                assert (await http.get("/v1/models", headers=bearer(narrow))).status_code == 429
            found = ring.find(narrow)
            assert found is not None
            eventually(lambda: found[1].running == 0)
            assert (await http.get("/v1/models", headers=bearer(narrow))).status_code == 200


async def test_a_new_key_opens_and_a_revoked_one_closes_without_a_restart(
    http: httpx.AsyncClient, make_key: MakeKey, secrets: Mapping[str, str], keys_file: Path, clock: Clock
) -> None:
    new = make_key("new")
    assert (await chat(http, new)).status_code == 401
    clock.now += 1
    assert (await chat(http, new)).status_code == 200
    revoke_key(keys_file, "alice")
    clock.now += 1
    assert (await chat(http, secrets["alice"])).status_code == 401
    assert (await chat(http, secrets["bob"])).status_code == 200


@pytest.mark.parametrize("text", [None, "", "{", '{"version": 1}'])
async def test_a_file_that_is_damaged_later_changes_nothing(
    http: httpx.AsyncClient,
    secrets: Mapping[str, str],
    keys_file: Path,
    clock: Clock,
    text: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = keys_file.read_text()
    if text is None:
        keys_file.unlink()
    else:
        keys_file.write_text(text)
    for _ in range(3):
        clock.now += 1
        assert (await chat(http, secrets["alice"])).status_code == 200
        assert (await chat(http, "mms-x")).status_code == 401
    assert len([r for r in caplog.records if "stay as they were" in r.message]) == 1
    keys_file.write_text(kept)
    revoke_key(keys_file, "alice")
    clock.now += 1
    assert (await chat(http, secrets["alice"])).status_code == 401


async def test_limits_hold_on_through_a_change_of_the_file(
    http: httpx.AsyncClient, make_key: MakeKey, clock: Clock
) -> None:
    slow = make_key("slow", requests_per_minute=1)
    clock.now += 1
    assert (await chat(http, slow)).status_code == 200
    make_key("other")
    clock.now += 1
    assert (await chat(http, slow)).status_code == 429


async def test_a_server_without_keys_is_open_as_before(client: httpx.AsyncClient) -> None:
    for headers in ({}, bearer("anything"), {"X-API-Key": "anything"}):
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.post("/flush_cache", headers=headers)).status_code == 200
        assert (await client.get("/server_info", headers=headers)).json()["stats"] != {}


async def test_our_own_client_names_the_errors(
    locked: Service, secrets: Mapping[str, str], make_key: MakeKey, clock: Clock
) -> None:
    once = make_key("once", requests_per_minute=1)
    clock.now += 2
    transport = httpx.ASGITransport(create_app(locked))
    async with AsyncClient(transport=transport) as nobody:
        with pytest.raises(KeyRefused, match="X-API-Key"):
            await nobody.ask(png(), "What?")
    async with AsyncClient(transport=transport, api_key=secrets["alice"]) as alice:
        assert (await alice.ask(png(), "What?")).text == "It is a cat."
    async with AsyncClient(transport=transport, api_key=once, retries=0) as client:
        await client.ask(png(), "What?")
        with pytest.raises(RateLimited):
            await client.ask(png(), "What?")
    assert issubclass(NotAllowed, Exception)


def test_openais_client_names_them_too(locked: Service, secrets: Mapping[str, str]) -> None:
    with serve(locked) as url:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client, pytest.raises(AuthenticationError):
            client.models.list()
        with OpenAI(base_url=f"{url}/v1", api_key=secrets["alice"]) as client:
            assert [model.id for model in client.models.list()] == ["pocket-vl"]


def test_no_key_is_logged(
    locked: Service, secrets: Mapping[str, str], engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    engine.script = lambda _: [ValueError("a fault")]
    with serve(locked) as url, httpx.Client(base_url=url) as http:
        caplog.clear()
        body = json.dumps(CHAT)
        assert http.post("/v1/chat/completions", content=body, headers=bearer(secrets["alice"])).status_code == 500
        assert http.post("/v1/chat/completions", content=body, headers=bearer("mms-wrong")).status_code == 401
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpcore", "httpx", "hpack"))]
    assert any("a fault" in (r.exc_text or r.getMessage()) for r in caplog.records)
    assert not any(secrets["alice"] in text or "mms-wrong" in text for text in ours)


def test_a_refusal_reaches_a_client_that_is_still_sending(locked: Service) -> None:
    """The page sends its picture before it knows that a key is wanted."""
    big = b"x" * 8_000_000
    with serve(locked) as url, httpx.Client(base_url=url) as http:
        for _ in range(5):
            response = http.post("/v1/vqa", content=big, headers={"Content-Type": "multipart/form-data; boundary=X"})
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
