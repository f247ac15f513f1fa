"""Files over the application: whole or not at all, within limits, page by page, and gone when they are to go."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai.types
import pytest

from mmserve.config import BatchLimits
from tests.web.batches.office import CHAT, Clock, Office, asgi_post, each_once, numbered, office
from web.batches.filerows import bytes_kept
from web.service import Service

pytestmark = pytest.mark.anyio

BOUNDARY = "b0und"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(*parts: tuple[str, bytes], closed: bool = True) -> bytes:
    """A form of parts, each its Content-Disposition behind ``form-data; `` and its bytes."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return body + (f"--{BOUNDARY}--\r\n".encode() if closed else b"")


FILE = ('name="file"; filename="a"', b"abc")
PURPOSE = ('name="purpose"', b"batch")


def on_disk(folder: Path) -> list[Path]:
    return [path for part in ("files", "incoming") for path in (folder / part).iterdir()]


async def test_a_file_is_kept_as_it_came(service: Service, folder: Path, unix: Clock) -> None:
    data = bytes(range(256)) * 20_000
    async with office(service, folder, clock=unix) as desk:
        made = (await desk.upload(data, name="märchen.jsonl")).json()
        assert (await desk.get(f"/v1/files/{made['id']}")).json() == made
        content = await desk.get(f"/v1/files/{made['id']}/content")
    assert content.content == data
    assert content.headers["content-length"] == str(len(data))
    assert content.headers["content-type"] == "application/octet-stream"
    file = openai.types.FileObject.model_validate(made, strict=True)
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(data), "märchen.jsonl", "batch", "processed")
    assert file.created_at == unix.now
    assert file.expires_at == unix.now + 30 * 86400


async def test_an_empty_file_is_one(service: Service, folder: Path) -> None:
    async with office(service, folder) as desk:
        made = (await desk.upload(b"")).json()
        assert made["bytes"] == 0
        assert (await desk.get(f"/v1/files/{made['id']}/content")).content == b""


async def test_purposes(service: Service, folder: Path) -> None:
    async with office(service, folder) as desk:
        for purpose in ("vision", "user_data"):
            assert (await desk.upload(b"x", purpose)).json()["expires_at"] is None
        for purpose in ("fine-tune", "assistants", "evals", "batch_output", "", "other"):
            response = await desk.upload(b"x", purpose)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "purpose"
    assert len(on_disk(folder)) == 2


async def test_expiry_that_was_asked_for(service: Service, folder: Path, unix: Clock) -> None:
    async with office(service, folder, clock=unix) as desk:
        policy = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        made = (await desk.upload(b"x", "user_data", **policy)).json()
        kept = (await desk.upload(b"x", "user_data")).json()
        assert made["expires_at"] == unix.now + 3600
        unix.now += 3600
        assert (await desk.get(f"/v1/files/{made['id']}")).status_code == 404
        assert [file["id"] for file in (await desk.get("/v1/files")).json()["data"]] == [kept["id"]]
        await desk.desk.sweep()
        assert [path.name for path in on_disk(folder)] == [kept["id"]]
        for wrong in ({"expires_after[seconds]": "3600"}, policy | {"expires_after[seconds]": "10"}):
            response = await desk.upload(b"x", **wrong)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "expires_after"


async def test_deleted_is_gone(service: Service, folder: Path) -> None:
    async with office(service, folder) as desk:
        made = (await desk.upload(b"x")).json()
        path = f"/v1/files/{made['id']}"
        assert (await desk.http.delete(path)).json() == {"id": made["id"], "object": "file", "deleted": True}
        for response in (await desk.get(path), await desk.get(f"{path}/content"), await desk.http.delete(path)):
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "file_not_found"
        assert (await desk.get("/v1/files")).json()["data"] == []
    assert on_disk(folder) == []


async def test_a_download_goes_on_after_a_delete(service: Service, folder: Path) -> None:
    data = b"x" * (3 << 20)
    async with office(service, folder) as desk:
        made = (await desk.upload(data)).json()
        file = await desk.desk.files.find("", made["id"])
        pieces = await desk.desk.files.content(file)
        first = await anext(pieces)
        await desk.http.delete(f"/v1/files/{made['id']}")
        assert first + b"".join([piece async for piece in pieces]) == data


async def test_pages_go_on_where_files_were_deleted(service: Service, folder: Path) -> None:
    async with office(service, folder) as desk:
        ids = [(await desk.upload(b"x")).json()["id"] for _ in range(5)]
        other = (await desk.upload(b"x", "user_data")).json()["id"]
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            found: list[str] = []
            after = ""
            while True:
                page = (await desk.get(f"/v1/files?limit=2&order={order}&purpose=batch{after}")).json()
                found += [file["id"] for file in page["data"]]
                if not page["has_more"]:
                    break
                after = f"&after={page['last_id']}"
                if order == "desc":
                    await desk.http.delete(f"/v1/files/{page['last_id']}")
            assert found == expected
        assert [f["id"] for f in (await desk.get("/v1/files?purpose=user_data")).json()["data"]] == [other]
        for wrong in ("after=file-none", "limit=0", "limit=10001", "order=up"):
            assert (await desk.get(f"/v1/files?{wrong}")).status_code == 400


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        (b"{}", {"Content-Type": "application/json"}, "file"),
        (form(PURPOSE), MULTIPART, "file"),
        (form(FILE), MULTIPART, "purpose"),
        (form(FILE, FILE, PURPOSE), MULTIPART, "file"),
        (form(FILE, PURPOSE, PURPOSE), MULTIPART, "purpose"),
        (form(FILE, ('name="purpose"; filename="x"', b"batch")), MULTIPART, "purpose"),
        (form(('name="file"', b"abc"), PURPOSE), MULTIPART, "file"),
        (form(FILE, ('name="purpose"', b"b" * 2000)), MULTIPART, "purpose"),
        (form(FILE, PURPOSE, closed=False), MULTIPART, None),
        (form(FILE, ("nameless", b"")), MULTIPART, None),
        (b"nonsense", MULTIPART, None),
        (form(FILE, PURPOSE, *[(f'name="x{i}"', b"") for i in range(300)]), MULTIPART, None),
        (form(FILE, (f'name="{"x" * 20_000}"', b"")), MULTIPART, None),
    ],
)
async def test_a_wrong_form_leaves_nothing(
    service: Service, folder: Path, body: bytes, headers: dict[str, str], param: str | None
) -> None:
    async with office(service, folder) as desk:
        response = await desk.http.post("/v1/files", content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
    assert on_disk(folder) == []


async def test_unknown_texts_of_a_form_are_ignored(service: Service, folder: Path) -> None:
    async with office(service, folder) as desk:
        body = form(PURPOSE, ('name="other"', b"x"), FILE)
        response = await desk.http.post("/v1/files", content=body, headers=MULTIPART)
        assert response.json()["bytes"] == 3


async def test_a_file_that_is_too_large_leaves_nothing(service: Service, folder: Path) -> None:
    async with office(service, folder, limits=BatchLimits(max_file_bytes=2_000_000)) as desk:
        assert (await desk.upload(b"x" * 2_000_000)).status_code == 200
        for size in (2_000_001, 9_000_000):
            response = await desk.upload(b"x" * size)
            assert response.status_code == 413
    assert len(on_disk(folder)) == 1


async def test_all_files_together_have_a_limit(service: Service, folder: Path) -> None:
    async with office(service, folder, limits=BatchLimits(max_data_bytes=10_000)) as desk:
        made = (await desk.upload(b"x" * 6000)).json()
        response = await desk.upload(b"x" * 6000)
        assert response.status_code == 507
        assert response.json()["error"]["code"] == "storage_full"
        assert len(on_disk(folder)) == 1
        await desk.http.delete(f"/v1/files/{made['id']}")
        assert (await desk.upload(b"x" * 6000)).status_code == 200
        answers = await asyncio.gather(*(desk.upload(b"x" * 3000) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 507, 507, 507]
        assert await desk.desk._ledger.read(bytes_kept) == 9000
    assert len(on_disk(folder)) == 2


async def test_an_upload_that_is_broken_off_leaves_nothing(service: Service, folder: Path) -> None:
    async with office(service, folder) as desk:
        whole = form(('name="file"; filename="a"', b"x" * 4_000_000), PURPOSE)
        seen: list[int] = []

        async def stops() -> AsyncIterator[bytes]:
            yield whole[:3_000_000]
            seen.append(len(on_disk(folder)))
            await asyncio.sleep(60)  # longer than an upload may stand still

        response = await desk.http.post("/v1/files", content=stops(), headers=MULTIPART)
        assert response.status_code == 400
        assert "stood still" in response.json()["error"]["message"]
        task = asyncio.create_task(desk.http.post("/v1/files", content=stops(), headers=MULTIPART))
        while len(seen) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert on_disk(folder) == []
    assert seen[0] <= 1


async def test_an_upload_takes_no_memory_of_its_size(service: Service, folder: Path) -> None:
    piece = b"x" * 65_536
    head, tail = form(PURPOSE, ('name="file"; filename="a"', b"")).rsplit(b"\r\n--", 1)

    async def whole() -> AsyncIterator[bytes]:
        yield head
        for _ in range(600):
            yield piece
        yield b"\r\n--" + tail

    async with office(service, folder) as desk:
        await desk.upload(b"warm")
        tracemalloc.start()
        try:
            made = await receive(desk, whole())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert made["bytes"] == 600 * len(piece)
    assert peak < 12 << 20


async def receive(desk: Office, body: AsyncIterator[bytes]) -> dict[str, Any]:
    """By ASGI itself: httpx' transport joins a request's pieces."""
    return await asgi_post(desk, "/v1/files", body, MULTIPART)


@pytest.mark.parametrize(
    ("count", "size"), [(300, 100_000), pytest.param(10_000, 3000, marks=pytest.mark.proof)], ids=["large", "many"]
)
async def test_a_batch_takes_no_memory_of_its_size(service: Service, folder: Path, count: int, size: int) -> None:
    async with office(service, folder, limits=BatchLimits(concurrency=4)) as desk:
        warm = await desk.batch(numbered(1))
        await desk.until(warm["id"], "completed")
        file = (await desk.upload(numbered(count, user="w" * size))).json()
        assert file["bytes"] > 30_000_000
        tracemalloc.start()
        try:
            body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
            made = (await desk.http.post("/v1/batches", json=body)).json()
            while desk.desk._jobs:  # not by asking, which would be traced too
                await asyncio.sleep(0.05)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        batch = await desk.look(made["id"])
        output, _ = await desk.answers(batch)
    each_once(output, count)
    assert peak < 20 << 20
