"""The limits on bodies, files, pixels, parts, fields and time, each by its own setting; see also test_uploads.py."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest

from mmserve.config import Limits
from tests.web.fakes import FakeEngine, png
from web.app import create_app
from web.service import Service

pytestmark = pytest.mark.anyio

PNG = png()
Serving = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serving(service: Service) -> Serving:
    """A client of a server with other limits."""

    @asynccontextmanager
    async def made(idle: float = 5.0, **limits: float) -> AsyncIterator[httpx.AsyncClient]:
        changed = dataclasses.replace(Limits(), **limits)  # type: ignore[arg-type]
        app = create_app(dataclasses.replace(service, limits=changed, upload_idle_seconds=idle))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            yield http

    return made


def form(*parts: tuple[str, bytes, str | None]) -> tuple[bytes, dict[str, str]]:
    body = b""
    for name, data, file in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        body += f"--X\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"
    return body + b"--X--\r\n", {"Content-Type": "multipart/form-data; boundary=X"}


ASKED = (("image", PNG, "a.png"), ("question", b"What?", None))


async def ask(http: httpx.AsyncClient, *parts: tuple[str, bytes, str | None]) -> httpx.Response:
    body, headers = form(*parts)
    return await http.post("/v1/vqa", content=body, headers=headers)


async def test_body_limit_to_the_byte(serving: Serving, engine: FakeEngine) -> None:
    size = len(form(*ASKED)[0])
    async with serving(max_body_bytes=size) as http:
        assert (await ask(http, *ASKED)).status_code == 200
    async with serving(max_body_bytes=size - 1) as http:
        response = await ask(http, *ASKED)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        for path in ("/v1/chat/completions", "/v1/decisions", "/generate", "/v1/captions", "/v1/pictures"):
            body, headers = form(*ASKED)
            assert (await http.post(path, content=body + b" " * 99, headers=headers)).status_code == 413
    assert len(engine.requests) == 1


async def test_file_limit_to_the_byte(serving: Serving) -> None:
    async with serving(max_picture_bytes=len(PNG)) as http:
        assert (await ask(http, *ASKED)).status_code == 200
    async with serving(max_picture_bytes=len(PNG) - 1) as http:
        response = await ask(http, *ASKED)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "image_too_large")


async def test_pixel_limit_is_read_from_the_header_and_nothing_is_decoded(serving: Serving) -> None:
    """A picture bomb: 100,000 x 100,000 pixels in a few bytes of header, with no pixels behind it at all."""
    bomb = PNG[:16] + (100_000).to_bytes(4, "big") * 2 + PNG[24:33]
    async with serving(max_picture_pixels=48) as http:
        for data, status in ((PNG, 200), (png(7, 7), 413), (bomb, 413)):
            body, headers = form(("image", data, "a.png"))
            response = await http.post("/v1/pictures", content=body, headers=headers)
            assert response.status_code == status, response.text


async def test_part_limit(serving: Serving) -> None:
    stops = tuple(("stop", b"x", None) for _ in range(5))
    async with serving(max_parts=7, max_pictures=1) as http:
        assert (await ask(http, *ASKED, *stops[:4])).status_code == 200
        many = await ask(http, *ASKED, *stops, *stops)
        assert (many.status_code, "parts" in many.json()["error"]["message"]) == (400, True)


async def test_field_limit_to_the_byte(serving: Serving) -> None:
    async with serving(max_field_bytes=5) as http:
        assert (await ask(http, *ASKED)).status_code == 200
        response = await ask(http, ASKED[0], ("question", b"What??", None))
        assert (response.status_code, response.json()["error"]["param"]) == (400, "question")


async def test_a_parts_headers_are_limited(serving: Serving) -> None:
    async with serving() as http:
        body, headers = form(*ASKED)
        fat = body.replace(b"Content-Disposition", b"X-A: " + b"y" * 20_000 + b"\r\nContent-Disposition", 1)
        response = await http.post("/v1/vqa", content=fat, headers=headers)
        assert (response.status_code, "header" in response.json()["error"]["message"].lower()) == (400, True), (
            response.text
        )


async def test_a_body_that_trickles_for_ever_is_ended(serving: Serving, engine: FakeEngine) -> None:
    """Each byte comes within the time that a body may stand still, and all of them do not within the time for all."""
    body, headers = form(*ASKED)
    sent = 0

    async def trickle() -> AsyncIterator[bytes]:
        nonlocal sent
        for byte in body * 100:
            sent += 1
            yield bytes([byte])
            await asyncio.sleep(0.01)

    async with serving(upload_seconds=0.2) as http:
        response = await http.post("/v1/vqa", content=trickle(), headers=headers)
    assert response.status_code == 400
    assert "0.2 seconds" in response.json()["error"]["message"]
    assert sent < len(body)
    assert engine.requests == []


async def test_a_compressed_body_is_not_opened(serving: Serving) -> None:
    body = gzip.compress(json.dumps({"messages": [{"role": "user", "content": "a" * 1000}]}).encode())
    async with serving() as http:
        response = await http.post("/v1/chat/completions", content=body, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_field")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/v1/decisions"])
@pytest.mark.parametrize("open_", [b"[", b'{"a":'])
async def test_json_that_nests_without_end_is_refused(serving: Serving, path: str, open_: bytes) -> None:
    async with serving() as http:
        for body in (open_ * 100_000, b'{"messages":' + open_ * 100_000, b'{"metadata":' + open_ * 100_000):
            assert (await http.post(path, content=body)).status_code == 400


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<!---->" * 1000, "not a picture"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"\x1a\x45\xdf\xa3", "video"),
        (b"PK\x03\x04", "archive"),
        (b"#!/bin/sh", "not a picture"),
    ],
)
async def test_files_that_are_no_still_picture_are_a_typed_400(
    client: httpx.AsyncClient, data: bytes, says: str
) -> None:
    """Whatever their name and media type say; tests/vision/test_refused_files.py has the rule."""
    files = {"image": ("holiday.png", data, "image/png")}
    response = await client.post("/v1/pictures", files=files)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_image", "image")
    assert says in error["message"]
