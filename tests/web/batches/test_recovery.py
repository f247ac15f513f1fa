"""Power is lost at any point: what was promised is there, each request has one answer, and nothing else is left."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from mmserve.config import BatchLimits
from mmserve.errors import BatchEnded
from tests.web.batches.conftest import MEMORY
from tests.web.batches.faulty import DyingDisk, PowerLoss
from tests.web.batches.office import CHAT, each_once, jsonl, line
from tests.web.fakes import FakeEngine, FakePrompts
from web.batches.batchrows import BatchRecord, new_batch_id
from web.batches.filerows import FileRecord, new_file_id
from web.batches.service import BatchService
from web.service import ServedModel, Service

COUNT = 6
DATA = jsonl(line(f"r{i}", "x" * 50 * i) for i in range(COUNT))

TORN = (0.0, 0.5, 1.0)


async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """Answers every third request with an error."""
    body = json.loads((await receive())["body"])
    length = len(body["messages"][0]["content"]) // 50
    status = 400 if length % 3 == 2 else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"answer": length}).encode()})


@dataclass
class Promised:
    """What the server has told its client."""

    file: FileRecord | None = None
    batch: BatchRecord | None = None
    cancelled: bool = False
    ended: BatchRecord | None = None
    done: int = 0
    batches: list[str] = field(default_factory=list)


def service() -> Service:
    return Service(ServedModel("pocket-vl"), FakePrompts(), FakeEngine(), max_model_len=512)


async def never(seconds: float) -> None:  # noqa: ARG001
    await asyncio.Event().wait()


async def life(folder: Path, disk: DyingDisk, promised: Promised, cancel_at: int | None) -> None:
    """A server's life, until its client has what it wants or power is lost. Raises ``PowerLoss``."""
    server = await asyncio.to_thread(BatchService, folder, BatchLimits(concurrency=2), disk=disk, sleep=never)
    try:
        await server.start(service(), app)
        if promised.file is None:
            async with server.files.upload() as upload:
                await upload.write(DATA[:100])
                await upload.write(DATA[100:])
                promised.file = await upload.finish("", "batch", "in.jsonl", server.clock(), None)
        if promised.batch is None:
            promised.batch = await server.create(record(promised.file.id))
        id_ = promised.batch.id
        while True:
            batch = await server.get("", id_)
            assert batch.completed + batch.failed >= promised.done
            promised.done = batch.completed + batch.failed
            if batch.ended:
                promised.ended = batch
                break
            if cancel_at is not None and promised.done >= cancel_at and not promised.cancelled:
                with suppress(BatchEnded):
                    await server.cancel("", id_)
                    promised.cancelled = True
            await asyncio.sleep(0.001)
            if disk.dead:
                raise PowerLoss
        await server.settled()
        await server.sweep()
    finally:
        await server.close(0)


def record(file_id: str) -> BatchRecord:
    return BatchRecord(
        id=new_batch_id(),
        owner="",
        endpoint=CHAT,
        input_id=file_id,
        completion_window="24h",
        metadata=None,
        output_seconds=None,
        model=None,
        created_at=1_700_000_000,
        expires_at=2**40,
        output_id=new_file_id(),
        error_id=new_file_id(),
    )


async def crash(folder: Path, deaths: Sequence[DyingDisk], cancel_at: int | None) -> list[DyingDisk]:
    """Lives that end by ``deaths``, and one that does not; then everything promised is looked at."""
    asyncio.get_running_loop().set_exception_handler(only_what_is_unexpected)
    promised = Promised()
    last = DyingDisk()
    for disk in (*deaths, last):
        if disk is last:
            # Of what was not promised there is all or nothing.
            await unpromised(folder, promised)
        with suppress(PowerLoss):
            await life(folder, disk, promised, cancel_at)
    assert promised.ended is not None
    await look(folder, promised)
    return [*deaths, last]


def only_what_is_unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Tasks that ended by the loss of power are asked by nobody how they ended."""
    if not isinstance(context.get("exception"), PowerLoss):
        loop.default_exception_handler(context)


async def unpromised(folder: Path, promised: Promised) -> None:
    server = await asyncio.to_thread(BatchService, folder, sleep=never)
    files, _ = await server.files.page("", purpose="batch", after=None, limit=10, newest_first=False)
    for file in files:
        assert b"".join([piece async for piece in await server.files.content(file)]) == DATA
    assert promised.file is None or promised.file in files
    await server.close(0)


async def look(folder: Path, promised: Promised) -> None:
    server = await asyncio.to_thread(BatchService, folder, sleep=never)
    try:
        assert promised.file is not None
        assert promised.ended is not None
        batch = await server.get("", promised.ended.id)
        assert batch == promised.ended
        assert batch.status == ("cancelled" if promised.cancelled else "completed")
        output, errors = [await lines(server, id_) for id_ in (batch.output_id, batch.error_id)]
        # A batch that was cancelled before its file was checked has no requests.
        each_once(output + errors, 0 if batch.in_progress_at is None else COUNT)
        assert promised.cancelled or batch.in_progress_at is not None
        assert (len(output), len(errors)) == (batch.completed, batch.failed)
        for each in output:
            assert each["response"]["body"] == {"answer": int(each["custom_id"][1:])}
        files, _ = await server.files.page("", purpose=None, after=None, limit=100, newest_first=True)
        left = {path.name for path in (folder / "files").iterdir()}
        # A crash between a promise and its being told leaves a whole file or batch that the client does not know.
        assert {promised.file.id} <= left == {file.id for file in files}
        assert not list((folder / "incoming").iterdir())
    finally:
        await server.close(0)


async def lines(server: BatchService, id_: str) -> list[dict[str, Any]]:
    data = (server.files.path(id_)).read_bytes() if server.files.path(id_).exists() else b""
    return [json.loads(each) for each in data.splitlines()]


def run(deaths: Sequence[DyingDisk], cancel_at: int | None = None) -> list[DyingDisk]:
    place = str(MEMORY) if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as above:
        return asyncio.run(crash(Path(above) / "data", deaths, cancel_at))


def test_nothing_goes_wrong_where_nothing_dies() -> None:
    [disk] = run([])
    assert {"extend", "sync", "sync_folder", "move", "commit"} <= set(disk.operations)


@pytest.mark.parametrize("cancel_at", [None, 2], ids=["completed", "cancelled"])
def test_a_crash_between_any_two_operations(cancel_at: int | None) -> None:
    [whole] = run([], cancel_at)
    for dies_at in range(len(whole.operations) + 2):
        run([DyingDisk(dies_at, TORN[dies_at % 3])], cancel_at)


deaths = st.lists(
    st.builds(DyingDisk, dies_at=st.integers(0, 60), torn=st.sampled_from(TORN), lose_names=st.booleans()), max_size=4
)


@given(deaths, st.none() | st.integers(0, COUNT))
@settings(max_examples=40)
def test_crashes_while_it_recovers_from_crashes(deaths: list[DyingDisk], cancel_at: int | None) -> None:
    fresh = [DyingDisk(death.dies_at, death.torn, death.lose_names) for death in deaths]
    run(fresh, cancel_at)
