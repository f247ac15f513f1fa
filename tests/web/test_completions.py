"""``POST /v1/completions`` over the stand-ins."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from mmserve.errors import MMServeError, QueueFull
from mmserve.grammar.spec import Choice
from mmserve.types import Request, SamplingParams, TokenEvent, TokenLogprob
from tests.web.fakes import END, FakeEngine, FakePrompts, Step, say, sse, usage_of
from tests.web.test_vqa import error_of

pytestmark = pytest.mark.anyio


async def complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": "pocket-vl", "prompt": "What", **fields})


async def choices(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await complete(client, **fields)
    assert response.status_code == 200, response.text
    made: list[dict[str, Any]] = response.json()["choices"]
    return made


def scores(request: Request) -> list[Step]:
    """The prompt's log-probabilities where they are wanted, else an answer of two tokens."""
    if request.score_from is None:
        return list(say("ab", "c", request=request, logprobs=request.sampling.logprobs is not None))
    ids = request.prompt.token_ids[request.score_from :].tolist()
    entries = tuple(TokenLogprob(id_, chr(id_), -id_ / 100, ((1, "x", -0.1),)) for id_ in ids)
    return [TokenEvent(request.id, logprobs=entries, finish_reason="stop", usage=usage_of(request, 0))]


async def test_completion(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await complete(client)
    body = response.json()
    assert body.pop("id") == engine.requests[0].id == f"cmpl-{response.headers['x-request-id']}"
    assert isinstance(body.pop("created"), int)
    assert body.pop("usage")["total_tokens"] == 7
    assert body == {
        "object": "text_completion",
        "model": "pocket-vl",
        "choices": [
            {"index": 0, "text": "It is a cat.", "logprobs": None, "finish_reason": "stop", "matched_stop": END}
        ],
    }
    assert engine.requests[0].prompt.token_ids.tolist() == [*map(ord, "What")]
    assert engine.requests[0].sampling == SamplingParams(max_tokens=16)


@pytest.mark.parametrize(
    ("prompt", "built"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
    ],
)
async def test_prompts_are_text_or_ids_one_or_many(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: object, built: list[str]
) -> None:
    engine.script = lambda request: say("".join(map(chr, request.prompt.token_ids)), "!", request=request)
    response = await complete(client, prompt=prompt, n=2, seed=5)
    body = response.json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        *enumerate(f"{text}!" for text in built for _ in range(2))
    ]
    assert sorted(request.sampling.seed or 0 for request in engine.requests) == sorted([5, 6] * len(built))
    assert body["usage"]["prompt_tokens"] == sum(map(len, built))
    assert body["usage"]["completion_tokens"] == 4 * len(built)
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * len(built)


async def test_fields_arrive(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    fields = {"temperature": 1, "stop": "END", "logit_bias": {"5": 1}, "max_tokens": 3, "top_k": 2, "cache_salt": "s"}
    await choices(client, **fields, guided_choice=["a", "b"], user="u", best_of=1)
    assert engine.requests[0].sampling == SamplingParams(
        max_tokens=3, temperature=1.0, stop=("END",), logit_bias=((5, 1.0),), top_k=2
    )
    assert engine.requests[0].constraint == Choice(("a", "b"))
    assert (engine.requests[0].cache_salt, prompts.salts) == ("s", ["s"])


async def test_logprobs_in_their_old_form(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = scores
    [choice] = await choices(client, logprobs=2)
    assert engine.requests[0].sampling.logprobs == 2
    assert choice["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"ab": -0.5, "�": -9999.0}, {"c": -0.5, "�": -9999.0}],
        "text_offset": [0, 2],
    }
    [choice] = await choices(client, logprobs=0)
    assert choice["logprobs"]["top_logprobs"] is None
    assert choice["logprobs"]["token_logprobs"] == [-0.5, -0.5]


async def test_echo(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = scores
    [choice] = await choices(client, echo=True)
    assert (choice["text"], choice["logprobs"]) == ("Whatabc", None)
    [choice] = await choices(client, echo=True, prompt=[72, 3, 105])
    assert choice["text"] == "H<end>iabc"
    [choice] = await choices(client, echo=True, logprobs=1)
    assert choice["text"] == "Whatabc"
    assert choice["logprobs"]["tokens"] == ["W", "h", "a", "t", "ab", "c"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.04, -0.97, -1.16, -0.5, -0.5]
    assert choice["logprobs"]["top_logprobs"][:2] == [None, {"x": -0.1, "h": -1.04}]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 6]


async def test_a_prompt_alone_is_scored(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = scores
    response = await complete(client, prompt=["What", "is"], echo=True, logprobs=1, max_tokens=0)
    assert [request.score_from for request in engine.requests] == [1, 1]
    assert [choice["text"] for choice in response.json()["choices"]] == ["What", "is"]
    assert [choice["finish_reason"] for choice in response.json()["choices"]] == ["length", "length"]
    assert response.json()["usage"]["completion_tokens"] == 0
    response = await complete(client, prompt="W", echo=True, logprobs=1, max_tokens=0)
    assert response.json()["choices"][0]["logprobs"]["token_logprobs"] == [None]
    assert response.json()["usage"]["total_tokens"] == 1


async def test_stream(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = scores
    fields = {"prompt": ["x", "y"], "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, done = sse((await complete(client, **fields, logprobs=0)).content)
    assert done == "[DONE]"
    assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == ([], 2, 8)
    assert all(chunk["usage"] is None and chunk["object"] == "text_completion" for chunk in chunks)
    for index in range(4):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert [choice["text"] for choice in mine] == ["ab", "c", ""]
        assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]
        assert [choice["logprobs"]["text_offset"] for choice in mine[:2]] == [[0], [2]]


async def test_stream_with_echo_and_errors(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    chunks = sse((await complete(client, stream=True, echo=True)).content)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "WhatIt is a cat."
    engine.script = lambda _: [QueueFull("full")]
    error_of(await complete(client, stream=True), 429, "queue_full", None)
    engine.script = lambda request: [TokenEvent(request.id, text="x"), MMServeError("the device failed")]
    assert sse((await complete(client, stream=True)).content)[-1]["error"]["message"] == "the device failed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": ["a"] * 129, "n": 2}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"n": 17}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 1, "top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True, "logprobs": 1, "stream": True}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"2000000": 1}}, "logit_bias"),
        ({"temperature": -1}, "temperature"),
    ],
)
async def test_bad_fields_are_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = await complete(client, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not engine.requests


async def test_as_many_as_the_best_is_all_of_them(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert len(await choices(client, n=2, best_of=2)) == 2
    assert len(engine.requests) == 2


async def test_unknown_model_and_not_ready(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    error_of(await complete(client, model="gpt-5"), 404, "model_not_found", "model")
    assert (await complete(client, model="default")).status_code == 200
    engine.ready = False
    error_of(await complete(client), 503, "engine_unavailable", None)


def test_openai_client(live: str, engine: FakeEngine) -> None:
    engine.script = scores
    with openai.OpenAI(base_url=f"{live}/v1", api_key="none", max_retries=0, timeout=10) as api:
        answer = api.completions.create(model="pocket-vl", prompt="What", echo=True, logprobs=2)
        chunks = list(api.completions.create(model="pocket-vl", prompt="What", stream=True))
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2, 3, 4, 6]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abc"
