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
    async with office(service, folder, clock=unix) as server:
        made = (await server.upload(data, name="märchen.jsonl")).json()
        assert (await server.get(f"/v1/files/{made['id']}")).json() == made
        content = await server.get(f"/v1/files/{made['id']}/content")
    assert content.content == data
    assert content.headers["content-length"] == str(len(data))
    assert content.headers["content-type"] == "application/octet-stream"
    file = openai.types.FileObject.model_validate(made, strict=True)
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(data), "märchen.jsonl", "batch", "processed")
    assert file.created_at == unix.now
    assert file.expires_at == unix.now + 30 * 86400


async def test_an_empty_file_is_one(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        made = (await server.upload(b"")).json()
        assert made["bytes"] == 0
        assert (await server.get(f"/v1/files/{made['id']}/content")).content == b""


async def test_purposes(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        for purpose in ("vision", "user_data"):
            assert (await server.upload(b"x", purpose)).json()["expires_at"] is None
        for purpose in ("fine-tune", "assistants", "evals", "batch_output", "", "other"):
            response = await server.upload(b"x", purpose)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "purpose"
    assert len(on_disk(folder)) == 2


async def test_expiry_that_was_asked_for(service: Service, folder: Path, unix: Clock) -> None:
    async with office(service, folder, clock=unix) as server:
        policy = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        made = (await server.upload(b"x", "user_data", **policy)).json()
        kept = (await server.upload(b"x", "user_data")).json()
        assert made["expires_at"] == unix.now + 3600
        unix.now += 3600
        assert (await server.get(f"/v1/files/{made['id']}")).status_code == 404
        assert [file["id"] for file in (await server.get("/v1/files")).json()["data"]] == [kept["id"]]
        await server.batches.sweep()
        assert [path.name for path in on_disk(folder)] == [kept["id"]]
        for wrong in ({"expires_after[seconds]": "3600"}, policy | {"expires_after[seconds]": "10"}):
            response = await server.upload(b"x", **wrong)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "expires_after"


async def test_deleted_is_gone(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        made = (await server.upload(b"x")).json()
        path = f"/v1/files/{made['id']}"
        assert (await server.http.delete(path)).json() == {"id": made["id"], "object": "file", "deleted": True}
        for response in (await server.get(path), await server.get(f"{path}/content"), await server.http.delete(path)):
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "file_not_found"
        assert (await server.get("/v1/files")).json()["data"] == []
    assert on_disk(folder) == []


async def test_a_download_goes_on_after_a_delete(service: Service, folder: Path) -> None:
    data = b"x" * (3 << 20)
    async with office(service, folder) as server:
        made = (await server.upload(data)).json()
        file = await server.batches.files.find("", made["id"])
        pieces = await server.batches.files.content(file)
        first = await anext(pieces)
        await server.http.delete(f"/v1/files/{made['id']}")
        assert first + b"".join([piece async for piece in pieces]) == data


async def test_pages_go_on_where_files_were_deleted(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        ids = [(await server.upload(b"x")).json()["id"] for _ in range(5)]
        other = (await server.upload(b"x", "user_data")).json()["id"]
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            found: list[str] = []
            after = ""
            while True:
                page = (await server.get(f"/v1/files?limit=2&order={order}&purpose=batch{after}")).json()
                found += [file["id"] for file in page["data"]]
                if not page["has_more"]:
                    break
                after = f"&after={page['last_id']}"
                if order == "desc":
                    await server.http.delete(f"/v1/files/{page['last_id']}")
            assert found == expected
        assert [f["id"] for f in (await server.get("/v1/files?purpose=user_data")).json()["data"]] == [other]
        for wrong in ("after=file-none", "limit=0", "limit=10001", "order=up"):
            assert (await server.get(f"/v1/files?{wrong}")).status_code == 400


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
    async with office(service, folder) as server:
        response = await server.http.post("/v1/files", content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
    assert on_disk(folder) == []


async def test_unknown_texts_of_a_form_are_ignored(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        body = form(PURPOSE, ('name="other"', b"x"), FILE)
        response = await server.http.post("/v1/files", content=body, headers=MULTIPART)
        assert response.json()["bytes"] == 3


async def test_a_file_that_is_too_large_leaves_nothing(service: Service, folder: Path) -> None:
    async with office(service, folder, limits=BatchLimits(max_file_bytes=2_000_000)) as server:
        assert (await server.upload(b"x" * 2_000_000)).status_code == 200
        for size in (2_000_001, 9_000_000):
            response = await server.upload(b"x" * size)
            assert response.status_code == 413
    assert len(on_disk(folder)) == 1


async def test_all_files_together_have_a_limit(service: Service, folder: Path) -> None:
    async with office(service, folder, limits=BatchLimits(max_data_bytes=10_000)) as server:
        made = (await server.upload(b"x" * 6000)).json()
        response = await server.upload(b"x" * 6000)
        assert response.status_code == 507
        assert response.json()["error"]["code"] == "storage_full"
        assert len(on_disk(folder)) == 1
        await server.http.delete(f"/v1/files/{made['id']}")
        assert (await server.upload(b"x" * 6000)).status_code == 200
        answers = await asyncio.gather(*(server.upload(b"x" * 3000) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 507, 507, 507]
        assert await server.batches._ledger.read(bytes_kept) == 9000
    assert len(on_disk(folder)) == 2


async def test_an_upload_that_is_broken_off_leaves_nothing(service: Service, folder: Path) -> None:
    async with office(service, folder) as server:
        whole = form(('name="file"; filename="a"', b"x" * 4_000_000), PURPOSE)
        seen: list[int] = []

        async def stops() -> AsyncIterator[bytes]:
            yield whole[:3_000_000]
            seen.append(len(on_disk(folder)))
            await asyncio.sleep(60)  # longer than an upload may stand still

        response = await server.http.post("/v1/files", content=stops(), headers=MULTIPART)
        assert response.status_code == 400
        assert "stood still" in response.json()["error"]["message"]
        task = asyncio.create_task(server.http.post("/v1/files", content=stops(), headers=MULTIPART))
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

    async with office(service, folder) as server:
        await server.upload(b"warm")
        tracemalloc.start()
        try:
            made = await receive(server, whole())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert made["bytes"] == 600 * len(piece)
    assert peak < 12 << 20


async def receive(server: Office, body: AsyncIterator[bytes]) -> dict[str, Any]:
    """By ASGI itself: httpx' transport joins a request's pieces."""
    return await asgi_post(server, "/v1/files", body, MULTIPART)


@pytest.mark.parametrize(
    ("count", "size"), [(300, 100_000), pytest.param(10_000, 3000, marks=pytest.mark.proof)], ids=["large", "many"]
)
async def test_a_batch_takes_no_memory_of_its_size(service: Service, folder: Path, count: int, size: int) -> None:
    async with office(service, folder, limits=BatchLimits(concurrency=4)) as server:
        warm = await server.batch(numbered(1))
        await server.until(warm["id"], "completed")
        file = (await server.upload(numbered(count, user="w" * size))).json()
        assert file["bytes"] > 30_000_000
        tracemalloc.start()
        try:
            body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
            made = (await server.http.post("/v1/batches", json=body)).json()
            while server.batches._jobs:  # not by asking, which would be traced too
                await asyncio.sleep(0.05)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        batch = await server.look(made["id"])
        output, _ = await server.answers(batch)
    each_once(output, count)
    assert peak < 20 << 20
