"""``POST /v1/decisions`` with questions of the type ``continuation``."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest

from mmserve.lang.calls import Context, Said, ScoreCall, Shown, Turn
from mmserve.lang.endpoint import RuntimeEndpoint
from mmserve.types import ImagePart, Message, Request, TextPart, TokenEvent, TokenLogprob
from tests.web.fakes import END, ROWS, FakeEngine, FakePrompts, png, usage_of
from tests.web.test_chat import picture
from tests.web.test_vqa import error_of

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": [picture(), {"type": "text", "text": "Which colour?"}]}
OPEN = {"continue_final_message": True, "add_generation_prompt": False}


def question(*options: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "continuation", "id": "q", "options": list(options), **fields}


def knows(engine: FakeEngine, **logprobs: float) -> None:
    """The model gives these logprobs to the texts scored, split over their tokens."""

    def script(request: Request) -> list[TokenEvent]:
        assert request.score_from is not None
        ids = request.prompt.token_ids[request.score_from :].tolist()
        text = "".join("$" if id_ == END else chr(id_) for id_ in ids)
        entries = tuple(TokenLogprob(id_, chr(id_), logprobs[text] / len(ids)) for id_ in ids)
        return [TokenEvent(request.id, logprobs=entries, finish_reason="stop", usage=usage_of(request, 0))]

    engine.script = script


async def decide(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/decisions", content=json.dumps(body))


async def test_what_comes_next(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    knows(engine, **{"red$": math.log(0.6), "blue$": math.log(0.2)})
    asked = question("red", {"name": "blue"}, ends_turn=True)
    response = await decide(client, messages=[USER], questions=[asked], cache_salt="s")
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["answers"] == {
        "q": {
            "type": "continuation",
            "choice": "red",
            "tokens": {"red": 4, "blue": 5},
            "probabilities": {"red": pytest.approx(0.75), "blue": pytest.approx(0.25)},
            "logprobs": {"red": pytest.approx(math.log(0.6)), "blue": pytest.approx(math.log(0.2))},
            "label_mass": pytest.approx(0.8),
        }
    }
    assert body["usage"]["prompt_tokens"] == ROWS + 2 + 4 + 5
    assert prompts.built == [[Message("user", (ImagePart(png()), TextPart("Which colour?")))]]
    assert prompts.salts == ["s"]


async def test_an_open_turn(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    knows(engine, cat=-1.0, catfish=-2.0)
    messages = [USER, {"role": "assistant", "content": "It is a "}]
    response = await decide(client, messages=messages, **OPEN, questions=[question("cat", "catfish", ends_turn=False)])
    answer = response.json()["answers"]["q"]
    assert answer["logprobs"] == {"cat": pytest.approx(-1.0), "catfish": pytest.approx(-2.0)}
    assert answer["tokens"] == {"cat": 3, "catfish": 7}
    assert {request.score_from for request in engine.requests} == {ROWS + 2 + len("It is a ")}


async def test_a_single_option_is_scored_whole(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    knows(engine, cat=-3.0)
    response = await decide(client, messages=[USER], questions=[question("cat", ends_turn=False)])
    answer = response.json()["answers"]["q"]
    assert (answer["logprobs"], answer["probabilities"]) == ({"cat": pytest.approx(-3.0)}, {"cat": 1.0})


async def test_the_languages_endpoint_speaks_so(live: str, engine: FakeEngine, prompts: FakePrompts) -> None:
    knows(engine, **{"red$": -1.0, "blue$": -2.0})
    turns = (Turn("user", (Shown(png()), Said("Which colour?"))),)
    endpoint = RuntimeEndpoint(live)
    try:
        call = ScoreCall(Context(turns, (Said("It is "),)), ("red", "blue"), ends_turn=True)
        scores = await endpoint.score(call)
    finally:
        await endpoint._http.aclose()
    assert list(scores.logprobs) == pytest.approx([-1.0, -2.0])
    assert scores.usage is not None
    assert [part for part in prompts.built[0][0].parts if isinstance(part, ImagePart)] == [ImagePart(png())]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": []}, "invalid_field", "messages"),
        ({"messages": [{"role": "user"}]}, "invalid_field", "messages[0]"),
        ({"questions": []}, "invalid_field", "questions"),
        ({"questions": [question()]}, "invalid_field", "questions[0].options"),
        ({"questions": [question("")]}, "invalid_field", "questions[0].options[0].name"),
        ({"questions": [question("a", "a")]}, "invalid_field", "questions[0]"),
        ({"questions": [question("a"), question("b")]}, "invalid_field", "questions"),
        ({"questions": [question("a", surprise=1)]}, "invalid_field", "questions[0].surprise"),
        (
            {"questions": [{"type": "choice", "id": "c", "question": "?", "options": ["a", "b"]}]},
            "invalid_field",
            "questions[0].type",
        ),
        ({"continue_final_message": True}, "invalid_field", "continue_final_message"),
        ({"add_generation_prompt": False}, "invalid_field", "add_generation_prompt"),
        ({"images": []}, "invalid_field", "images"),
        ({"model": "other"}, "model_not_found", "model"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, body: dict[str, Any], code: str, param: str) -> None:
    whole = {"messages": [USER], "questions": [question("a", "b")]} | body
    error_of(await decide(client, **whole), 404 if code == "model_not_found" else 400, code, param)


async def test_continuations_need_a_conversation(client: httpx.AsyncClient) -> None:
    error_of(await decide(client, questions=[question("a", "b")]), 400, "invalid_field", "questions[0]")
