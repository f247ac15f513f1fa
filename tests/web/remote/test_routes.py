"""Remote addresses in requests: off unless allowed, fetched once, and no local path is ever read."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmserve.keys import add_key, new_key
from mmserve.types import ImagePart
from tests.web.fakes import FakeEngine, FakePrompts, png, scored
from tests.web.native import spell
from tests.web.remote.site import Network, Site, listening, remote, response
from web.access.ring import KeyRing
from web.app import create_app
from web.safety import Safety
from web.service import Service

pytestmark = pytest.mark.anyio

RED, BLUE = png(8, 6, "red"), png(4, 2, "blue")
ROUTES = ["chat", "long chat", "decisions", "decisions input", "generate", "generate batch"]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site({"/red.png": response(RED), "/blue.png": response(BLUE)})
    async with listening(made):
        yield made


@pytest.fixture
async def allowed(service: Service, site: Site) -> AsyncIterator[httpx.AsyncClient]:
    network = Network({"pictures.example": [["127.0.0.1"]], "inside.example": [["127.0.0.2"]]})
    safety = Safety(remote=remote(network, site, limits=service.limits))
    app = create_app(dataclasses.replace(service, safety=safety))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        yield http


async def ask(http: httpx.AsyncClient, engine: FakeEngine, route: str, *urls: str) -> httpx.Response:
    engine.script = lambda request: spell(request, "red") if request.score_from is None else scored(request, len)
    pictures: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*pictures, {"type": "text", "text": "What?"}]}]
    if route == "chat":
        return await http.post("/v1/chat/completions", json={"messages": messages})
    if route == "long chat":  # one that is read in a thread
        return await http.post("/v1/chat/completions", json={"messages": messages, "user": "x" * 300_000})
    if route == "decisions":
        questions: list[dict[str, Any]] = [{"type": "continuation", "id": "a", "options": ["red", "blue"]}]
        return await http.post("/v1/decisions", json={"messages": messages, "questions": questions})
    if route == "decisions input":
        questions = [{"type": "yes_no", "id": "a", "question": "Red?"}]
        body = {"images": list(urls), "questions": questions}
        return await http.post("/v1/decisions", json=body)
    if route == "generate":
        return await http.post("/generate", json={"text": "\ufffc" * len(urls), "image_data": list(urls)})
    texts = ["\ufffc" * len(urls)] * 2
    return await http.post("/generate", json={"text": texts, "image_data": [list(urls)] * 2})


def seen(engine: FakeEngine) -> set[tuple[bytes, ...]]:
    return {tuple(picture.data for picture in request.prompt.pictures) for request in engine.requests}


@pytest.mark.parametrize("route", ROUTES)
async def test_remote_addresses_are_off_by_default(
    client: httpx.AsyncClient, engine: FakeEngine, site: Site, route: str
) -> None:
    response = await ask(client, engine, route, f"http://127.0.0.1:{site.port}/red.png")
    assert response.status_code == 400
    assert "off on this server" in response.json()["error"]["message"]
    assert site.connections == 0
    assert engine.requests == []


@pytest.mark.parametrize("route", ROUTES)
async def test_allowed_addresses_are_fetched_once_each(
    allowed: httpx.AsyncClient, engine: FakeEngine, site: Site, route: str
) -> None:
    red, blue = (f"http://pictures.example:{site.port}/{name}.png" for name in ("red", "blue"))
    response = await ask(allowed, engine, route, red, blue, red)
    assert response.status_code == 200, response.text
    assert seen(engine) == {(RED, BLUE, RED)}
    assert sorted(site.asked) == ["/blue.png", "/red.png"]
    await ask(allowed, engine, route, red)
    assert sorted(site.asked) == ["/blue.png", "/red.png", "/red.png"]  # nothing is kept for the next request


@pytest.mark.parametrize("route", ROUTES)
async def test_addresses_inside_are_a_400_that_names_the_field(
    allowed: httpx.AsyncClient, engine: FakeEngine, site: Site, route: str
) -> None:
    for host in ("inside.example", "127.0.0.2", "169.254.169.254", "2130706433", "localhost"):
        response = await ask(allowed, engine, route, f"http://{host}:{site.port}/red.png")
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "image_not_fetched")
        assert error["param"]
    assert site.connections == 0


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("remote_allowed", [False, True])
async def test_no_local_path_is_ever_read(
    client: httpx.AsyncClient,
    allowed: httpx.AsyncClient,
    engine: FakeEngine,
    prompts: FakePrompts,
    tmp_path: Path,
    route: str,
    remote_allowed: bool,
) -> None:
    file = tmp_path / "secret.png"
    file.write_bytes(RED)
    for address in (
        str(file),
        f"file://{file}",
        f"FILE://{file}",
        f"file:{file}",
        f"file://localhost{file}",
        f"../../../../../../../..{file}",
        f"//{file}",
        f"http://../..{file}",
        f"data:image/png,{file}",
        f"data:image/png;base64,@{file}",
        f"data:text/html;base64,{'A' * 8}",
        f"data:;base64,../../..{file}",
        "~/.ssh/id_rsa",
        "pic-../../etc/passwd",
        "",
    ):
        response = await ask(allowed if remote_allowed else client, engine, route, address)
        assert response.status_code in (400, 404), (address, response.text)
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert engine.requests == []
    assert not any(
        isinstance(part, ImagePart) for messages in prompts.built for message in messages for part in message.parts
    )


async def test_a_form_reads_no_path_and_no_address(allowed: httpx.AsyncClient, site: Site, tmp_path: Path) -> None:
    file = tmp_path / "secret.png"
    file.write_bytes(RED)
    for text in (str(file), f"@{file}", f"file://{file}", f"http://pictures.example:{site.port}/red.png"):
        parts = {"image": (None, text), "question": (None, "What?")}
        response = await allowed.post("/v1/vqa", files=parts)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "image")
    named = {"image": (str(file), b"")}
    asked = {"question": "What?"}
    assert (
        await allowed.post("/v1/vqa", files=named, data=asked)
    ).status_code == 400  # an empty file, whatever its name
    assert site.connections == 0


async def test_all_of_a_requests_remote_pictures_are_bounded(service: Service, engine: FakeEngine, site: Site) -> None:
    limits = dataclasses.replace(service.limits, max_body_bytes=len(RED) + len(BLUE) + 10)
    network = Network({"pictures.example": [["127.0.0.1"]]})
    safety = Safety(remote=remote(network, site, limits=limits))
    app = create_app(dataclasses.replace(service, safety=safety))
    site.answers = {**site.answers, "/red.png?again": response(RED)}
    red, blue = (f"http://pictures.example:{site.port}/{name}.png" for name in ("red", "blue"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await ask(http, engine, "chat", red, blue)).status_code == 200
        refused = await ask(http, engine, "chat", red, blue, red + "?again")
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "image_too_large")
    assert "together" in refused.json()["error"]["message"]


async def test_a_picture_that_is_fetched_counts_once_for_its_key(
    service: Service, engine: FakeEngine, site: Site, tmp_path: Path
) -> None:
    key, secret = new_key("alice", pictures_per_minute=3)
    add_key(tmp_path / "keys.json", key)
    network = Network({"pictures.example": [["127.0.0.1"]]})
    safety = Safety(KeyRing(tmp_path / "keys.json"), remote(network, site))
    app = create_app(dataclasses.replace(service, safety=safety))
    red, blue = (f"http://pictures.example:{site.port}/{name}.png" for name in ("red", "blue"))
    headers = {"X-API-Key": secret}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as http:
        assert (await ask(http, engine, "chat", red, blue, red)).status_code == 200
        assert (await ask(http, engine, "chat", red)).status_code == 429
        assert (await ask(http, engine, "chat")).status_code == 200


async def test_too_many_addresses_are_refused_before_any_is_asked(
    allowed: httpx.AsyncClient, engine: FakeEngine, site: Site
) -> None:
    urls = [f"http://pictures.example:{site.port}/red.png?{i}" for i in range(4)]
    response = await ask(allowed, engine, "generate", *urls)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "too_many_images")
    assert site.connections == 0
