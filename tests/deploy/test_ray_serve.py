"""The service on a Ray of its own, over stand-in engines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ray = pytest.importorskip("ray", reason="Ray is an extra; make cluster installs it and runs these")

from bench.server import family_of  # noqa: E402
from mmserve.deploy.cluster import Cluster  # noqa: E402
from mmserve.deploy.fleet import Fleet  # noqa: E402
from mmserve.deploy.ray_serve import Running, serving  # noqa: E402
from tests.deploy.fleet import LIMITS  # noqa: E402
from tests.deploy.standins import standin  # noqa: E402
from tests.web.fakes import eventually, png, sse  # noqa: E402

pytestmark = pytest.mark.ray

FLEET = Fleet(least=2, most=2, cpus=0.1, health_seconds=1.0, drain_seconds=10.0)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Cluster(None, 100_000_000, "127.0.0.1", free_port(), cpus=2)) as running:
        yield running


@pytest.fixture(scope="module")
def url(running: Running) -> str:
    return running.up("mmserve", standin, FLEET, LIMITS)


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def vqa(client: httpx.Client, picture: bytes, **fields: str) -> httpx.Response:
    data = {"question": "What is it?", **fields}
    return client.post("/v1/vqa", data=data, files={"image": ("a.png", picture)})


def test_the_whole_way(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert "<!doctype html>" in client.get("/").text
    response = vqa(client, png())
    assert response.json()["answer"] == "It is a cat."
    assert len(response.headers.get_list("x-request-id")) == 1
    assert response.headers["x-content-type-options"] == "nosniff"
    events = sse(vqa(client, png(), stream="true").content)
    assert "".join(event["delta"] for event in events[:-1]) == "It is a cat."
    assert events[-1] == "[DONE]"
    assert vqa(client, b"no picture").json()["error"]["code"] == "unsupported_image"
    assert client.get("/flush_cache").json() == {"flushed_tokens": 14}
    assert client.get("/metrics").text.count("\nmmserve:ready{") == 2
    kept = client.post("/v1/pictures", files={"image": ("a.png", png())}).json()["data"][0]["id"]
    by_id = client.post("/v1/vqa", data={"question": "What?"}, files={"image": (None, kept)})
    assert by_id.json()["answer"] == "It is a cat."


def test_a_picture_is_asked_about_where_it_is_known(client: httpx.Client) -> None:
    pictures = [png(9 + i, 9) for i in range(12)]
    for round_ in range(3):
        for picture in pictures:
            usage = vqa(client, picture, question=f"Question {round_}?").json()["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            assert cached == (0 if round_ == 0 else usage["prompt_tokens"])
    metrics = client.get("/metrics").text.splitlines()
    asked = [line for line in metrics if line.startswith("mmserve:http_requests_total{") and "vqa" in line]
    assert len({line.split('"')[1] for line in asked}) == 2, "both replicas had some of them"


def test_a_replica_that_is_killed_loses_what_it_was_doing_and_nothing_else(url: str) -> None:
    asyncio.run(_kill_one(url))
    with httpx.Client(base_url=url, timeout=30) as client:
        eventually(lambda: client.get("/metrics").text.count("\nmmserve:ready{") == 2, seconds=60)


async def _kill_one(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def ask(i: int, **fields: str) -> httpx.Response:
            files = {"image": ("a.png", png(30 + i, 9))}
            return await client.post("/v1/vqa", data={"question": "What?", **fields}, files=files)

        # Each takes 0.6 seconds; half of them stream and are half-way when the replica goes.
        tasks = [asyncio.create_task(ask(i, max_tokens="7", stream=str(i % 2 == 0).lower())) for i in range(12)]
        await asyncio.sleep(0.35)
        await asyncio.to_thread(kill_replica)
        answers = await asyncio.gather(*tasks)
        lost = [answer for answer in answers if not _is_whole(answer)]
        assert 0 < len(lost) < 12
        for answer in lost:
            error = answer.json() if answer.status_code == 503 else sse(answer.content)[-2]
            assert error["error"]["code"] == "engine_unavailable"
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "5"
        again = await asyncio.gather(*(ask(i) for i in range(12)))
        assert [answer.status_code for answer in again] == [200] * 12


def _is_whole(answer: httpx.Response) -> bool:
    if answer.headers["content-type"].startswith("text/event-stream"):
        return "error" not in sse(answer.content)[-2]
    return answer.status_code == 200


def kill_replica() -> None:
    """End one engine's process there and then."""
    names = (actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))
    ray.kill(ray.get_actor(next(name for name in names if "#engine#" in name), namespace="serve"))


def test_it_grows_and_shrinks_without_a_failed_request(running: Running, url: str) -> None:
    asyncio.run(_rescale(running, url))


async def _rescale(running: Running, url: str) -> None:
    statuses: list[int] = []
    done = asyncio.Event()

    async def go_on(client: httpx.AsyncClient, number: int) -> None:
        while not done.is_set():
            files = {"image": ("a.png", png(50 + number, 9))}
            data = {"question": "What?", "max_tokens": "7"}
            statuses.append((await client.post("/v1/vqa", data=data, files=files)).status_code)

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        users = [asyncio.create_task(go_on(client, number)) for number in range(6)]
        for count in (3, 1):
            fleet = Fleet(least=count, most=count, cpus=0.1, health_seconds=1.0, drain_seconds=10.0)
            await asyncio.to_thread(running.up, "mmserve", standin, fleet, LIMITS)
            async with asyncio.timeout(60):
                while (await client.get("/metrics")).text.count("\nmmserve:ready{") != count:
                    await asyncio.sleep(0.1)
        done.set()
        await asyncio.gather(*users)
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_the_command_serves_until_it_is_told_to_end() -> None:
    port = free_port()
    command = [sys.executable, "-m", "mmserve", "deploy", "--port", str(port), "--cpus", "0.2", "--device", "cpu"]
    command += ["--object-store-bytes", "100000000", "--tp", "2"]  # the replica's process is rank 0 and starts rank 1
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if " is served at " in line)
        assert line.endswith(f"http://127.0.0.1:{port}\n")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert vqa(client, png(64, 64)).json()["answer"]
        ranks = [pid for pid in family_of(process.pid) if _is_rank(pid)]
        assert len(ranks) == 1
    finally:
        process.terminate()
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    eventually(lambda: not any(map(_is_rank, ranks)))


def _is_rank(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "mmserve.engine.parallel.worker" in Path(f"/proc/{pid}/cmdline").read_text()
    return False
