"""The front while the model loads, while it serves, and while it drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from mmserve.cli_serve import drain
from mmserve.errors import EngineUnavailable
from mmserve.types import Request
from tests.web.fakes import FakeEngine, Step, forever, png, say
from web.app import create_app
from web.operations.front import Front
from web.service import Service

pytestmark = pytest.mark.anyio


@pytest.fixture
async def front() -> Front:
    return Front()


@pytest.fixture
async def at_front(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://test") as client:
        yield client


async def ask(http: httpx.AsyncClient, **fields: str) -> httpx.Response:
    data = {"question": "What?"} | fields
    return await http.post("/v1/vqa", files=[("image", ("a.png", png(), "image/png"))], data=data)


def refused(response: httpx.Response) -> bool:
    assert (response.status_code == 503) == ("retry-after" in response.headers)
    return response.status_code == 503 and response.json()["error"]["code"] == "engine_unavailable"


async def settled(engine: FakeEngine) -> None:
    async with asyncio.timeout(20):
        while not engine.running:
            await asyncio.sleep(0.01)


async def test_while_loading_it_lives_and_is_not_healthy(at_front: httpx.AsyncClient) -> None:
    assert (await at_front.get("/live")).json() == {"status": "ok"}
    health = await at_front.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    answer = await at_front.post("/v1/vqa", headers={"X-Request-Id": "mine"})
    assert refused(answer)
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert refused(await at_front.get("/metrics"))


async def test_when_loaded_it_is_the_application(front: Front, at_front: httpx.AsyncClient, service: Service) -> None:
    front.serve(create_app(service))
    assert (await at_front.get("/health")).status_code == 200
    assert (await at_front.get("/live")).status_code == 200
    assert (await ask(at_front)).json()["answer"] == "It is a cat."
    assert front.open_requests == 0


async def test_while_draining_only_what_runs_goes_on(
    front: Front, at_front: httpx.AsyncClient, service: Service, engine: FakeEngine
) -> None:
    engine.script = lambda request: say("It", " ends.", request=request, wait=0.2)
    front.serve(create_app(service))
    running = asyncio.create_task(ask(at_front))
    await settled(engine)
    front.drain()
    new = await ask(at_front)
    assert refused(new)
    assert new.headers["connection"] == "close"
    health = await at_front.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "draining"})
    assert (await at_front.get("/live")).status_code == 200
    assert (await at_front.get("/metrics")).status_code == 200
    assert (await at_front.post("/abort_request", json={"rid": "none"})).json() == {"aborted": 0}
    assert front.open_requests == 1
    await front.idle()
    assert (await running).json()["answer"] == "It ends."


async def test_a_drain_waits_for_what_runs(
    front: Front, at_front: httpx.AsyncClient, service: Service, engine: FakeEngine
) -> None:
    engine.script = lambda request: say("It", " ends.", request=request, wait=0.1)
    front.serve(create_app(service))
    running = asyncio.create_task(ask(at_front))
    await settled(engine)
    await drain(front, engine, asyncio.Event(), 20)
    assert engine.ready
    assert (await running).status_code == 200


@pytest.mark.parametrize("hurry", [False, True])
async def test_what_does_not_end_in_time_loses_its_engine(
    front: Front, at_front: httpx.AsyncClient, service: Service, engine: FakeEngine, hurry: bool
) -> None:
    def script(request: Request) -> Iterator[Step]:
        for step in forever(request):
            yield step if engine.ready else EngineUnavailable("the engine has stopped")

    engine.script = script
    front.serve(create_app(service))
    running = asyncio.create_task(ask(at_front))
    await settled(engine)
    hurried = asyncio.Event()
    if hurry:
        hurried.set()
    async with asyncio.timeout(20):
        await drain(front, engine, hurried, 1000 if hurry else 0.05)
        assert refused(await running)
    assert not engine.ready
    assert front.open_requests == 0


async def test_an_idle_drain_is_over_at_once(front: Front, service: Service, engine: FakeEngine) -> None:
    front.serve(create_app(service))
    await drain(front, engine, asyncio.Event(), 1000)
    assert engine.ready
