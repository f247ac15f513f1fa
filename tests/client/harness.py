"""The sync and the async client behind one face, so that every test runs on both; and a server made of a function."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from mmserve import Answer, AsyncClient, Client
from mmserve.client import CaptionResult

Handler = Callable[[httpx.Request], httpx.Response]

USAGE = {
    "prompt_tokens": 90,
    "completion_tokens": 3,
    "total_tokens": 93,
    "prompt_tokens_details": {
        "cached_tokens": 80,
        "image_tokens": 64,
        "cached_images": 1,
        "system_tokens": 9,
        "cached_system_tokens": 9,
    },
}
ENDING = {
    "finish_reason": "stop",
    "usage": USAGE,
    "timing": {"time_to_first_token": 0.25, "total": 0.5},
    "images": [{"width": 640, "height": 480, "tokens": 64, "resized": [644, 476]}],
}
VQA = {"id": "vqa-1", "object": "vqa.answer", "created": 1700000000, "model": "pocket-vl", "answer": "A cat.", **ENDING}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "pocket-vl",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A cat.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}


@dataclass
class Both:
    """Either client on a transport made of ``handler``. Records what was slept; time passes only by sleeping."""

    kind: str
    handler: Handler
    settings: Mapping[str, Any] = field(default_factory=dict)
    slept: list[float] = field(default_factory=list)
    now: float = 0.0

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.kind == "sync":
            with self._sync() as client:
                return getattr(client, method)(*args, **kwargs)

        async def run() -> Any:
            async with self._async() as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(run())

    def stream(self, *args: Any, take: int | None = None, enter: bool = True, **kwargs: Any) -> Streamed:
        """Read a stream, or leave it after ``take`` pieces."""
        if self.kind == "sync":
            return self._stream(take, enter, args, kwargs)
        return asyncio.run(self._astream(take, enter, args, kwargs))

    def caption_many(self, *args: Any, take: int | None = None, **kwargs: Any) -> list[CaptionResult]:
        if self.kind == "sync":
            with self._sync() as client:
                results = client.caption_many(*args, **kwargs)
                found = [result for _, result in zip(range(take), results, strict=False)] if take else list(results)
                results.close()
                return found

        async def run() -> list[CaptionResult]:
            found = []
            async with self._async() as client:
                results = client.caption_many(*args, **kwargs)
                async for result in results:
                    found.append(result)
                    if len(found) == take:
                        break
                await results.aclose()
            return found

        return asyncio.run(run())

    def _stream(self, take: int | None, enter: bool, args: Any, kwargs: Any) -> Streamed:
        found = Streamed()
        with self._sync() as client:
            stream = client.stream(*args, **kwargs)
            try:
                if enter:
                    stream.__enter__()
                for piece in stream:
                    found.pieces.append(piece)
                    if len(found.pieces) == take:
                        break
                else:
                    found.answer = stream.answer
            except Exception as error:
                found.error = error
            finally:
                stream.__exit__(None, None, None)
            found.text = stream.text
        return found

    async def _astream(self, take: int | None, enter: bool, args: Any, kwargs: Any) -> Streamed:
        found = Streamed()
        async with self._async() as client:
            stream = client.stream(*args, **kwargs)
            try:
                if enter:
                    await stream.__aenter__()
                async for piece in stream:
                    found.pieces.append(piece)
                    if len(found.pieces) == take:
                        break
                else:
                    found.answer = stream.answer
            except Exception as error:
                found.error = error
            finally:
                await stream.__aexit__(None, None, None)
            found.text = stream.text
        return found

    def _sync(self) -> Client:
        return Client(
            transport=httpx.MockTransport(self.handler), sleep=self._sleep, clock=lambda: self.now, **self.settings
        )

    def _async(self) -> AsyncClient:
        async def sleep(seconds: float) -> None:
            self._sleep(seconds)

        return AsyncClient(
            transport=httpx.MockTransport(self.handler), sleep=sleep, clock=lambda: self.now, **self.settings
        )

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dataclass
class Streamed:
    """What came of a stream."""

    pieces: list[str] = field(default_factory=list)
    text: str = ""
    answer: Answer | None = None
    error: Exception | None = None


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in these chunks; an exception among them is raised in its turn. Records whether it was closed."""

    def __init__(self, chunks: Iterable[bytes | Exception]) -> None:
        self._chunks = iter(chunks)
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def sse(*events: object) -> bytes:
    """Events as the server writes them."""
    lines = [event if isinstance(event, str) else json.dumps(event, ensure_ascii=False) for event in events]
    return b"".join(b"data: " + line.encode() + b"\n\n" for line in lines)


def event_stream(body: Iterable[bytes | Exception]) -> httpx.Response:
    headers = {"Content-Type": "text/event-stream; charset=utf-8"}
    return httpx.Response(200, headers=headers, stream=Chunks(body))


@dataclass(frozen=True)
class Part:
    """One part of a multipart form."""

    name: str
    value: bytes
    filename: str | None
    media_type: str | None


def form_parts(request: httpx.Request) -> list[Part]:
    """The parts of a multipart body, by RFC 7578 and nothing of httpx."""
    kind, _, boundary = request.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    body = b"\r\n" + request.read()
    *raw, end = body.split(b"\r\n--" + boundary.encode())
    assert end == b"--\r\n"
    return [_part(part) for part in raw[1:]]


def _part(raw: bytes) -> Part:
    head, _, value = raw.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    headers = {
        key.lower(): text for key, _, text in (line.partition(": ") for line in head.decode("utf-8").split("\r\n"))
    }
    disposition = dict(
        item.strip().split("=", 1) for item in headers["content-disposition"].split(";")[1:] if "=" in item
    )
    filename = disposition.get("filename")
    return Part(
        disposition["name"].strip('"'),
        value,
        None if filename is None else filename.strip('"'),
        headers.get("content-type"),
    )


def fields(request: httpx.Request) -> dict[str, list[str]]:
    """The text fields of a multipart body."""
    found: dict[str, list[str]] = {}
    for part in form_parts(request):
        if part.filename is None:
            found.setdefault(part.name, []).append(part.value.decode())
    return found
