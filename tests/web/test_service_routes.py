from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.web.fakes import FakeEngine, png
from web.app import create_app
from web.service import Service

pytestmark = pytest.mark.anyio
STATIC = Path(__file__).parents[2] / "web" / "static"


async def test_models(client: httpx.AsyncClient) -> None:
    model = {
        "id": "pocket-vl",
        "object": "model",
        "created": 1700000000,
        "owned_by": "mmserve",
        "max_model_len": 512,
        "description": "A small model.",
        "media": ["image"],
    }
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [model]}
    for name in ("pocket-vl", "default"):
        assert (await client.get(f"/v1/models/{name}")).json() == model | {"card": "# Can\n- count"}
    response = await client.get("/v1/models/org/other")
    assert response.status_code == 404
    assert "org/other" in response.json()["error"]["message"]


async def test_health(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert (await client.head("/health")).status_code == 200
    engine.ready = False
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "unavailable"})


async def test_server_info(client: httpx.AsyncClient) -> None:
    info = (await client.get("/server_info")).json()
    assert info["model"] == "pocket-vl"
    assert info["max_model_len"] == 512
    assert info["ready"] is True
    assert info["limits"]["max_pictures"] == 3
    assert info["stats"] == {"requests_total": 0.0}


async def test_page_and_its_parts_are_served(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for file in STATIC.rglob("*.*"):
        path = file.relative_to(STATIC).as_posix()
        response = await client.get(f"/static/{path}")
        assert response.content == file.read_bytes(), path
        assert response.headers["cache-control"] == "no-cache"
        if file.suffix == ".js":
            assert "javascript" in response.headers["content-type"]
    assert (await client.get("/static/../app.py")).status_code == 404
    assert (await client.get("/static/none.js")).json()["error"]["code"] == "not_found"


async def test_page_may_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/")).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "img-src 'self' blob: data:" in policy
    assert "unsafe" not in policy
    for path in ("/", "/static/js/app.js", "/health", "/none"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
    for file in STATIC.rglob("*.*"):
        text = file.read_text(encoding="utf-8")
        assert "https://" not in text, file
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), file
        assert not (file.suffix == ".html" and ("style=" in text or "onclick" in text)), file


def test_page_is_small() -> None:
    assert sum(file.stat().st_size for file in STATIC.rglob("*.*")) < 250_000


async def test_flushing_the_caches(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await client.post("/flush_cache")
    assert response.json() == {"flushed_tokens": 7}
    assert engine.flushed == 1
    assert (await client.get("/flush_cache")).json() == {"flushed_tokens": 7}  # SGLang takes both


async def test_examples(service: Service, tmp_path: Path) -> None:
    examples = [{"file": "a.png", "question": "What?", "answer": "red"}]
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    (tmp_path / "a.png").write_bytes(png())
    app = create_app(dataclasses.replace(service, examples=tmp_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/examples/examples.json")).json() == examples
        response = await client.get("/examples/a.png")
        assert response.content == png()
        assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize("folder", [None, "missing"])
async def test_no_examples_is_an_empty_list(service: Service, tmp_path: Path, folder: str | None) -> None:
    app = create_app(dataclasses.replace(service, examples=tmp_path / folder if folder else None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/examples/examples.json")).json() == []


def test_web_imports_no_torch() -> None:
    code = "import sys, web.app; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=STATIC.parents[1], check=False).returncode == 0
