"""How a constraint was kept, as answers say it: JSON and streams, ours and OpenAI's."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mmserve.grammar.spec import Constraint, Grammar, JsonSchema
from mmserve.types import ConstraintReport, TokenEvent
from tests.web.fakes import FakeEngine, say, sse, usage_of
from tests.web.test_chat import chat
from tests.web.test_vqa import ask, error_of
from web.app import create_app
from web.service import Service

pytestmark = pytest.mark.anyio

OBJECT = {"response_format": {"type": "json_object"}}
LENIENT = ConstraintReport("lenient", ("the keyword not at / is checked afterwards",), forced_tokens=4)


class FakeJudge:
    """Says what it was told to, and remembers what it was asked and where."""

    def __init__(self) -> None:
        self.says: bool | None = True
        self.asked: list[tuple[Constraint, str]] = []
        self.threads: list[int] = []

    def __call__(self, constraint: Constraint, text: str) -> bool | None:
        self.asked.append((constraint, text))
        self.threads.append(threading.get_ident())
        return self.says


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture
async def client(service: Service, judge: FakeJudge) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(dataclasses.replace(service, judge=judge)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


def answering(engine: FakeEngine, *words: str, report: ConstraintReport | None = None, finish: str = "stop") -> None:
    engine.script = lambda request: say(*words, request=request, report=report, finish=finish)


async def kept(client: httpx.AsyncClient, fields: dict[str, Any], stream: bool) -> dict[str, Any]:
    """The fields ``constraint`` and ``parsed`` of a JSON answer, or of a stream's last chunk, and of no other."""
    response = await ask(client, fields | {"stream": str(stream).lower()})
    assert response.status_code == 200, response.text
    if not stream:
        body = response.json()
        return {name: body[name] for name in ("constraint", "parsed")}
    *chunks, last, done = sse(response.content)
    assert done == "[DONE]"
    assert all("constraint" not in chunk and "parsed" not in chunk for chunk in chunks)
    return {name: last[name] for name in ("constraint", "parsed")}


@pytest.mark.parametrize("stream", [False, True])
async def test_strict_answer(client: httpx.AsyncClient, engine: FakeEngine, judge: FakeJudge, stream: bool) -> None:
    answering(engine, '{"a":', " [1, 2.5, ", '"猫"]}', report=ConstraintReport(forced_tokens=3))
    assert await kept(client, {"schema": "{}"}, stream) == {
        "constraint": {"step": "strict", "relaxed": [], "closed_early": False, "forced_tokens": 3, "valid": True},
        "parsed": {"a": [1, 2.5, "猫"]},
    }
    assert not judge.asked


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("valid", [True, False, None])
@pytest.mark.parametrize("step", ["coerced", "lenient"])
async def test_relaxed_answer_is_judged_off_the_loop(
    client: httpx.AsyncClient, engine: FakeEngine, judge: FakeJudge, stream: bool, valid: bool | None, step: str
) -> None:
    judge.says = valid
    answering(engine, "[", "]", report=dataclasses.replace(LENIENT, step=step))
    assert await kept(client, {"schema": '{"type":"array"}'}, stream) == {
        "constraint": {
            "step": step,
            "relaxed": ["the keyword not at / is checked afterwards"],
            "closed_early": False,
            "forced_tokens": 4,
            "valid": valid,
        },
        "parsed": [],
    }
    assert judge.asked == [(JsonSchema('{"type":"array"}'), "[]")]
    assert judge.threads != [threading.get_ident()]


async def test_answer_that_was_cut_is_judged_even_if_strict(
    client: httpx.AsyncClient, engine: FakeEngine, judge: FakeJudge
) -> None:
    judge.says = False
    answering(engine, "{", finish="length")
    found = await kept(client, {"json": "true"}, False)
    assert found["constraint"]["valid"] is False
    assert found["parsed"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_closed_early(client: httpx.AsyncClient, engine: FakeEngine, stream: bool) -> None:
    answering(engine, "{}", report=ConstraintReport(closed_early=True))
    assert (await kept(client, {"json": "true"}, stream))["constraint"]["closed_early"] is True


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", [{"regex": ".+"}, {"choices": ["3", "4"]}, {"max_words": "1"}, {"xml": "{}"}])
async def test_parsed_is_for_json_alone(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], stream: bool
) -> None:
    answering(engine, "3")
    found = await kept(client, fields, stream)
    assert found["parsed"] is None
    assert found["constraint"]["valid"] is True


@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_constraint_both_are_null(client: httpx.AsyncClient, stream: bool) -> None:
    assert await kept(client, {}, stream) == {"constraint": None, "parsed": None}


@pytest.mark.parametrize("text", ['"\\ud800"', "1e999", "NaN", "[" * 100_000, "9" * 5000, "{", ""])
async def test_text_that_json_cannot_carry_back_is_null_and_no_fault(
    client: httpx.AsyncClient, engine: FakeEngine, text: str
) -> None:
    answering(engine, text)
    for stream in (False, True):
        assert (await kept(client, {"schema": "{}"}, stream))["parsed"] is None


async def test_engine_that_says_nothing_about_the_constraint_is_not_believed(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = lambda request: [TokenEvent(request.id, "{}", finish_reason="stop", usage=usage_of(request, 1))]
    error_of(await ask(client, {"json": "true"}), 500, "internal_error", None)
    error_of(await chat(client, **OBJECT), 500, "internal_error", None)


async def test_chat_says_nothing_where_all_is_as_asked(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answering(engine, "{", "}", report=ConstraintReport(forced_tokens=1))
    body = (await chat(client, **OBJECT)).json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage", "images"}
    assert set(body["choices"][0]) == {"index", "message", "logprobs", "finish_reason", "matched_stop"}
    *chunks, _ = sse((await chat(client, stream=True, **OBJECT)).content)
    assert {frozenset(chunk) for chunk in chunks} == {frozenset({"id", "object", "created", "model", "choices"})}
    assert set(chunks[-1]["choices"][0]) == {"index", "delta", "logprobs", "finish_reason", "matched_stop"}


async def test_chat_closed_early(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answering(engine, "{", "}", report=ConstraintReport(closed_early=True))
    body = (await chat(client, **OBJECT)).json()
    choice = body["choices"][0]
    assert (choice["closed_early"], choice["finish_reason"], "constraint" in body) == (True, "stop", False)
    *chunks, _ = sse((await chat(client, stream=True, **OBJECT)).content)
    early = [chunk["choices"][0].get("closed_early") for chunk in chunks]
    assert early == [None] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("valid", [True, False, None])
async def test_chat_that_was_relaxed(
    client: httpx.AsyncClient, engine: FakeEngine, judge: FakeJudge, valid: bool | None
) -> None:
    judge.says = valid
    answering(engine, "{}", report=LENIENT)
    said = {"step": "lenient", "relaxed": list(LENIENT.relaxed), "valid": valid}
    body = (await chat(client, n=2, **OBJECT)).json()
    assert body["constraint"] == said
    assert [choice.get("valid", True) for choice in body["choices"]] == [valid, valid]
    *chunks, _ = sse((await chat(client, stream=True, **OBJECT)).content)
    assert [chunk.get("constraint") for chunk in chunks] == [None] * (len(chunks) - 1) + [said]


async def test_one_bad_choice_flags_the_whole(engine: FakeEngine, service: Service) -> None:
    def judging(_: Constraint, text: str) -> bool | None:
        return {"0": True, "1": None, "2": False}[text]

    engine.script = lambda request: say(request.id[-1], request=request, report=LENIENT)
    transport = httpx.ASGITransport(create_app(dataclasses.replace(service, judge=judging)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as other:
        two = (await chat(other, n=2, **OBJECT)).json()
        three = (await chat(other, n=3, **OBJECT)).json()
    assert two["constraint"]["valid"] is None
    assert three["constraint"]["valid"] is False
    assert [choice.get("valid", True) for choice in three["choices"]] == [True, None, False]


def test_a_service_is_judged_by_the_grammars_own_judge(service: Service) -> None:
    ordinary = Service(service.model, service.prompts, service.engine, max_model_len=512).judge
    assert ordinary(JsonSchema('{"type":"array"}'), "[]") is True
    assert ordinary(JsonSchema('{"type":"array"}'), "{}") is False
    assert ordinary(Grammar('start: "a"'), "a") is None
