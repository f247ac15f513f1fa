"""A server's files and batches over the fakes, and what a client does with them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from mmserve.config import BatchLimits
from web.app import create_app
from web.batches.disk import Disk
from web.batches.service import BatchService
from web.service import Service

CHAT: Final = "/v1/chat/completions"


class Clock:
    """The Unix time, which passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


async def soon(seconds: float) -> None:
    """Waits less than it is told, so that what is tried again is tried at once."""
    await asyncio.sleep(min(seconds, 0.005))


@dataclass
class Office:
    batches: BatchService
    http: httpx.AsyncClient
    headers: Mapping[str, str]

    async def upload(
        self, data: bytes, purpose: str = "batch", name: str = "in.jsonl", **fields: str
    ) -> httpx.Response:
        return await self.http.post(
            "/v1/files", files={"file": (name, data)}, data={"purpose": purpose} | fields, headers=self.headers
        )

    async def batch(self, data: bytes, **fields: Any) -> dict[str, Any]:
        """A new batch over ``data``."""
        file = (await self.upload(data)).json()
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"} | fields
        response = await self.http.post("/v1/batches", json=body, headers=self.headers)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(path, headers=self.headers)

    async def look(self, id_: str) -> dict[str, Any]:
        return dict((await self.get(f"/v1/batches/{id_}")).json())

    async def until(self, id_: str, *statuses: str) -> dict[str, Any]:
        """The batch once it has one of these statuses."""
        return await self.when(id_, lambda batch: batch["status"] in statuses)

    async def when(self, id_: str, condition: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
        for _ in range(4000):
            batch = await self.look(id_)
            if condition(batch):
                return batch
            await asyncio.sleep(0.005)
        raise AssertionError(batch)

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """A file's lines; none where there is no file."""
        if file_id is None:
            return []
        content = await self.get(f"/v1/files/{file_id}/content")
        assert content.status_code == 200, content.text
        assert content.content.endswith(b"\n")
        return [json.loads(line) for line in content.content.splitlines()]

    async def answers(self, batch: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of its two files."""
        return await self.lines(batch["output_file_id"]), await self.lines(batch["error_file_id"])


@asynccontextmanager
async def office(
    service: Service,
    folder: Path,
    *,
    limits: BatchLimits | None = None,
    disk: Disk | None = None,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[None]] = soon,
    headers: Mapping[str, str] | None = None,
    closing: float = 5.0,
) -> AsyncIterator[Office]:
    batches = BatchService(folder, limits, disk=disk, clock=clock or Clock(), sleep=sleep)
    try:
        app = create_app(service, batches)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            await batches.start(service, app)
            yield Office(batches, http, headers or {})
    finally:
        await batches.close(closing)


def line(custom_id: str, content: str = "What?", url: str = CHAT, **fields: Any) -> dict[str, Any]:
    """A request as a batch has it."""
    body = {"model": "default", "messages": [{"role": "user", "content": content}]} | fields
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(requests: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def numbered(count: int, **fields: Any) -> bytes:
    return jsonl(line(f"r{i}", **fields) for i in range(count))


def each_once(lines: Iterable[Mapping[str, Any]], count: int) -> None:
    """Fails unless the lines are those of ``numbered(count)``, each once."""
    found = Counter(each["custom_id"] for each in lines)
    assert found == Counter({f"r{i}": 1 for i in range(count)})


async def asgi_post(
    server: Office, path: str, body: AsyncIterator[bytes], headers: Mapping[str, str]
) -> dict[str, Any]:
    """A request whose pieces are made as they are read: httpx' transport has them all at once."""
    app = server.http._transport.app  # type: ignore[attr-defined]
    start: dict[str, Any] = {}
    answer = b""

    async def receive() -> dict[str, Any]:
        piece = await anext(body, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(message: dict[str, Any]) -> None:
        nonlocal answer
        start.update(message)
        answer += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    assert start["status"] == 200, answer
    return dict(json.loads(answer))
