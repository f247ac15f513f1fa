"""Streamed answers: pieces however the bytes are cut, the answer at the end, and every way a stream can go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve import AsyncClient, Client
from mmserve.client import PictureInfo, Timing
from mmserve.client.stream import StreamReader
from mmserve.errors import CorruptPicture, EngineUnavailable, InvalidField, MMServeError, QueueFull
from mmserve.types import Usage
from tests.client.harness import ENDING, Both, Chunks, event_stream, fields, sse

JPEG = b"\xff\xd8\xff\xe0 jpeg"
HEAD = {"id": "vqa-1", "object": "vqa.chunk", "created": 1700000000, "model": "pocket-vl"}
TEXT = ["Eine ", "Kätzchen", "-Familie: ", "猫", "👩‍👩‍👧", "\n\nund ", "data: [DONE]", "\r\n."]
WHOLE = sse(*[{**HEAD, "delta": piece} for piece in TEXT], {**HEAD, "delta": "", **ENDING}, "[DONE]")


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def replying(*chunks: bytes | Exception) -> tuple[Chunks, Any]:
    body = Chunks(chunks)

    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=body)

    return body, handler


class TestWhole:
    @pytest.mark.parametrize("enter", [True, False])
    def test_pieces_then_the_answer(self, kind: str, enter: bool) -> None:
        seen: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return event_stream([WHOLE])

        found = Both(kind, handler).stream(JPEG, "Wer?", max_tokens=9, stop=["x"], enter=enter)
        assert found.error is None
        assert found.pieces == TEXT
        assert fields(seen[0]) == {"question": ["Wer?"], "stream": ["true"], "max_tokens": ["9"], "stop": ["x"]}
        answer = found.answer
        assert answer is not None
        assert answer.text == found.text == "".join(TEXT)
        assert (answer.finish_reason, answer.model, answer.id) == ("stop", "pocket-vl", "vqa-1")
        assert answer.created == 1700000000
        assert answer.usage == Usage(90, 3, 80, 64, 1, 9, 9)
        assert answer.timing == Timing(0.25, 0.5)
        assert answer.pictures == (PictureInfo(640, 480, 64, (644, 476)),)
        assert answer.logprobs is None

    def test_a_byte_at_a_time(self, kind: str) -> None:
        body, handler = replying(*[bytes([byte]) for byte in WHOLE])
        found = Both(kind, handler).stream(JPEG, "q")
        assert found.pieces == TEXT
        assert body.closed

    def test_every_cut_in_two(self) -> None:
        for cut in range(len(WHOLE) + 1):
            reader = StreamReader()
            assert reader.feed(WHOLE[:cut]) + reader.feed(WHOLE[cut:]) == TEXT
            assert reader.finish().text == "".join(TEXT)

    @given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
    def test_any_cuts(self, cuts: list[int]) -> None:
        reader = StreamReader()
        edges = [0, *sorted(cuts), len(WHOLE)]
        pieces = [p for a, b in pairwise(edges) for p in reader.feed(WHOLE[a:b])]
        assert pieces == TEXT

    def test_pieces_come_before_the_stream_ends(self) -> None:
        """A piece is handed out as soon as its bytes are there, not when more arrive."""
        order: list[str] = []

        def chunks() -> Iterator[bytes]:
            for piece in "abc":
                order.append(f"sent {piece}")
                yield sse({**HEAD, "delta": piece})
            yield sse({**HEAD, **ENDING}, "[DONE]")

        with (
            Client(transport=httpx.MockTransport(lambda _: event_stream(chunks()))) as client,
            client.stream(JPEG, "q") as s,
        ):
            for piece in s:
                order.append(f"got {piece}")
        assert order == ["sent a", "got a", "sent b", "got b", "sent c", "got c"]

    def test_comments_and_unknown_fields_are_passed_over(self, kind: str) -> None:
        noise = b": keep-alive\n\nevent: x\nid: 3\nretry: 10\n\n"
        _, handler = replying(noise + sse({**HEAD, "delta": "a", "new": 1}) + noise + sse({**ENDING}, "[DONE]"))
        assert Both(kind, handler).stream(JPEG, "q").pieces == ["a"]

    def test_what_follows_done_is_not_read_but_drained(self, kind: str) -> None:
        body, handler = replying(WHOLE, b"data: not json\n\n", httpx.ReadError("reset"))
        found = Both(kind, handler).stream(JPEG, "q")
        assert found.error is None
        assert found.answer is not None
        assert next(iter(body._chunks), None) is None

    def test_done_is_not_needed_after_the_last_event(self, kind: str) -> None:
        _, handler = replying(sse({**HEAD, "delta": "a", **ENDING}))
        found = Both(kind, handler).stream(JPEG, "q")
        assert found.answer is not None
        assert found.answer.text == "a"

    def test_logprobs_are_joined(self, kind: str) -> None:
        entries: list[dict[str, Any]] = [
            {"token": t, "logprob": -1.0, "bytes": None, "top_logprobs": []} for t in "abc"
        ]
        events = [{**HEAD, "delta": e["token"], "logprobs": {"content": [e]}} for e in entries]
        _, handler = replying(sse(*events, {**ENDING, "delta": "", "logprobs": {"content": []}}, "[DONE]"))
        found = Both(kind, handler).stream(JPEG, "q", logprobs=True)
        assert found.answer is not None
        assert found.answer.logprobs == {"content": entries}


class TestGoneWrong:
    @pytest.mark.parametrize("together", [True, False])
    def test_an_error_in_the_stream_is_raised_after_the_text_before_it(self, kind: str, together: bool) -> None:
        wire = CorruptPicture("tile 3 is damaged", param="image").to_wire()
        chunks = [sse({**HEAD, "delta": "A "}), sse({"error": wire})]
        body, handler = replying(*([b"".join(chunks)] if together else chunks))
        found = Both(kind, handler).stream(JPEG, "q")
        assert found.pieces == ["A "]
        assert isinstance(found.error, CorruptPicture)
        assert (found.error.message, found.error.param) == ("tile 3 is damaged", "image")
        assert body.closed

    @pytest.mark.parametrize("tail", [b"", b"data: [DONE]\n\n", b'data: {"delta": "cut'])
    def test_an_end_without_the_last_event(self, kind: str, tail: bytes) -> None:
        _, handler = replying(sse({**HEAD, "delta": "A"}) + tail)
        found = Both(kind, handler).stream(JPEG, "q")
        assert found.pieces == ["A"]
        assert isinstance(found.error, EngineUnavailable)
        assert "ended before the answer was complete" in str(found.error)

    @pytest.mark.parametrize(
        ("error", "says"),
        [
            (httpx.ReadError("reset"), "broke before the answer was complete"),
            (httpx.RemoteProtocolError("incomplete chunked read"), "broke before the answer was complete"),
            (httpx.ReadTimeout("timed out"), "sent nothing for the time allowed"),
        ],
    )
    def test_a_break_in_the_middle_is_not_retried(self, kind: str, error: Exception, says: str) -> None:
        body, handler = replying(sse({**HEAD, "delta": "A"}), error)
        both = Both(kind, handler)
        found = both.stream(JPEG, "q")
        assert found.pieces == ["A"]
        assert isinstance(found.error, EngineUnavailable)
        assert says in found.error.message
        assert both.slept == []
        assert body.closed

    @pytest.mark.parametrize(
        "event", ["not json", "[]", "3", '{"delta": 3}', '{"error": "text"}', '{"delta": "", "logprobs": {}}']
    )
    def test_events_that_are_not_ours(self, kind: str, event: str) -> None:
        body, handler = replying(sse({**HEAD, "delta": "A"}, event, {**ENDING}, "[DONE]"))
        found = Both(kind, handler).stream(JPEG, "q")
        assert found.pieces == ["A"]
        assert isinstance(found.error, MMServeError)
        assert "is base_url an mmserve server" in found.error.message
        assert body.closed

    def test_a_last_event_that_is_not_ours(self, kind: str) -> None:
        _, handler = replying(sse({"delta": "A", "finish_reason": "stop"}, "[DONE]"))
        assert isinstance(Both(kind, handler).stream(JPEG, "q").error, MMServeError)

    @pytest.mark.parametrize("media_type", ["application/json", "text/html", ""])
    def test_a_reply_that_is_no_stream(self, kind: str, media_type: str) -> None:
        body = Chunks([b"{}"])
        response = httpx.Response(200, headers={"Content-Type": media_type}, stream=body)
        found = Both(kind, lambda _: response).stream(JPEG, "q")
        assert isinstance(found.error, MMServeError)
        assert "is base_url an mmserve server" in found.error.message
        assert body.closed

    def test_a_refusal_is_typed(self, kind: str) -> None:
        wire = {"error": InvalidField("question is empty", param="question").to_wire()}
        found = Both(kind, lambda _: httpx.Response(400, json=wire)).stream(JPEG, "")
        assert isinstance(found.error, InvalidField)
        assert found.pieces == []

    def test_a_refusal_in_pieces(self, kind: str) -> None:
        wire = json.dumps({"error": InvalidField("question is empty", param="question").to_wire()}).encode()
        body = Chunks([wire[:9], wire[9:]])
        found = Both(kind, lambda _: httpx.Response(400, stream=body)).stream(JPEG, "")
        assert isinstance(found.error, InvalidField)
        assert body.closed

    def test_refusals_that_pass_are_retried(self, kind: str) -> None:
        replies = iter([httpx.ConnectError("refused"), 429, 503, None])

        def handler(_: httpx.Request) -> httpx.Response:
            reply = next(replies)
            if isinstance(reply, Exception):
                raise reply
            if reply is None:
                return event_stream([WHOLE])
            return httpx.Response(reply, json={"error": QueueFull("later").to_wire()})

        both = Both(kind, handler, {"backoff": float})
        assert both.stream(JPEG, "q").pieces == TEXT
        assert both.slept == [0.0, 1.0, 2.0]

    def test_a_missing_file_is_found_out_before_anything_is_sent(self, kind: str) -> None:
        found = Both(kind, lambda _: pytest.fail("sent")).stream("missing.jpg", "q")
        assert isinstance(found.error, FileNotFoundError)

    def test_a_misspelt_option(self, kind: str) -> None:
        with pytest.raises(TypeError, match="temprature"):
            Both(kind, lambda _: pytest.fail("sent")).stream(JPEG, "q", temprature=1)


def endless(left: list[str]) -> Iterator[bytes]:
    try:
        while True:
            yield sse({**HEAD, "delta": "x"})
    finally:
        left.append("closed")


class TestLeavingEarly:
    def test_closes_the_connection(self, kind: str) -> None:
        body, handler = replying()
        body._chunks = endless([])
        found = Both(kind, handler).stream(JPEG, "q", take=3)
        assert found.pieces == ["x"] * 3
        assert found.text == "xxx"
        assert body.closed

    def test_dropping_a_stream_closes_it(self) -> None:
        body, handler = replying()
        body._chunks = endless([])
        with Client(transport=httpx.MockTransport(handler)) as client:
            for _ in client.stream(JPEG, "q"):
                break
            assert body.closed

    def test_an_exception_inside_with_closes_it(self) -> None:
        body, handler = replying()
        body._chunks = endless([])
        with Client(transport=httpx.MockTransport(handler)) as client:

            def fail() -> None:
                with client.stream(JPEG, "q") as stream:
                    next(stream)
                    raise KeyError

            with pytest.raises(KeyError):
                fail()
            assert body.closed

    def test_a_cancelled_task_closes_it(self) -> None:
        closed = asyncio.Event()

        class Silent(httpx.AsyncByteStream):
            async def __aiter__(self) -> Any:
                yield sse({**HEAD, "delta": "x"})
                await asyncio.sleep(60)

            async def aclose(self) -> None:
                closed.set()

        async def handler(_: httpx.Request) -> httpx.Response:
            return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Silent())

        async def read(client: AsyncClient, begun: asyncio.Event) -> None:
            async with client.stream(JPEG, "q") as stream:
                async for _ in stream:
                    begun.set()

        async def run() -> None:
            async with AsyncClient(transport=httpx.MockTransport(handler)) as client:
                begun = asyncio.Event()
                task = asyncio.create_task(read(client, begun))
                await begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(run())
        assert closed.is_set()

    def test_after_close_nothing_comes(self) -> None:
        _, handler = replying(WHOLE)
        with Client(transport=httpx.MockTransport(handler)) as client:
            stream = client.stream(JPEG, "q")
            next(stream)
            stream.close()
            stream.close()
            assert list(stream) == []
            with pytest.raises(RuntimeError, match="read the stream to its end first"):
                _ = stream.answer

    def test_closed_before_it_was_opened_sends_nothing(self) -> None:
        with Client(transport=httpx.MockTransport(lambda _: pytest.fail("sent"))) as client:
            stream = client.stream(JPEG, "q")
            stream.close()
            with stream:
                assert list(stream) == []

    def test_the_request_is_sent_on_entering(self) -> None:
        seen: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return event_stream([WHOLE])

        with Client(transport=httpx.MockTransport(handler)) as client:
            stream = client.stream(JPEG, "q")
            assert not seen
            with stream:
                assert len(seen) == 1
                assert "".join(stream) == "".join(TEXT)
            assert stream.answer.text == "".join(TEXT)
        assert len(seen) == 1


def test_the_answer_is_not_there_before_the_end() -> None:
    _, handler = replying(WHOLE)
    with Client(transport=httpx.MockTransport(handler)) as client, client.stream(JPEG, "q") as stream:
        next(stream)
        assert stream.text.startswith("Eine ")
        with pytest.raises(RuntimeError):
            _ = stream.answer


def test_json_escapes_for_characters_beyond_the_basic_plane() -> None:
    reader = StreamReader()
    assert reader.feed(b"data: " + json.dumps({"delta": "👩"}).encode() + b"\n\n") == ["👩"]
