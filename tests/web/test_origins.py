"""What browsers are told, and which pages may use the API."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from mmserve.keys import add_key, new_key
from tests.web.fakes import FakeEngine
from web.access.ring import KeyRing
from web.app import create_app
from web.operations.front import Front
from web.safety import Safety
from web.service import Service

pytestmark = pytest.mark.anyio

FRIEND = "https://friend.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
CHAT = {"messages": [{"role": "user", "content": "What?"}]}


@pytest.fixture
async def shared(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A server that lets pages of ``FRIEND`` in."""
    app = create_app(dataclasses.replace(service, safety=Safety(origins=(FRIEND,))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        yield http


@pytest.mark.parametrize("path", ["/", "/static/js/app.js", "/health", "/v1/models", "/server_info", "/none"])
async def test_every_answer_has_the_headers_that_browsers_heed(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["object-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert not {"unsafe", "http:", "https:", "*"} & set(headers["content-security-policy"].replace("-", " ").split())


async def test_refusals_faults_and_streams_have_them_too(
    client: httpx.AsyncClient, engine: FakeEngine, service: Service
) -> None:
    answers = [
        await client.post("/v1/chat/completions", json=CHAT | {"stream": True}),
        await client.post("/v1/chat/completions", json={"messages": []}),
        await client.post("/v1/chat/completions", content=b"x" * (service.limits.max_body_bytes + 1)),
        await client.put("/v1/vqa"),
        await client.get("/health", headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}),
        await client.post("/v1/chat/completions", json=CHAT, headers={"Sec-Fetch-Site": "cross-site"}),
    ]
    engine.script = lambda _: [RuntimeError("a fault")]
    answers.append(await client.post("/v1/chat/completions", json=CHAT))
    front = Front()  # the model is still loading
    async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://test") as loading:
        answers.append(await loading.post("/v1/chat/completions", json=CHAT))
    assert [answer.status_code for answer in answers] == [200, 400, 413, 405, 200, 403, 500, 503]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff", answer.status_code
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers


async def test_answers_are_kept_by_no_cache_and_the_page_by_the_browsers_own(client: httpx.AsyncClient) -> None:
    for path in ("/v1/models", "/server_info", "/health", "/none"):
        assert (await client.get(path)).headers["cache-control"] == "no-store"
    assert (await client.post("/v1/chat/completions", json=CHAT)).headers["cache-control"] == "no-store"
    for path in ("/", "/static/js/app.js"):
        assert (await client.get(path)).headers["cache-control"] == "no-cache"


async def test_cors_is_off_by_default(client: httpx.AsyncClient) -> None:
    preflight = await client.options("/v1/chat/completions", headers={"Origin": FRIEND} | PREFLIGHT)
    assert preflight.status_code == 405
    response = await client.get("/v1/models", headers={"Origin": FRIEND})
    for headers in (preflight.headers, response.headers):
        assert not [name for name in headers if name.startswith("access-control")]


async def test_cors_for_one_origin_and_no_other(shared: httpx.AsyncClient) -> None:
    preflight = await shared.options("/v1/chat/completions", headers={"Origin": FRIEND} | PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == FRIEND
    response = await shared.post("/v1/chat/completions", json=CHAT, headers={"Origin": FRIEND})
    assert response.headers["access-control-allow-origin"] == FRIEND
    assert "access-control-allow-credentials" not in response.headers
    assert "Retry-After" in response.headers["access-control-expose-headers"]
    for origin in ("https://other.example", "http://friend.example", "https://friend.example.evil.com", "null"):
        refused = await shared.options("/v1/chat/completions", headers={"Origin": origin} | PREFLIGHT)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers


async def test_a_browsers_question_needs_no_key_and_the_refusal_can_be_read(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key, secret = new_key("alice")
    add_key(file, key)
    app = create_app(dataclasses.replace(service, safety=Safety(KeyRing(file), origins=(FRIEND,))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        origin = {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site"}
        assert (await http.options("/v1/models", headers=origin | PREFLIGHT)).status_code == 200
        refused = await http.get("/v1/models", headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == FRIEND
        assert (await http.get("/v1/models", headers=origin | {"X-API-Key": secret})).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),  # as text/plain a browser sends it without asking first
        ("POST", "/v1/vqa"),
        ("GET", "/flush_cache"),  # an <img> is enough
        ("POST", "/flush_cache"),
        ("POST", "/abort_request"),
        ("GET", "/health_generate"),
        ("GET", "/server_info"),
    ],
)
async def test_pages_of_other_sites_may_not_use_the_server_of_their_reader(
    client: httpx.AsyncClient, engine: FakeEngine, site: str, method: str, path: str
) -> None:
    headers = {"Sec-Fetch-Site": site, "Origin": "https://evil.example", "Content-Type": "text/plain"}
    response = await client.request(method, path, headers=headers, content='{"abort_all": true, "messages": []}')
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "not_allowed"
    assert (engine.flushed, engine.requests) == (0, [])


@pytest.mark.parametrize("site", ["same-origin", "none", None])
async def test_the_page_itself_and_programs_may(client: httpx.AsyncClient, site: str | None) -> None:
    headers = {} if site is None else {"Sec-Fetch-Site": site}
    assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200


async def test_a_link_from_elsewhere_opens_the_page(client: httpx.AsyncClient) -> None:
    for path in ("/", "/static/js/app.js", "/health"):
        assert (await client.get(path, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 200


async def test_an_origin_that_is_let_in_may_and_so_may_all_with_a_star(
    shared: httpx.AsyncClient, service: Service
) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": FRIEND}
    assert (await shared.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
    other = headers | {"Origin": "https://other.example"}
    assert (await shared.post("/v1/chat/completions", json=CHAT, headers=other)).status_code == 403
    assert (await shared.get("/flush_cache", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
    app = create_app(dataclasses.replace(service, safety=Safety(origins=("*",))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as everybody:
        response = await everybody.post("/v1/chat/completions", json=CHAT, headers=other)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")
