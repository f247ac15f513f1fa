"""Many captions at once."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

import mmserve.errors as errors
from mmserve import AsyncClient
from mmserve.client import CaptionResult
from tests.client.harness import VQA, Both, Handler, form_parts

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00\x01\xff\r\n--x"
JPEG = b"\xff\xd8\xff\xe0 jpeg"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def recording(reply: object, seen: list[httpx.Request], status: int = 200) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, json=reply)

    return handler


def by_picture(request: httpx.Request) -> httpx.Response:
    """Answers with the picture's own bytes as the caption; b"bad" is corrupt."""
    [picture] = [part.value for part in form_parts(request) if part.name == "image"]
    if picture == b"bad":
        return httpx.Response(400, json={"error": errors.CorruptPicture("damaged").to_wire()})
    return httpx.Response(200, json={**VQA, "answer": picture.decode()})


class TestCaptionMany:
    def test_each_picture_has_its_result(self, kind: str) -> None:
        pictures = [f"p{i}".encode() for i in range(40)]
        told: list[CaptionResult] = []
        results = Both(kind, by_picture).caption_many(iter(pictures), concurrency=3, on_result=told.append)
        assert {r.index: r.caption for r in results} == {i: f"p{i}" for i in range(40)}
        assert all(r.picture == pictures[r.index] and r.error is None for r in results)
        assert told == results

    def test_none(self, kind: str) -> None:
        assert Both(kind, by_picture).caption_many([]) == []

    def test_what_is_wrong_with_a_picture_is_in_its_result(self, kind: str) -> None:
        results = Both(kind, by_picture).caption_many([b"good", b"bad", "missing.png", b"fine"])
        by_index = {result.index: result for result in results}
        assert [by_index[i].caption for i in range(4)] == ["good", None, None, "fine"]
        assert isinstance(by_index[1].error, errors.CorruptPicture)
        assert isinstance(by_index[2].error, FileNotFoundError)
        assert by_index[1].answer is None

    @pytest.mark.parametrize(
        "error", [errors.ModelNotFound("no"), errors.EngineUnavailable("no"), errors.InvalidField("no")]
    )
    def test_what_would_meet_every_picture_is_raised(self, kind: str, error: errors.MMServeError) -> None:
        seen: list[httpx.Request] = []
        both = Both(kind, recording({"error": error.to_wire()}, seen, 400), {"retries": 0})
        with pytest.raises(type(error)):
            both.caption_many([b"x"] * 1000, concurrency=4)
        assert len(seen) < 20

    def test_pictures_are_read_as_they_are_needed(self, kind: str) -> None:
        taken = 0

        def pictures() -> Any:
            nonlocal taken
            while True:
                taken += 1
                yield b"x"

        assert len(Both(kind, by_picture).caption_many(pictures(), concurrency=2, take=5)) == 5
        assert taken <= 5 + 2 * 2

    @pytest.mark.parametrize("concurrency", [0, -1])
    def test_concurrency_must_be_positive(self, kind: str, concurrency: int) -> None:
        with pytest.raises(errors.InvalidField, match="concurrency must be at least 1"):
            Both(kind, by_picture).caption_many([b"x"], concurrency=concurrency)

    def test_no_more_than_concurrency_at_once(self) -> None:
        running = most = 0

        async def handler(request: httpx.Request) -> httpx.Response:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            return by_picture(request)

        async def run() -> int:
            async with AsyncClient(transport=httpx.MockTransport(handler)) as client:
                return len([r async for r in client.caption_many([b"x"] * 30, concurrency=5)])

        assert asyncio.run(run()) == 30
        assert most == 5

    def test_leaving_early_cancels_what_is_in_flight(self) -> None:
        started = cancelled = 0

        async def handler(request: httpx.Request) -> httpx.Response:
            nonlocal started, cancelled
            started += 1
            if started == 1:
                return by_picture(request)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            raise AssertionError("should have been cancelled")

        async def run() -> None:
            async with AsyncClient(transport=httpx.MockTransport(handler)) as client:
                results = client.caption_many([b"x"] * 30, concurrency=3)
                await anext(results)
                await asyncio.sleep(0.05)
                await results.aclose()

        asyncio.run(run())
        assert (started, cancelled) == (4, 3)
