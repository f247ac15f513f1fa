"""Batches over the application and a fake engine."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openai.types
import pytest

from mmserve.config import BatchLimits
from mmserve.errors import ConfigError, EngineUnavailable, MMServeError, QueueFull
from mmserve.types import Request
from tests.web.batches.office import CHAT, Clock, each_once, jsonl, line, numbered, office
from tests.web.fakes import FakeEngine, Step, say, silence
from web.app import create_app
from web.batches.service import BatchService
from web.service import Service

pytestmark = pytest.mark.anyio


async def test_every_request_is_answered_once(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        made = await server.batch(numbered(30), metadata={"job": "nightly"})
        assert made["status"] == "validating"
        batch = await server.until(made["id"], "completed")
        output, errors = await server.answers(batch)
    each_once(output, 30)
    assert not errors
    assert batch["error_file_id"] is None
    assert batch["metadata"] == {"job": "nightly"}
    assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    assert batch["usage"] == {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 60},
        "output_tokens": 90,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 120,
    }
    assert batch["expires_at"] == batch["created_at"] + 86400
    assert openai.types.Batch.model_validate(batch, strict=True).status == "completed"


async def test_a_line_is_what_the_route_answers(service: Service, folder: Path) -> None:
    request = line("a", "What is it?", temperature=0)
    async with office(service, folder) as server:
        direct = (await server.http.post(CHAT, json=request["body"])).json()
        batch = await server.until((await server.batch(jsonl([request])))["id"], "completed")
        [answer], _ = await server.answers(batch)
    assert answer["error"] is None
    assert answer["id"].startswith("batch_req_")
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["request_id"] == f"{batch['id']}/1"
    said = answer["response"]["body"]
    same = {"id", "created", "timing"}
    assert {k: v for k, v in said.items() if k not in same} == {k: v for k, v in direct.items() if k not in same}


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"prompt": "It is"}),
        ("/v1/responses", {"input": "What?"}),
    ],
)
async def test_other_endpoints(service: Service, folder: Path, url: str, body: dict[str, Any]) -> None:
    request = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "default"} | body}
    async with office(service, folder) as server:
        batch = await server.until((await server.batch(jsonl([request]), endpoint=url))["id"], "completed")
        [answer], _ = await server.answers(batch)
    assert answer["response"]["status_code"] == 200
    assert batch["usage"]["output_tokens"] == 3


async def test_what_a_route_refuses_goes_to_the_file_of_errors(service: Service, folder: Path) -> None:
    requests = [line("r0"), line("r1", temperature=-1), line("r2", stream=True), line("r3", model="other")]
    async with office(service, folder) as server:
        direct = (await server.http.post(CHAT, json=requests[1]["body"])).json()
        batch = await server.until((await server.batch(jsonl(requests)))["id"], "completed")
        output, errors = await server.answers(batch)
    each_once(output + errors, 4)
    told = {each["custom_id"]: each for each in errors}
    assert told["r1"]["response"]["status_code"] == 400
    assert told["r1"]["response"]["body"] == direct
    assert told["r2"]["response"]["body"]["error"]["param"] == "stream"
    assert told["r3"]["response"]["status_code"] == 404
    assert all(each["error"] is None for each in errors)
    assert batch["request_counts"] == {"total": 4, "completed": 1, "failed": 3}


async def test_what_is_only_too_much_now_is_asked_again(service: Service, engine: FakeEngine, folder: Path) -> None:
    tries: list[str] = []

    def script(request: Request) -> Iterable[Step]:
        tries.append(request.id)
        refusals = [QueueFull("later"), EngineUnavailable("it starts again")]
        return [refusals[len(tries) % 2]] if len(tries) <= 6 else say("yes", request=request)

    engine.script = script
    async with office(service, folder) as server:
        batch = await server.until((await server.batch(numbered(3)))["id"], "completed")
        output, errors = await server.answers(batch)
    each_once(output, 3)
    assert not errors
    assert len(tries) == 9


async def test_a_fault_of_ours_is_a_failed_request(service: Service, engine: FakeEngine, folder: Path) -> None:
    engine.script = lambda _: [MMServeError("the device failed")]
    async with office(service, folder) as server:
        batch = await server.until((await server.batch(numbered(1)))["id"], "completed")
        output, errors = await server.answers(batch)
    assert not output
    assert batch["output_file_id"] is None
    assert errors[0]["response"]["status_code"] == 500


async def test_no_more_run_at_a_time_than_it_may(service: Service, engine: FakeEngine, folder: Path) -> None:
    most = 0

    def script(request: Request) -> Iterable[Step]:
        nonlocal most
        most = max(most, len(engine.running))
        return say("a", "b", request=request, wait=0.001)

    engine.script = script
    async with office(service, folder, limits=BatchLimits(concurrency=3)) as server:
        ids = [(await server.batch(numbered(20)))["id"] for _ in range(3)]
        for id_ in ids:
            await server.until(id_, "completed")
    assert most == 3


async def test_characters_that_some_take_for_line_ends(service: Service, engine: FakeEngine, folder: Path) -> None:
    engine.script = lambda request: say("a\u2028b\x85c\n", request=request)
    async with office(service, folder) as server:
        batch = await server.until((await server.batch(jsonl([line("\u2028é")])))["id"], "completed")
        content = await server.get(f"/v1/files/{batch['output_file_id']}/content")
    assert len(content.text.splitlines()) == 1
    answer = json.loads(content.text)
    assert answer["custom_id"] == "\u2028é"


FAULTS: list[tuple[bytes, str, str | None, int | None]] = [
    (b"", "empty_file", None, None),
    (b"\n \r\n", "empty_file", None, None),
    (b"{}\n", "missing_required_parameter", "custom_id", 1),
    (numbered(2) + b"nonsense\n", "invalid_json_line", None, 3),
    (b"\xff\xfe\n", "invalid_json_line", None, 1),
    (b"[1]", "invalid_json_line", None, 1),
    (b'{"custom_id": "a", "method": "POST", "url": "x", "body": {"a": NaN}}', "invalid_json_line", None, 1),
    (b"[" * 100_000, "invalid_json_line", None, 1),
    (numbered(2) + numbered(1), "duplicate_custom_id", "custom_id", 3),
    (jsonl([line("a") | {"custom_id": 7}]), "invalid_custom_id", "custom_id", 1),
    (jsonl([line("")]), "invalid_custom_id", "custom_id", 1),
    (jsonl([line("\ud800")]), "invalid_custom_id", "custom_id", 1),
    (jsonl([line("a") | {"method": "GET"}]), "invalid_method", "method", 1),
    (jsonl([line("a", url="/v1/vqa")]), "invalid_url", "url", 1),
    (jsonl([line("a") | {"body": "x"}]), "invalid_request", "body", 1),
    (jsonl([{"custom_id": "a", "method": "POST", "url": CHAT}]), "missing_required_parameter", "body", 1),
    (numbered(60), "too_many_tasks", None, None),
    (jsonl([line("a", "x" * 3_000_000)]), "line_too_long", None, 1),
]


@pytest.mark.parametrize(("data", "code", "param", "number"), FAULTS)
async def test_a_file_that_is_no_batch_fails(
    service: Service, engine: FakeEngine, folder: Path, data: bytes, code: str, param: str | None, number: int | None
) -> None:
    async with office(service, folder, limits=BatchLimits(max_batch_requests=50)) as server:
        batch = await server.until((await server.batch(data))["id"], "failed")
    assert batch["errors"]["object"] == "list"
    [error] = batch["errors"]["data"]
    assert (error["code"], error["param"], error["line"]) == (code, param, number)
    assert error["message"]
    assert batch["failed_at"]
    assert not engine.requests
    assert openai.types.Batch.model_validate(batch, strict=True)


async def test_all_faults_are_told_by_their_lines_up_to_a_hundred(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        few = await server.until((await server.batch(b"x\n" + numbered(1) + b"y\n" + numbered(1)))["id"], "failed")
        many = await server.until((await server.batch(b"x\n" * 1000))["id"], "failed")
    assert [error["line"] for error in few["errors"]["data"]] == [1, 3, 4]
    assert [error["line"] for error in many["errors"]["data"]] == list(range(1, 101))


async def test_a_byte_order_mark_and_empty_lines_are_let_through(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        data = b"\xef\xbb\xbf" + numbered(2).replace(b"\n", b"\r\n\r\n").rstrip()
        batch = await server.until((await server.batch(data))["id"], "completed")
        output, _ = await server.answers(batch)
    each_once(output, 2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "8d"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
    ],
)
async def test_a_batch_that_is_wrong_is_refused(
    service: Service, folder: Path, fields: dict[str, Any], param: str
) -> None:
    async with office(service, folder) as server:
        file = (await server.upload(numbered(1))).json()
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"} | fields
        response = await server.http.post("/v1/batches", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert (await server.get("/v1/batches")).json()["data"] == []


async def test_its_input_must_be_a_file_for_batches(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        other = (await server.upload(numbered(1), "user_data")).json()["id"]
        for id_, status in (("file-none", 404), (other, 400)):
            body = {"input_file_id": id_, "endpoint": CHAT, "completion_window": "24h"}
            response = await server.http.post("/v1/batches", json=body)
            assert response.status_code == status
            assert response.json()["error"]["param"] == "input_file_id"


async def test_cancel_gives_what_was_answered(service: Service, engine: FakeEngine, folder: Path) -> None:
    engine.script = lambda request: say("yes", request=request) if len(engine.requests) <= 5 else silence(request)
    async with office(service, folder, limits=BatchLimits(concurrency=2)) as server:
        id_ = (await server.batch(numbered(600)))["id"]
        await server.when(
            id_, lambda batch: bool(batch["request_counts"]["completed"] == 5 and len(engine.running) == 2)
        )
        cancelling = (await server.http.post(f"/v1/batches/{id_}/cancel")).json()
        assert cancelling["status"] == "cancelling"
        batch = await server.until(id_, "cancelled")
        again = await server.http.post(f"/v1/batches/{id_}/cancel")
        output, errors = await server.answers(batch)
    assert again.json()["status"] == "cancelled"
    each_once(output + errors, 600)
    assert len(output) == 5
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert all(each["response"] is None for each in errors)
    assert batch["cancelled_at"]
    assert not engine.running
    assert openai.types.Batch.model_validate(batch, strict=True)


async def test_what_has_ended_cannot_be_cancelled(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        batch = await server.until((await server.batch(numbered(1)))["id"], "completed")
        response = await server.http.post(f"/v1/batches/{batch['id']}/cancel")
        missing = await server.http.post("/v1/batches/batch_none/cancel")
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "batch_ended"
    assert missing.status_code == 404


async def test_a_batch_expires_with_what_was_answered(
    service: Service, engine: FakeEngine, folder: Path, unix: Clock
) -> None:
    engine.script = lambda request: say("yes", request=request) if len(engine.requests) <= 4 else silence(request)
    async with office(service, folder, clock=unix) as server:
        id_ = (await server.batch(numbered(20), completion_window="1h"))["id"]
        await server.when(id_, lambda batch: bool(batch["request_counts"]["completed"] == 4))
        unix.now += 3599
        await server.batches.sweep()
        assert (await server.look(id_))["status"] == "in_progress"
        unix.now += 1
        await server.batches.sweep()
        batch = await server.until(id_, "expired")
        output, errors = await server.answers(batch)
    each_once(output + errors, 20)
    assert len(output) == 4
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}
    assert batch["expired_at"] == unix.now
    assert not engine.running


async def test_answers_expire_when_asked_to(service: Service, folder: Path, unix: Clock) -> None:
    async with office(service, folder, clock=unix) as server:
        policy = {"anchor": "created_at", "seconds": 3600}
        batch = await server.until((await server.batch(numbered(1), output_expires_after=policy))["id"], "completed")
        path = f"/v1/files/{batch['output_file_id']}"
        assert (await server.get(path)).json()["expires_at"] == unix.now + 3600
        unix.now += 3600
        assert (await server.get(path)).status_code == 404
        await server.batches.sweep()
        assert batch["output_file_id"] not in {each.name for each in (folder / "files").iterdir()}


async def test_a_batch_goes_on_without_its_deleted_input(service: Service, engine: FakeEngine, folder: Path) -> None:
    wait = asyncio.Event()

    def script(request: Request) -> Iterable[Step]:
        while not wait.is_set():
            yield 0.002
        yield from say("yes", request=request)

    engine.script = script
    async with office(service, folder, limits=BatchLimits(concurrency=2)) as server:
        made = await server.batch(numbered(200))
        await server.until(made["id"], "in_progress")
        input_id = made["input_file_id"]
        assert (await server.http.delete(f"/v1/files/{input_id}")).json()["deleted"] is True
        assert (await server.get(f"/v1/files/{input_id}")).status_code == 404
        assert (folder / "files" / input_id).exists()
        wait.set()
        batch = await server.until(made["id"], "completed")
        output, _ = await server.answers(batch)
        await server.batches.settled()
        assert not (folder / "files" / input_id).exists()
    each_once(output, 200)


async def test_pages_of_batches(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        ids = [(await server.batch(numbered(1)))["id"] for _ in range(5)]
        first = (await server.get("/v1/batches?limit=2")).json()
        second = (await server.get(f"/v1/batches?limit=2&after={first['last_id']}")).json()
        third = (await server.get(f"/v1/batches?limit=2&after={second['last_id']}")).json()
        wrong = await server.get("/v1/batches?after=batch_none")
        for id_ in ids:
            await server.until(id_, "completed")
    found = [[batch["id"] for batch in page["data"]] for page in (first, second, third)]
    assert found == [ids[:2:-1], ids[2:0:-1], ids[:1]]
    assert [page["has_more"] for page in (first, second, third)] == [True, True, False]
    assert wrong.status_code == 400


async def test_there_may_only_be_so_many(service: Service, engine: FakeEngine, folder: Path) -> None:
    engine.script = silence
    async with office(service, folder, limits=BatchLimits(max_batches=1), closing=0) as server:
        made = await server.batch(numbered(1))
        body = {name: made[name] for name in ("input_file_id", "endpoint", "completion_window")}
        response = await server.http.post("/v1/batches", json=body)
    assert response.status_code == 429


async def test_metrics_tell_of_batches(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        await server.until((await server.batch(jsonl([line("a"), line("b", temperature=-1)])))["id"], "completed")
        await server.batches.settled()
        text = (await server.get("/metrics")).text
    assert 'mmserve:num_batches{model_name="pocket-vl",status="completed"} 1' in text
    assert 'mmserve:batch_requests_total{model_name="pocket-vl",outcome="completed"} 1' in text
    assert 'mmserve:batch_requests_total{model_name="pocket-vl",outcome="failed"} 1' in text


async def test_a_folder_is_one_server_s_alone(folder: Path) -> None:
    server = BatchService(folder)
    with pytest.raises(ConfigError, match="another server"):
        BatchService(folder)
    await server.close()
    await BatchService(folder).close()


async def test_a_ledger_of_another_version_is_left_alone(folder: Path) -> None:
    server = BatchService(folder)
    await server._ledger.read(lambda db: db.execute("PRAGMA user_version = 99"))
    await server.close()
    with pytest.raises(ConfigError, match="version 99"):
        BatchService(folder)


async def test_without_a_folder_there_are_no_batches(service: Service) -> None:
    import httpx

    from web.app import create_app

    transport = httpx.ASGITransport(create_app(dataclasses.replace(service)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        response = await http.get("/v1/files")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


@pytest.mark.filterwarnings("error")
async def test_it_may_end_as_soon_as_it_has_begun(service: Service, folder: Path) -> None:
    """Nothing is left of work that was put off and never began."""
    batches = BatchService(folder)
    await batches.start(service, create_app(service, batches))
    sweeper = batches._sweeper
    assert sweeper is not None
    sweeper.cancel()
    await batches.close()
    del batches
    gc.collect()
