from __future__ import annotations

import asyncio
import http.client
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import pairwise

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from mmserve.config import Limits
from mmserve.errors import MMServeError, RequestError
from tests.web.fakes import FakeEngine, png
from tests.web.test_vqa import error_of
from web.pictures import PictureShelf
from web.service import Service
from web.uploads import Form, FormRules, read_form

pytestmark = pytest.mark.anyio

PNG = png()
LIMITS = Limits(max_picture_bytes=2000, max_pictures=2, max_body_bytes=10_000)
RULES = FormRules("image", ("question", "stop"), repeated=("stop",))
TYPE = "multipart/form-data; boundary=XX"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"


BODY = part("image", PNG, "a.png") + part("question", b"What?") + part("image", b"\r\n--X", "b") + b"--XX--\r\n"


def read(chunks: list[bytes], content_type: str = TYPE, **headers: str) -> Form:
    """``read_form`` on a request whose body comes as ``chunks``."""
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks] + [{"type": "http.request"}]
    )

    async def receive() -> Message:
        return next(messages)

    sent = {"content-type": content_type} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in sent.items()]}
    return asyncio.run(read_form(Request(scope, receive), RULES, PictureShelf(LIMITS), idle_seconds=1.0))


def test_form_is_read_whole() -> None:
    form = read([BODY])
    assert form == Form((PNG, b"\r\n--X"), {"question": ("What?",)})
    assert form.size == len(PNG) + 5


def test_every_cut_of_the_body_reads_the_same() -> None:
    for cut in range(len(BODY)):
        assert read([BODY[:cut], BODY[cut:]]) == read([BODY]), cut


@given(st.lists(st.integers(0, len(BODY)), max_size=20))
def test_any_chunking_reads_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BODY)]
    assert read([BODY[a:b] for a, b in pairwise(edges)]) == read([BODY])


def test_every_truncation_is_refused() -> None:
    closing = BODY.rindex(b"--XX--") + len(b"--XX--")
    for end in range(closing):
        with pytest.raises(MMServeError) as caught:
            read([BODY[:end]])
        assert caught.value.kind == "invalid_request_error"
    assert read([BODY[:closing]]).files


@settings(max_examples=300)
@given(st.data())
def test_mutilated_bodies_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with suppress(RequestError):
        read([bytes(body)])


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=XX"],
)
def test_other_content_types_say_what_to_send(content_type: str) -> None:
    with pytest.raises(MMServeError, match="curl -F image=@") as caught:
        read([BODY], content_type)
    assert caught.value.param == "image"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XX--", "no name"),
        (b"--XX\r\nX: y\r\n\r\nx\r\n--XX--", "no name"),
        (b"--YY\r\n", "broken"),
        (part("question", b"\xff\xfe") + b"--XX--", "UTF-8"),
        (part("question", b"x") * 2, "twice"),
        (part("image", b"x", "a") * 3, "at most 2 pictures"),
    ],
)
def test_bad_bodies(body: bytes, message: str) -> None:
    with pytest.raises(Exception, match=message):
        read([body])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (part("stop", b"") * 300, "at most 256 parts"),
        (part("question", b"x" * (1024 * 1024 + 1)), "question has more than 1048576 bytes"),
        (b"--XX\r\nX: " + b"y" * 20_000, "[Hh]eader"),
        (b"--XX\r\n" + b"X: y\r\n" * 9000, "[Hh]eader"),
    ],
)
def test_bodies_that_go_too_far(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        asyncio.run(_read_with_room(body))


async def _read_with_room(body: bytes) -> Form:
    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    scope = {"type": "http", "headers": [(b"content-type", TYPE.encode())]}
    return await read_form(Request(scope, receive), RULES, PictureShelf(Limits()), idle_seconds=1.0)


def test_picture_over_its_limit_is_refused_before_the_rest_is_read() -> None:
    assert read([part("image", bytes(2000), "a") + b"--XX--"]).size == 2000
    never = part("unknown", b"")
    with pytest.raises(MMServeError, match="picture 2 has more than 2000 bytes") as caught:
        read([part("image", b"x", "a"), part("image", bytes(2001), "b"), never])
    assert (caught.value.code, caught.value.param) == ("image_too_large", "image")


def test_repeated_headers_count_per_part() -> None:
    """The header limit is a part's own: many small parts do not add up to one refusal."""
    body = part("stop", b"x") * 100 + b"--XX--"
    assert len(asyncio.run(_read_with_room(body)).fields["stop"]) == 100


DROPPED = 16 << 20
"""Bytes of a refused body that are taken all the same, so that the refusal arrives (``web.unread``)."""


async def test_declared_length_over_the_limit_is_refused_unread(client: httpx.AsyncClient) -> None:
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1000)

    headers = {"content-type": TYPE, "content-length": "2000001"}
    response = await client.post("/v1/vqa", content=body(), headers=headers)
    assert "2000000" in error_of(response, 413, "request_too_large", None)
    assert taken <= DROPPED // 1000 + 1


@pytest.mark.parametrize("path", ["/v1/vqa", "/v1/chat/completions"])
async def test_undeclared_length_is_cut_at_the_limit(client: httpx.AsyncClient, path: str) -> None:
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b"--XX\r\nContent-Disposition: form-data; name=question\r\n\r\n"
        while True:
            taken += 100_000
            yield b" " * 100_000

    response = await client.post(path, content=body(), headers={"content-type": TYPE})
    assert response.status_code in (400, 413)
    assert taken <= 2_100_000 + DROPPED


async def test_upload_that_stands_still_is_refused(client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield BODY[:50]
        await asyncio.sleep(3600)

    started = time.monotonic()
    response = await client.post("/v1/vqa", content=body(), headers={"content-type": TYPE})
    assert "stood still" in error_of(response, 400, "invalid_request", None)
    assert time.monotonic() - started < 5


# With real sockets: what the client sees when it is refused in the middle of its upload.


def test_refusal_reaches_a_client_that_is_still_sending(live: str) -> None:
    """An early answer must not become a connection reset, which hides it."""
    address = httpx.URL(live)
    for chunked in (True, False):
        connection = http.client.HTTPConnection(address.host, address.port or 80, timeout=20)
        try:
            connection.putrequest("POST", "/v1/vqa")
            connection.putheader("Content-Type", TYPE)
            block = bytes(100_000)
            head = part("image", b"", "a.png")[:-2]
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
                connection.endheaders()
                for data in (head, *[block] * 100):
                    connection.send(b"%x\r\n%s\r\n" % (len(data), data))
                connection.send(b"0\r\n\r\n")
            else:
                connection.putheader("Content-Length", str(100 * len(block)))
                connection.endheaders()
                for _ in range(100):
                    connection.send(block)
            response = connection.getresponse()
            assert response.status == 413, response.read()
            response.read()
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
        finally:
            connection.close()


def test_client_that_goes_away_during_its_upload_is_forgotten(
    live: str, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    address = httpx.URL(live)
    for _ in range(5):
        with socket.create_connection((address.host, address.port or 80)) as raw:
            raw.sendall(b"POST /v1/vqa HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=XX\r\n")
            raw.sendall(b"Content-Length: 5000\r\n\r\n" + BODY[: random.randrange(len(BODY))])
    assert httpx.get(f"{live}/health").status_code == 200
    assert isinstance(service.engine, FakeEngine)
    assert not service.engine.requests
    assert "Traceback" not in caplog.text
