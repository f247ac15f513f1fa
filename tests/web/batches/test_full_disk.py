"""A full disk, made and real: an upload is refused whole, a batch waits, and nothing is lost or there twice."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from mmserve.config import BatchLimits
from mmserve.types import Request
from tests.web.batches.faulty import FullDisk
from tests.web.batches.office import CHAT, each_once, line, numbered, office
from tests.web.fakes import FakeEngine, Step, say
from web.service import Service

pytestmark = pytest.mark.anyio

OPERATIONS = ("extend", "sync", "move", "commit")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_upload_is_refused_and_leaves_nothing(service: Service, folder: Path, operation: str) -> None:
    disk = FullDisk()
    async with office(service, folder, disk=disk) as server:
        disk.full = lambda name: name == operation
        for size in (10, 3_000_000):
            response = await server.upload(b"x" * size)
            assert response.status_code == 507
            error = response.json()["error"]
            assert (error["code"], error["type"]) == ("storage_full", "server_error")
            assert str(folder) not in error["message"]
        assert not [*(folder / "files").iterdir(), *(folder / "incoming").iterdir()]
        disk.full = lambda _: False
        assert (await server.get("/v1/files")).json()["data"] == []
        assert (await server.upload(b"x")).status_code == 200


async def test_a_batch_is_refused_where_it_cannot_be_promised(service: Service, folder: Path) -> None:
    disk = FullDisk()
    async with office(service, folder, disk=disk) as server:
        file = (await server.upload(numbered(1))).json()
        disk.full = lambda _: True
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        assert (await server.http.post("/v1/batches", json=body)).status_code == 507
        assert (await server.get("/v1/batches")).json()["data"] == []


@pytest.mark.parametrize("operation", ["extend", "sync", "commit"])
async def test_a_batch_waits_and_goes_on(
    service: Service, engine: FakeEngine, folder: Path, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk()

    def script(request: Request) -> Iterable[Step]:
        if len(engine.requests) == 10:
            disk.full = lambda name: name == operation
        return say("yes", request=request)

    engine.script = script
    async with office(service, folder, disk=disk, limits=BatchLimits(concurrency=3)) as server:
        id_ = (await server.batch(numbered(40)))["id"]
        while disk.refused < 20:
            await asyncio.sleep(0.002)
        batch = await server.look(id_)
        assert batch["status"] == "in_progress"
        assert batch["request_counts"]["completed"] < 13
        asked = len(engine.requests)
        assert (await server.get("/health")).status_code == 200
        assert (await server.http.post(CHAT, json=line("a")["body"])).status_code == 200
        disk.full = lambda _: False
        batch = await server.until(id_, "completed")
        output, errors = await server.answers(batch)
    each_once(output, 40)
    assert not errors
    assert asked <= 13
    assert len(engine.requests) == 41  # what was computed while the disk was full was not computed again
    said = [record for record in caplog.records if record.name == "web.batches.shared"]
    assert [record.levelno for record in said] == [logging.ERROR, logging.WARNING]


async def test_every_state_waits_for_the_disk(service: Service, folder: Path) -> None:
    """Three operations in ten fail, from the validation to the end."""
    disk, chance = FullDisk(), random.Random(7)
    async with office(service, folder, disk=disk) as server:
        id_ = (await server.batch(numbered(20)))["id"]
        disk.full = lambda _: chance.random() < 0.3
        batch = await server.until(id_, "completed")
        disk.full = lambda _: False
        each_once((await server.answers(batch))[0], 20)
    assert disk.refused > 5


LIMITED = """
import asyncio, json, os, resource, sys
from pathlib import Path
from mmserve.config import BatchLimits
from tests.web.batches.office import numbered, office, each_once
from tests.web.fakes import FakeEngine, FakePrompts, say
from web.service import ServedModel, Service

async def main():
    engine = FakeEngine(lambda request: say("w" * 5000, request=request))
    service = Service(ServedModel("pocket-vl"), FakePrompts(), engine, max_model_len=512)
    async with office(service, Path(sys.argv[1]), limits=BatchLimits(concurrency=2)) as server:
        made = await server.batch(numbered(100))
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        await server.when(made["id"], lambda batch: server.batches._shared.waiting > 0)
        refused = await server.upload(b"x" * 400_000)
        health = await server.get("/health")
        waits = await server.look(made["id"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        batch = await server.until(made["id"], "completed")
        each_once((await server.answers(batch))[0], 100)
        await server.batches.settled()
        print(json.dumps([refused.status_code, health.status_code, waits["status"], len(engine.requests)]))

asyncio.run(main())
"""


def test_a_limit_of_the_system_is_a_full_disk(folder: Path) -> None:
    """``RLIMIT_FSIZE``: writes fail for real, those of SQLite too."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [507, 200, "in_progress", 100]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
