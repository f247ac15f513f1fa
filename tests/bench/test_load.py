"""The load run and its parts: nothing that goes wrong is taken for an answer. Its small form runs against a server."""

from __future__ import annotations

import asyncio
import json

import pytest

from bench.crowd import DEADLINE, Crowd, Outcome, judge
from bench.load import MAX_GROWTH, Result, load, report
from bench.questions import NAMES, Question, Questions, known_pictures, large_upload
from bench.server import server, what_is_left
from bench.wire import Broken, Reply, address_of, ask, get


def test_a_server_under_load_loses_nothing() -> None:
    with server("--device", "cpu") as found:
        result = asyncio.run(load(found.url, found.pid, seconds=4, concurrency=12, leaving=0.3, uploads=3))
    print(report(result, "small"))
    assert result.failures == []
    assert {outcome.what for outcome in result.crowd.outcomes} >= {"answered", "left"}
    assert [outcome.what for outcome in result.slow] == ["answered"] * 15


def reply(status: int, body: object, **headers: str) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, headers, data, 0.1, 0.2)


def questions() -> dict[str, Question]:
    source = Questions(known_pictures(0, 3), "kinds")
    return {question.kind: question for question in (source.next() for _ in range(60))}


UNAVAILABLE = {"error": {"message": "gone", "type": "unavailable_error", "param": None, "code": "engine_unavailable"}}


@pytest.mark.parametrize(
    ("kind", "got", "what"),
    [
        ("form", reply(200, {"finish_reason": "stop"}), "answered"),
        ("form", reply(200, {"finish_reason": None}), "failed"),
        ("form", reply(200, b"not json"), "failed"),
        ("form", reply(500, {"error": {"code": "internal_error"}}), "failed"),
        ("form", reply(503, UNAVAILABLE, **{"retry-after": "5"}), "unavailable"),
        ("form", reply(503, UNAVAILABLE), "failed"),
        ("form", reply(429, {"error": {"code": "queue_full"}}, **{"retry-after": "1"}), "refused"),
        ("stream", reply(200, b'data: {"choices": [{"finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'), "answered"),
        ("stream", reply(200, b'data: {"choices": [{"finish_reason": null}]}\n\n'), "failed"),
        ("stream", reply(200, b""), "failed"),
        ("stream", reply(200, b"data: " + json.dumps(UNAVAILABLE).encode() + b"\n\n"), "unavailable"),
        ("json", reply(200, {"choices": [{"message": {"content": json.dumps(dict.fromkeys(NAMES))}}]}), "answered"),
        ("json", reply(200, {"choices": [{"message": {"content": '{"shape": 1}'}}]}), "failed"),
        ("text", reply(200, {"choices": [{"finish_reason": "length"}]}), "answered"),
    ],
)
def test_what_became_of_a_question(kind: str, got: Reply, what: str) -> None:
    assert judge(questions()[kind], got)[0] == what


def test_every_kind_of_question_is_asked() -> None:
    assert set(questions()) == {"form", "stream", "json", "text"}
    assert len(large_upload().request) > 900_000


def asked(answer: bytes) -> Reply:
    """The reply of a server that sends ``answer`` and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def run() -> Reply:
        listener = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with listener:
            return await ask(listener.sockets[0].getsockname(), get("/"))

    return asyncio.run(run())


HEAD = b"HTTP/1.1 200 OK\r\n"


def test_an_answer_is_read_whole() -> None:
    assert asked(HEAD + b"Content-Length: 2\r\n\r\nok").body == b"ok"
    chunked = asked(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (chunked.status, chunked.body) == (200, b"abcde")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        HEAD + b"Content-Length: 5\r\n\r\nok",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_none(answer: bytes) -> None:
    with pytest.raises(Broken):
        asked(answer)


def test_no_server_is_no_answer() -> None:
    with pytest.raises(Broken, match="no connection"):
        asyncio.run(ask(address_of("http://127.0.0.1:1"), get("/")))


def test_the_report_names_what_failed() -> None:
    crowd = Crowd(("", 0), 1)
    crowd.outcomes += [
        Outcome("form", "answered", 0.1, 0.2),
        Outcome("form", "failed", 1.0, DEADLINE, "no answer in 120 s"),
        Outcome("text", "unavailable", 1.0, 0.1),
    ]
    own = [0.0] * 30 + [MAX_GROWTH + 1.0] * 10
    result = Result(600, crowd, own=own, resident=[0] * 40, left=["no request is left"])
    assert len(result.failures) == 4
    assert "1 times form: no answer in 120 s" in report(result, "made up")


def test_an_engine_that_holds_something_is_told() -> None:
    stats = dict.fromkeys(
        (
            *("requests_finished", "requests_failed", "requests_aborted", "requests_added", "requests_running"),
            *("requests_waiting", "slots_free", "slots_cached", "slots_total", "slots_evictable"),
            *("encoder_cache_held_bytes", "pictures_in_work"),
        ),
        0.0,
    )
    assert what_is_left(stats) == []
    assert what_is_left(stats | {"slots_total": 1.0}) == ["every slot is free or cached"]
    assert what_is_left(stats | {"requests_running": 1.0, "requests_added": 1.0})[0] == "no request is left"
