from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from mmserve.deploy.front import create_front
from mmserve.types import Request
from tests.deploy.fleet import LIMITS, LocalReplicas
from tests.web.fakes import Step, forever, png, say, silence, sse

pytestmark = pytest.mark.anyio

RED, BLUE = png(), png(colour="blue")


@asynccontextmanager
async def client_of(replicas: LocalReplicas) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_front(replicas, LIMITS), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


@pytest.fixture
def replicas() -> LocalReplicas:
    return LocalReplicas("abcde")


@pytest.fixture
async def client(replicas: LocalReplicas) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(replicas) as http:
        yield http


async def vqa(client: httpx.AsyncClient, picture: bytes | str, **fields: str) -> httpx.Response:
    data = {"question": "What is it?", **fields}
    if isinstance(picture, str):
        return await client.post("/v1/vqa", data=data, files={"image": (None, picture)})
    return await client.post("/v1/vqa", data=data, files={"image": ("a.png", picture)})


async def test_an_answer_comes_through_as_the_replica_gave_it(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={"X-Request-Id": "mine"})
    assert response.json()["data"][0]["id"] == "pocket-vl"
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]
    page = await client.get("/")
    assert "<!doctype html>" in page.text
    answer = (await vqa(client, RED)).json()
    assert answer["answer"] == "It is a cat."


async def test_questions_about_a_picture_go_to_one_replica(client: httpx.AsyncClient, replicas: LocalReplicas) -> None:
    for i in range(6):
        assert (await vqa(client, RED, question=f"Question {i}?")).status_code == 200
    assert len(set(replicas.asked)) == 1


async def test_requests_about_nothing_are_spread(client: httpx.AsyncClient, replicas: LocalReplicas) -> None:
    for _ in range(60):
        await client.get("/v1/models")
    assert set(replicas.asked) == set("abcde")  # by chance not so in one of a hundred thousand runs


async def test_a_kept_picture_is_found_at_once_and_so_is_a_response(
    client: httpx.AsyncClient, replicas: LocalReplicas
) -> None:
    kept = (await client.post("/v1/pictures", files={"image": ("a.png", RED)})).json()["data"][0]["id"]
    assert (await vqa(client, kept)).json()["answer"] == "It is a cat."
    said = (await client.post("/v1/responses", json={"input": "Who?", "model": "pocket-vl"})).json()["id"]
    assert (await client.get(f"/v1/responses/{said}")).json()["id"] == said
    more = await client.post("/v1/responses", json={"input": "And?", "previous_response_id": said})
    assert more.status_code == 200
    assert (await client.delete(f"/v1/pictures/{kept}")).json()["deleted"] is True
    assert len(replicas.asked) == 6, "each was asked for once"
    assert len(set(replicas.asked[:2] + replicas.asked[5:])) == 1
    assert len(set(replicas.asked[2:5])) == 1


async def test_what_another_front_had_kept_is_looked_for(client: httpx.AsyncClient, replicas: LocalReplicas) -> None:
    kept = (await client.post("/v1/pictures", files={"image": ("a.png", RED)})).json()["data"][0]["id"]
    async with client_of(replicas) as other:
        assert (await vqa(other, kept)).json()["answer"] == "It is a cat."
        unknown = await vqa(other, "pic-nobody")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "image_not_kept"
    assert set(replicas.asked[-5:]) == set("abcde"), "all were asked"


async def test_a_route_that_is_not_there_is_asked_for_once(client: httpx.AsyncClient, replicas: LocalReplicas) -> None:
    assert (await client.get("/nothing")).json()["error"]["code"] == "not_found"
    assert len(replicas.asked) == 1


async def test_what_concerns_all_is_done_by_all(client: httpx.AsyncClient, replicas: LocalReplicas) -> None:
    assert (await client.post("/flush_cache")).json() == {"flushed_tokens": 35}
    assert [engine.flushed for engine in replicas.engines.values()] == [1] * 5
    assert (await client.post("/abort_request", json={"rid": "x"})).json() == {"aborted": 0}
    refused = await client.post("/abort_request", json={})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "rid")
    metrics = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    ready = [line for line in metrics.text.splitlines() if line.startswith("mmserve:ready{")]
    assert [line.split('"')[1] for line in ready] == list("abcde")


async def test_health_is_that_of_the_replicas(client: httpx.AsyncClient, replicas: LocalReplicas) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    for engine in replicas.engines.values():
        engine.ready = False
    assert (await client.get("/health")).status_code == 503
    assert (await client.get("/live")).status_code == 200
    assert (await client.post("/live")).status_code == 405, "only watching is answered here"
    async with client_of(LocalReplicas("")) as alone:
        assert (await alone.get("/health")).status_code == 503


async def test_a_replica_that_is_lost_is_a_retryable_error(client: httpx.AsyncClient, replicas: LocalReplicas) -> None:
    replicas.lost = dict.fromkeys("abcde", 0)
    response = await vqa(client, RED)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert response.headers["x-request-id"]


async def test_a_stream_whose_replica_is_lost_ends_with_the_error() -> None:
    def slowly(request: Request) -> Iterator[Step]:
        return say("It", " is", " a cat.", request=request, wait=0.02)

    replicas = LocalReplicas("ab", slowly)
    replicas.lost = dict.fromkeys("ab", 2)
    async with client_of(replicas) as client:
        events = sse((await vqa(client, RED, stream="true")).content)
    assert events[0]["delta"] == "It"
    assert events[-2]["error"]["code"] == "engine_unavailable"
    assert events[-1] == "[DONE]"


async def test_a_popular_picture_spills_over() -> None:
    replicas = LocalReplicas("abc", lambda request: say("Yes", ".", request=request, wait=0.05))
    async with client_of(replicas) as client:
        answers = await asyncio.gather(*(vqa(client, RED, question=f"{i}?") for i in range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert max(replicas.asked.count(name) for name in "abc") <= 10  # 1.25 times the mean of 8


@pytest.mark.parametrize("script", [forever, silence])
async def test_a_client_that_leaves_ends_its_request(script: Any) -> None:
    replicas = LocalReplicas("ab", script)
    front = create_front(replicas, LIMITS)
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()
    gone, sent = asyncio.Event(), [body]

    async def receive() -> dict[str, Any]:
        if sent:
            return {"type": "http.request", "body": sent.pop()}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    task = asyncio.create_task(front(scope, receive, send))
    while not any(engine.running for engine in replicas.engines.values()):
        await asyncio.sleep(0.005)
    gone.set()
    await asyncio.wait_for(task, 10)
    assert not any(engine.running for engine in replicas.engines.values())
    assert sum(len(engine.aborted) for engine in replicas.engines.values()) == 1


async def test_a_body_beyond_the_limit_never_reaches_a_replica(
    client: httpx.AsyncClient, replicas: LocalReplicas
) -> None:
    response = await client.post("/v1/chat/completions", content=b"x" * (LIMITS.max_body_bytes + 1))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert replicas.asked == []


async def test_a_large_body_is_keyed_like_a_small_one(client: httpx.AsyncClient, replicas: LocalReplicas) -> None:
    picture = RED + bytes(400_000)
    for question in ("One?", "Two?"):
        assert (await vqa(client, picture, question=question)).status_code == 200
    assert len(set(replicas.asked)) == 1
