"""Files and batches of several keys: each has its own, and its batches keep to its limits without using them up."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from mmserve.keys import revoke_key
from mmserve.types import Request
from tests.web.access.conftest import Clock as Monotonic
from tests.web.access.conftest import MakeKey, bearer, clock, keys_file, locked, make_key, secrets
from tests.web.batches.office import CHAT, each_once, line, numbered, office
from tests.web.fakes import FakeEngine, FakePrompts, Step, say
from web.access.ring import KeyRing
from web.safety import Safety
from web.service import Service

__all__ = ["clock", "keys_file", "locked", "make_key", "secrets"]

pytestmark = pytest.mark.anyio


async def test_another_key_s_files_and_batches_are_as_none(
    locked: Service, secrets: Mapping[str, str], folder: Path
) -> None:
    alice, bob, root = (bearer(secrets[name]) for name in ("alice", "bob", "root"))
    async with office(locked, folder, headers=alice) as server:
        batch = await server.until((await server.batch(numbered(2)))["id"], "completed")
        paths = [f"/v1/batches/{batch['id']}"]
        for id_ in (batch["input_file_id"], batch["output_file_id"]):
            paths += [f"/v1/files/{id_}", f"/v1/files/{id_}/content"]
        for other in (bob, root):
            for path in paths:
                assert (await server.http.get(path, headers=other)).status_code == 404
                assert (await server.http.get(path)).status_code == 401
            assert (await server.http.post(f"{paths[0]}/cancel", headers=other)).status_code == 404
            assert (await server.http.delete(paths[1], headers=other)).status_code == 404
            body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
            assert (await server.http.post("/v1/batches", json=body, headers=other)).status_code == 404
            for kind in ("files", "batches"):
                assert (await server.http.get(f"/v1/{kind}", headers=other)).json()["data"] == []
                mine = (await server.get(f"/v1/{kind}")).json()["data"]
                wrong = await server.http.get(f"/v1/{kind}?after={mine[0]['id']}", headers=other)
                assert wrong.status_code == 400
        assert all([(await server.get(path)).status_code == 200 for path in paths])


async def test_its_work_is_done_under_its_own_key(
    locked: Service, secrets: Mapping[str, str], folder: Path, prompts: FakePrompts
) -> None:
    async with office(locked, folder, headers=bearer(secrets["alice"])) as server:
        await server.http.post(CHAT, json=line("a")["body"], headers=server.headers)
        [direct] = prompts.salts
        await server.until((await server.batch(numbered(2)))["id"], "completed")
    assert direct.startswith("key/")
    assert prompts.salts == [direct] * 3


async def test_a_batch_waits_where_its_key_has_a_limit_and_leaves_requests_theirs(
    service: Service, engine: FakeEngine, folder: Path, keys_file: Path, clock: Monotonic, make_key: MakeKey
) -> None:
    secret = make_key("slow", concurrency=1, requests_per_minute=40)
    most = 0

    def script(request: Request) -> Iterable[Step]:
        nonlocal most
        most = max(most, len(engine.running))
        return say("a", "b", request=request, wait=0.001)

    engine.script = script
    service = dataclasses.replace(service, safety=Safety(keys=KeyRing(keys_file, clock)))
    async with office(service, folder, headers=bearer(secret)) as server:
        batch = await server.batch(numbered(12))
        while server.batches._jobs:
            await asyncio.sleep(0.002)
        done = await server.look(batch["id"])
        output, errors = await server.answers(done)
        assert (await server.http.post(CHAT, json=line("a")["body"], headers=server.headers)).status_code == 200
    each_once(output, 12)
    assert not errors
    assert most == 1


async def test_a_request_that_its_key_may_never_send_fails_at_once(
    service: Service, folder: Path, keys_file: Path, clock: Monotonic, make_key: MakeKey
) -> None:
    from tests.web.batches.office import jsonl
    from tests.web.test_chat import picture, text, user

    secret = make_key("few", pictures_per_minute=1)
    service = dataclasses.replace(service, safety=Safety(keys=KeyRing(keys_file, clock)))
    content = user(picture(), picture(), text("Which?"))["content"]
    async with office(service, folder, headers=bearer(secret)) as server:
        request = line("r0")
        request["body"]["messages"] = [{"role": "user", "content": content}]
        batch = await server.until((await server.batch(jsonl([request])))["id"], "completed")
        _, [error] = await server.answers(batch)
    assert error["response"]["status_code"] == 429


async def test_the_work_of_a_revoked_key_stands_still(
    locked: Service, secrets: Mapping[str, str], folder: Path, keys_file: Path, clock: Monotonic, engine: FakeEngine
) -> None:
    headers = bearer(secrets["alice"])
    async with office(locked, folder, headers=headers) as server:
        file = (await server.upload(numbered(3))).json()
        revoke_key(keys_file, "alice")
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        made = (await server.http.post("/v1/batches", json=body, headers=headers)).json()
        clock.now += 5
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert (await server.http.get(f"/v1/batches/{made['id']}", headers=headers)).status_code == 401
    assert not engine.requests


async def test_work_from_before_there_were_keys_stands_still(
    service: Service, locked: Service, folder: Path, engine: FakeEngine
) -> None:
    async with office(service, folder, sleep=never, closing=0) as server:
        engine.ready = False
        made = await server.batch(numbered(2))
        await server.until(made["id"], "in_progress")
    engine.ready = True
    async with office(locked, folder) as server:
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert not engine.requests
    async with office(service, folder) as server:
        each_once((await server.answers(await server.until(made["id"], "completed")))[0], 2)


async def never(seconds: float) -> None:  # noqa: ARG001
    await asyncio.Event().wait()
