"""Clients that go away, over real sockets: their requests end, the others' do not."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from mmserve.types import Request
from tests.web.fakes import FakeEngine, eventually, forever, png, say, silence, sse

CHAT = "/v1/chat/completions"


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], **fields}


def form(**fields: str) -> dict[str, Any]:
    return {"data": {"question": "What?", **fields}, "files": {"image": ("a.png", png())}}


STREAMED = [("/v1/vqa", form(stream="true")), (CHAT, {"json": chat_body(stream=True)})]
WHOLE = [("/v1/vqa", form()), (CHAT, {"json": chat_body()}), (CHAT, {"json": chat_body(n=3)})]


@pytest.mark.parametrize(("path", "request_body"), [*STREAMED, (CHAT, {"json": chat_body(stream=True, n=3)})])
def test_leaving_a_stream_ends_its_requests(
    live: str, engine: FakeEngine, path: str, request_body: dict[str, Any]
) -> None:
    engine.script = forever
    with httpx.Client(base_url=live) as client, client.stream("POST", path, **request_body) as response:
        pieces = response.iter_bytes()
        for _ in range(3):
            assert next(pieces).startswith(b"data: ")
        assert engine.running
    eventually(lambda: not engine.running)
    assert sorted(engine.aborted) == sorted(request.id for request in engine.requests)


@pytest.mark.parametrize("script", [silence, forever])
@pytest.mark.parametrize(("path", "request_body"), WHOLE)
def test_leaving_before_the_answer_ends_its_requests(
    live: str, engine: FakeEngine, path: str, request_body: dict[str, Any], script: Any
) -> None:
    engine.script = script
    with httpx.Client(base_url=live, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post(path, **request_body)
    eventually(lambda: bool(engine.requests) and not engine.running)
    assert sorted(engine.aborted) == sorted(request.id for request in engine.requests)


@pytest.mark.parametrize(("path", "request_body"), STREAMED)
def test_leaving_a_stream_before_its_first_token_ends_its_request(
    live: str, engine: FakeEngine, path: str, request_body: dict[str, Any]
) -> None:
    engine.script = silence
    with httpx.Client(base_url=live, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post(path, **request_body)
    eventually(lambda: bool(engine.aborted) and not engine.running)


def test_client_that_stops_reading_and_leaves_ends_its_request(live: str, engine: FakeEngine) -> None:
    """The server is held in a write to a full socket when the client goes."""

    sent = 0

    def flood(request: Request) -> Any:
        nonlocal sent
        for step in say(*["x" * 60_000] * 1000, request=request, wait=0.0):
            sent += 1
            yield step

    engine.script = flood
    body = json.dumps(chat_body(stream=True)).encode()
    url = httpx.URL(live)
    raw = socket.create_connection((url.host, url.port or 80))
    raw.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
    eventually(lambda: sent > 0)
    before = -1
    while sent > before:
        before = sent
        time.sleep(0.1)
    assert engine.running
    raw.close()
    eventually(lambda: not engine.running)
    assert engine.aborted


def test_requests_in_flight_are_unharmed_by_others_that_leave_or_fail(live: str, engine: FakeEngine) -> None:
    def script(request: Request) -> Any:
        if request.cache_salt == "stays":
            return say("one", "two", "three", "four", "five", "six", request=request, wait=0.05)
        return forever(request) if request.cache_salt == "leaves" else [KeyError("fault")]

    engine.script = script
    kept: list[bytes] = []

    def stay() -> None:
        with httpx.Client(base_url=live) as client:
            kept.append(client.post(CHAT, json=chat_body(stream=True, cache_salt="stays")).content)

    threads = [threading.Thread(target=stay) for _ in range(3)]
    for thread in threads:
        thread.start()
    with httpx.Client(base_url=live) as client:
        for _ in range(3):
            with client.stream("POST", CHAT, json=chat_body(stream=True, cache_salt="leaves")) as response:
                next(response.iter_bytes())
            assert client.post(CHAT, json=chat_body(cache_salt="fails")).status_code == 500
            assert client.post(CHAT, content=b"{").status_code == 400
    for thread in threads:
        thread.join(20)
    for body in kept:
        *chunks, done = sse(body)
        assert done == "[DONE]"
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "onetwothreefourfivesix"
    assert len(kept) == 3
    eventually(lambda: not engine.running)
