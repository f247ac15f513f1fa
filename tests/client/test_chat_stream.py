"""Chat answers as they are written, and pictures that are read once."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmserve import Answer, AsyncClient, Client
from mmserve.client import AnswerNotValid, ConstraintKept, PictureFile
from mmserve.errors import CorruptPicture, EngineUnavailable, MMServeError
from mmserve.types import Usage
from tests.client.harness import USAGE, VQA, Both, Handler, event_stream, form_parts, sse

JPEG = b"\xff\xd8\xff\xe0 jpeg"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "pocket-vl"}


def chunk(delta: Mapping[str, Any], finish: str | None = None, **extra: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, **extra.pop("choice", {})}
    return {**HEAD, "choices": [choice], "usage": None, **extra}


TEXT = ["A ", "cat ", "猫"]
BEGIN = chunk({"role": "assistant", "content": ""})
PIECES = [chunk({"content": text}) for text in TEXT]
COUNTS = {**HEAD, "choices": [], "usage": USAGE}
WHOLE = sse(BEGIN, *PIECES, chunk({}, "stop"), COUNTS, "[DONE]")


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stream(kind: str, handler: Handler, messages: Any, **options: Any) -> tuple[list[str], Answer]:
    if kind == "sync":
        with Client(transport=httpx.MockTransport(handler)) as client:
            with client.stream_chat(messages, **options) as pieces:
                found = list(pieces)
            return found, pieces.answer

    async def go() -> tuple[list[str], Answer]:
        async with AsyncClient(transport=httpx.MockTransport(handler)) as client:
            async with client.stream_chat(messages, **options) as pieces:
                found = [piece async for piece in pieces]
            return found, pieces.answer

    return asyncio.run(go())


def replying(*body: bytes | Exception, seen: list[httpx.Request] | None = None) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return event_stream(body)

    return handler


class TestStreamChat:
    def test_pieces_then_the_answer(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        messages = [{"role": "user", "content": [JPEG, "Who?"]}]
        pieces, answer = stream(kind, replying(WHOLE, seen=seen), messages, model="m", max_tokens=5)
        assert pieces == TEXT
        assert (answer.text, answer.finish_reason, answer.model, answer.id) == (
            "A cat 猫",
            "stop",
            "pocket-vl",
            HEAD["id"],
        )
        assert answer.usage == Usage(90, 3, 80, 64, 1, 9, 9)
        assert answer.constraint is None
        body = json.loads(seen[0].content)
        url = f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}"
        assert body == {
            "model": "m",
            "max_tokens": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Who?"}],
                }
            ],
        }

    def test_wherever_the_bytes_are_cut(self, kind: str) -> None:
        for cut in range(0, len(WHOLE), 7):
            pieces, _ = stream(kind, replying(WHOLE[:cut], WHOLE[cut:]), [{"role": "user", "content": "x"}])
            assert "".join(pieces) == "A cat 猫"

    @pytest.mark.parametrize(
        "body", [sse(BEGIN, *PIECES), sse(BEGIN, *PIECES, chunk({}, "stop")), sse(BEGIN, chunk({}, "stop"), "[DONE]")]
    )
    def test_cut_off_before_its_end(self, kind: str, body: bytes) -> None:
        with pytest.raises(EngineUnavailable, match="ended before"):
            stream(kind, replying(body), [{"role": "user", "content": "x"}])

    def test_an_error_in_the_stream(self, kind: str) -> None:
        failure = {"error": CorruptPicture("torn").to_wire()}
        with pytest.raises(CorruptPicture, match="torn"):
            stream(kind, replying(sse(BEGIN, failure)), [{"role": "user", "content": "x"}])

    @pytest.mark.parametrize("event", [{"choices": 1}, {}, {"choices": [1, 2]}, [], {"choices": [{"delta": 3}]}])
    def test_something_else(self, kind: str, event: Any) -> None:
        with pytest.raises(MMServeError, match="something else than an answer"):
            stream(kind, replying(sse(event)), [{"role": "user", "content": "x"}])

    def test_a_constraint_is_reported(self, kind: str) -> None:
        end = chunk({}, "length", choice={"closed_early": True, "valid": None}, constraint={"step": "lenient"})
        body = sse(chunk({"content": '{"a":1}'}), end, COUNTS, "[DONE]")
        _, answer = stream(kind, replying(body), [{"role": "user", "content": "x"}], json=True)
        assert answer.parsed == {"a": 1}
        assert answer.constraint == ConstraintKept("lenient", (), True, 0, None)
        with pytest.raises(AnswerNotValid):
            stream(kind, replying(WHOLE), [{"role": "user", "content": "x"}], json=True)


class TestImage:
    def test_is_read_once(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "cat.jpg"
        path.write_bytes(JPEG)
        seen: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return httpx.Response(200, json=VQA)

        picture = Both(kind, handler).call("image", path)
        path.unlink()
        for _ in range(2):
            Both(kind, handler).call("ask", [picture, picture], "Who?")
        # This server keeps no pictures: each client finds that out once, and the bytes go with the questions.
        assert [request.url.path for request in seen] == ["/v1/pictures", "/v1/vqa"] * 2
        parts = [part for request in seen[1::2] for part in form_parts(request) if part.name == "image"]
        assert [(part.value, part.filename, part.media_type) for part in parts] == [(JPEG, "cat.jpg", "image/jpeg")] * 4

    def test_is_encoded_once(self) -> None:
        picture = PictureFile("a.jpg", JPEG)
        assert picture.data_uri == f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}"
        assert picture.data_uri is picture.data_uri
        with pytest.raises(AttributeError):
            picture.data = b""  # type: ignore[misc]

    def test_a_missing_file(self, kind: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Both(kind, replying(WHOLE)).call("image", tmp_path / "none.png")


def test_caption_many_may_ask_each_picture_something_else(kind: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        [question] = [part.value for part in form_parts(request) if part.name == "question"]
        return httpx.Response(200, json={**VQA, "answer": question.decode()})

    results = Both(kind, handler).caption_many([b"a", b"b"], prompt=lambda picture: f"What of {picture!r}?")
    assert {r.index: r.caption for r in results} == {0: "What of b'a'?", 1: "What of b'b'?"}
