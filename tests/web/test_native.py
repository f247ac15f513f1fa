"""``POST /generate`` and its neighbours, in SGLang's shapes."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from typing import Any

import httpx
import pytest

from mmserve.errors import EngineUnavailable, MMServeError, PromptTooLong, QueueFull
from mmserve.grammar.spec import Grammar, JsonSchema, Regex
from mmserve.sampling import SamplingParams
from mmserve.types import Request
from tests.web.fakes import END, PLACEHOLDER, ROWS, FakeEngine, FakePrompts, eventually, forever, png, silence, sse
from tests.web.native import made, post, spell
from tests.web.test_chat import data_uri
from tests.web.test_vqa import error_of
from web.app import create_app
from web.service import Service

pytestmark = pytest.mark.anyio

PICTURE = base64.b64encode(png()).decode()


@pytest.fixture(autouse=True)
def answers(engine: FakeEngine) -> None:
    engine.script = lambda request: spell(request, "a", " cat")


async def test_one_prompt(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await made(client, text="What?", sampling_params={"max_new_tokens": 8})
    latency = answer["meta_info"].pop("e2e_latency")
    assert 0 <= latency < 10
    identity = answer["meta_info"].pop("id")
    assert answer == {
        "text": "a cat",
        "output_ids": [*map(ord, "a cat"), END],
        "meta_info": {
            "finish_reason": {"type": "stop", "matched": END},
            "prompt_tokens": 5,
            "completion_tokens": 6,
            "cached_tokens": 9,
        },
    }
    [request] = engine.requests
    assert identity in request.id
    assert request.prompt.token_ids.tolist() == [*map(ord, "What?")]


async def test_defaults_are_sglangs(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    bodies: list[dict[str, Any]] = [{}, {"sampling_params": None}, {"sampling_params": {}}]
    for body in bodies:
        await made(client, text="What?", **body)
    assert {request.sampling for request in engine.requests} == {SamplingParams(max_tokens=128, temperature=1.0)}


async def test_sampling_params(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    params = {
        "max_new_tokens": 7,
        "min_new_tokens": 2,
        "stop": ["x", "y"],
        "stop_token_ids": [4],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "sampling_seed": 11,
        "spaces_between_special_tokens": True,
        "skip_special_tokens": True,
        "no_stop_trim": False,
        "stop_regex": [],
        "regex": None,
        "json_schema": "",
        "logit_bias": None,
        "something_new": 1,
    }
    await made(client, text="What?", sampling_params=params)
    [request] = engine.requests
    assert request.constraint is None
    assert request.sampling == SamplingParams(
        max_tokens=7,
        min_tokens=2,
        stop=("x", "y"),
        stop_token_ids=(4,),
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        repetition_penalty=1.1,
        ignore_eos=True,
        seed=11,
    )


@pytest.mark.parametrize(
    ("params", "meant"),
    [
        ({"temperature": 1e-7}, {"temperature": 0.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"seed": 5}, {"seed": 5}),
        ({"max_new_tokens": None}, {"max_tokens": 507}),
        ({"max_new_tokens": 100_000}, {"max_tokens": 507}),
    ],
)
async def test_values_that_are_read_as_sglang_does(
    client: httpx.AsyncClient, engine: FakeEngine, params: dict[str, Any], meant: dict[str, Any]
) -> None:
    await made(client, text="What?", sampling_params=params)
    wanted = SamplingParams(max_tokens=128, temperature=1.0).replace(**meant)
    [request] = engine.requests
    assert request.sampling.replace(max_tokens=request.sampling.max_tokens or 507) == wanted


@pytest.mark.parametrize(
    ("params", "constraint"),
    [
        ({"regex": "a+"}, Regex("a+")),
        ({"ebnf": 'root ::= "a"'}, Grammar('root ::= "a"')),
        ({"json_schema": '{"type": "object"}'}, JsonSchema('{"type": "object"}')),
    ],
)
async def test_constraints(
    client: httpx.AsyncClient, engine: FakeEngine, params: dict[str, Any], constraint: object
) -> None:
    answer = await made(client, text="What?", sampling_params=params)
    assert engine.requests[0].constraint == constraint
    assert "constraint" not in answer["meta_info"]  # kept exactly


async def test_batch(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: spell(request, f"answer {len(request.prompt)}")
    params = [{"temperature": 0}, {"temperature": 1}]
    answers = await made(client, text=["one", "three"], sampling_params=params, cache_salt=["s", ""])
    assert [answer["text"] for answer in answers] == ["answer 3", "answer 5"]
    assert len({answer["meta_info"]["id"] for answer in answers}) == 2
    assert [(request.sampling.temperature, request.cache_salt) for request in engine.requests] == [(0, "s"), (1, "")]
    assert len(await made(client, text=["one"])) == 1


async def test_several_answers(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answers = await made(client, text="What?", sampling_params={"n": 3, "seed": 7}, rid="mine")
    assert [answer["meta_info"]["id"] for answer in answers] == ["mine_0", "mine_1", "mine_2"]
    assert [request.sampling.seed for request in engine.requests] == [7, 8, 9]
    answers = await made(client, text=["a", "b"], sampling_params={"n": 2}, rid=["x", "y"])
    assert [answer["meta_info"]["id"] for answer in answers] == ["x_0", "x_1", "y_0", "y_1"]


async def test_input_ids(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await made(client, input_ids=[65, 66]))["text"] == "a cat"
    answers = await made(client, input_ids=[[65], [66, 67]])
    assert [answer["meta_info"]["prompt_tokens"] for answer in answers] == [1, 2]
    assert [request.prompt.token_ids.tolist() for request in engine.requests] == [[65, 66], [65], [66, 67]]


@pytest.mark.parametrize(
    "image_data", [PICTURE, data_uri(), [PICTURE], [[PICTURE]], {"url": data_uri()}, [{"url": PICTURE}]]
)
async def test_a_picture(client: httpx.AsyncClient, engine: FakeEngine, image_data: object) -> None:
    answer = await made(client, text=f"{PLACEHOLDER} What?", image_data=image_data)
    assert answer["meta_info"]["image_tokens"] == ROWS
    [request] = engine.requests
    assert [picture.data for picture in request.prompt.pictures] == [png()]


async def test_pictures_of_a_batch(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    other = base64.b64encode(png(4, 4, "blue")).decode()
    one, two = f"{PLACEHOLDER}?", f"{PLACEHOLDER}{PLACEHOLDER}?"
    await made(client, text=[one, one], image_data=PICTURE)
    await made(client, text=[one, one], image_data=[PICTURE, other])
    await made(client, text=["?", two, one], image_data=[None, [other, PICTURE], [PICTURE]])
    await made(client, text=["?"], image_data=[])
    pictures = [[picture.data for picture in request.prompt.pictures] for request in engine.requests]
    red, blue = png(), png(4, 4, "blue")
    assert pictures == [[red], [red], [red], [blue], [], [blue, red], [red], []]
    assert len(prompts.threads) == 8


async def test_stream_is_cumulative(client: httpx.AsyncClient) -> None:
    *chunks, done = sse((await post(client, text="What?", stream=True, rid="r")).content)
    assert done == "[DONE]"
    assert [chunk["text"] for chunk in chunks] == ["a", "a cat"]
    assert [chunk["output_ids"] for chunk in chunks] == [[97], [*map(ord, "a cat"), END]]
    metas = [chunk["meta_info"] for chunk in chunks]
    assert metas[0] == {"id": "r", "finish_reason": None, "prompt_tokens": 5, "completion_tokens": 1}
    assert metas[1]["finish_reason"] == {"type": "stop", "matched": END}
    assert metas[1]["cached_tokens"] == 9
    assert all("index" not in chunk for chunk in chunks)


async def test_stream_of_a_batch(client: httpx.AsyncClient) -> None:
    *chunks, done = sse((await post(client, text=["a", "b"], stream=True)).content)
    assert done == "[DONE]"
    last = {chunk["index"]: chunk["text"] for chunk in chunks}
    assert last == {0: "a cat", 1: "a cat"}


async def test_why_it_ended(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    async def ended(text: str, ids: list[int], finish: str = "stop", **params: Any) -> tuple[Any, str]:
        engine.script = lambda request: spell(request, text, finish=finish, ids=ids)
        answer = await made(client, text="What?", sampling_params=params)
        return answer["meta_info"]["finish_reason"], answer["text"]

    assert await ended("a cat", [], "length") == ({"type": "length", "length": 5}, "a cat")
    assert await ended("a", [*map(ord, "\nb")], stop=["\n", "\nb", "z"]) == ({"type": "stop", "matched": "\nb"}, "a")
    assert await ended("a", [ord("Q")], stop_token_ids=[81]) == ({"type": "stop", "matched": 81}, "a")
    assert await ended("a", []) == ({"type": "stop", "matched": None}, "a")  # a constraint had no more to say
    trim: dict[str, Any] = {"no_stop_trim": True, "finish": "stop"}
    assert (await ended("a", [ord("\n")], stop="\n", **trim))[1] == "a\n"
    assert (await ended("a", [ord("Q")], stop_token_ids=[81], **trim))[1] == "aQ"
    assert (await ended("a", [END], **trim))[1] == "a"
    assert (await ended("a", [END], skip_special_tokens=False, **trim))[1] == "a<end>"
    assert (await ended("a", [END], skip_special_tokens=False))[1] == "a"
    seen = await ended("a", [ord("\n"), ord("b")], skip_special_tokens=False, stop=["\n", "<end>"])
    assert seen == ({"type": "stop", "matched": "\n"}, "a")
    assert engine.requests[-1].sampling.skip_special_tokens is False


async def test_nothing_but_the_prompt(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for text in ("What?", "W"):
        answer = await made(client, text=text, sampling_params={"max_new_tokens": 0, "regex": "a"})
        assert (answer["text"], answer["output_ids"]) == ("", [])
        meta = answer["meta_info"]
        assert meta["finish_reason"] == {"type": "length", "length": 0}
        assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(text), 0)
    scored, generated = engine.requests
    assert scored.score_from == 4
    assert (generated.score_from, generated.sampling.max_tokens, generated.constraint) == (None, 1, None)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "invalid_field", "text"),
        ({"text": "a", "input_ids": [1]}, 400, "invalid_field", "text"),
        ({"text": []}, 400, "invalid_field", "text"),
        ({"text": ""}, 400, "invalid_field", "text"),
        ({"input_ids": []}, 400, "invalid_field", "input_ids"),
        ({"input_ids": [[]]}, 400, "invalid_field", "input_ids"),
        ({"text": 7}, 400, "invalid_field", "text"),
        ({"input_ids": ["a"]}, 400, "invalid_field", "input_ids[0]"),
        ({"text": "a", "sampling_params": 7}, 400, "invalid_field", "sampling_params"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, 400, "invalid_field", "sampling_params.temperature"),
        ({"text": "a", "sampling_params": {"temperature": "hot"}}, 400, "invalid_field", "sampling_params.temperature"),
        (
            {"text": "a", "sampling_params": {"max_new_tokens": -1}},
            400,
            "invalid_field",
            "sampling_params.max_new_tokens",
        ),
        (
            {"text": "a", "sampling_params": {"max_new_tokens": 2, "min_new_tokens": 3}},
            400,
            "invalid_field",
            "sampling_params.min_new_tokens",
        ),
        ({"text": "a", "sampling_params": {"top_k": -2}}, 400, "invalid_field", "sampling_params.top_k"),
        ({"text": "a", "sampling_params": {"stop_regex": "a"}}, 400, "invalid_field", "sampling_params.stop_regex"),
        ({"text": "a", "sampling_params": {"n": 17}}, 400, "invalid_field", "sampling_params.n"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, 400, "invalid_field", "sampling_params"),
        (
            {"text": ["a", "b"], "sampling_params": [{}, {"top_p": 2}]},
            400,
            "invalid_field",
            "sampling_params[1].top_p",
        ),
        ({"text": ["a", "b"], "sampling_params": [{}, {"n": 2}]}, 400, "invalid_field", "sampling_params"),
        ({"text": ["a"] * 300, "sampling_params": {"n": 4}}, 400, "invalid_field", "text"),
        ({"text": "a", "sampling_params": {"regex": 7}}, 400, "invalid_field", "sampling_params.regex"),
        (
            {"text": "a", "sampling_params": {"json_schema": "{"}},
            400,
            "invalid_constraint",
            "sampling_params.json_schema",
        ),
        (
            {"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}},
            400,
            "invalid_constraint",
            "sampling_params.ebnf",
        ),
        ({"text": ["a", "b"], "rid": ["x"]}, 400, "invalid_field", "rid"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, 400, "invalid_field", "rid"),
        ({"text": "a", "token_ids_logprob": [1]}, 400, "invalid_field", "token_ids_logprob"),
        ({"text": "a", "video_data": "x"}, 400, "invalid_field", "video_data"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 2}, 400, "invalid_field", "logprob_start_len"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 21}, 400, "invalid_field", "top_logprobs_num"),
        ({"text": "a", "return_logprob": [True, True]}, 400, "invalid_field", "return_logprob"),
        ({"text": "a", "image_data": PICTURE}, 400, "invalid_field", "text"),
        ({"text": PLACEHOLDER}, 400, "invalid_field", "text"),
        ({"text": PLACEHOLDER, "image_data": "https://a.b/c.png"}, 400, "invalid_field", "image_data"),
        ({"text": PLACEHOLDER, "image_data": "/etc/passwd"}, 400, "invalid_field", "image_data"),
        ({"text": PLACEHOLDER, "image_data": "file:///etc/passwd"}, 400, "invalid_field", "image_data"),
        ({"text": PLACEHOLDER, "image_data": ["picture.png"]}, 400, "invalid_field", "image_data[0]"),
        ({"text": PLACEHOLDER, "image_data": [7]}, 400, "invalid_field", "image_data[0]"),
        ({"text": PLACEHOLDER, "image_data": "aGVsbG8="}, 400, "unsupported_image", "image_data"),
        ({"text": PLACEHOLDER * 4, "image_data": [PICTURE] * 4}, 400, "too_many_images", "image_data[3]"),
        ({"text": ["a", "b"], "image_data": [PICTURE]}, 400, "invalid_field", "image_data"),
        ({"text": PLACEHOLDER, "image_data": "A" * 900_000}, 413, "image_too_large", "image_data"),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient, engine: FakeEngine, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    for stream in (False, True):
        error_of(await post(client, **body, stream=stream), status, code, param)
    assert not engine.requests


async def test_bodies_that_are_no_json(client: httpx.AsyncClient) -> None:
    error_of(await client.post("/generate", content=b"{"), 400, "invalid_field", None)
    error_of(await client.post("/generate", content=b"[]"), 400, "invalid_field", None)


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (QueueFull("full"), 429, "queue_full", None),
        (PromptTooLong("max_tokens is too much", param="max_tokens"), 400, None, "sampling_params.max_new_tokens"),
        (EngineUnavailable("gone"), 503, "engine_unavailable", None),
        (RuntimeError("secret"), 500, "internal_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_of_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int, code: str | None, param: str | None,
    stream: bool,
) -> None:  # fmt: skip
    engine.script = lambda _: iter([error])
    told = error_of(
        await post(client, text=["a", "b"], stream=stream), status, code or "context_length_exceeded", param
    )
    assert "secret" not in told
    assert "max_tokens is" not in told
    assert not engine.running


async def test_a_failure_in_the_middle_of_a_stream_is_its_last_frame(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = lambda request: iter([*list(spell(request, "a", "b"))[:1], EngineUnavailable("gone")])
    first, last = sse((await post(client, text="a", stream=True)).content)
    assert first["text"] == "a"
    assert last["error"]["code"] == "engine_unavailable"


async def test_hashing_is_bounded(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.native.items.MAX_HASHED_BYTES", len(png()))
    assert (await post(client, text=PLACEHOLDER, image_data=PICTURE)).status_code == 200
    response = await post(client, text=[PLACEHOLDER] * 2, image_data=PICTURE)
    error_of(response, 400, "invalid_field", "image_data")


# -- abort ------------------------------------------------------------------------------------------------------


async def aborting(client: httpx.AsyncClient, engine: FakeEngine, count: int, **abort: Any) -> httpx.Response:
    while len(engine.running) < count:
        await asyncio.sleep(0.001)
    return await client.post("/abort_request", json=abort)


async def test_abort_ends_a_request_with_what_it_has(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = forever
    asking = asyncio.create_task(made(client, text="a", rid="mine"))
    other = asyncio.create_task(made(client, text="b", rid="mine too"))
    await aborting(client, engine, 2)
    await asyncio.sleep(0.05)
    assert (await client.post("/abort_request", json={"rid": "mine"})).json() == {"aborted": 1}
    answer = await asking
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert answer["text"].startswith("w0 ")
    assert answer["meta_info"]["completion_tokens"] == len(answer["output_ids"]) > 0
    assert not other.done()
    assert (await client.post("/abort_request", json={"abort_all": True})).json() == {"aborted": 1}
    assert (await other)["meta_info"]["finish_reason"]["type"] == "abort"
    assert not engine.running


async def test_abort_by_the_name_of_a_batch_and_while_it_waits(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = silence
    asking = asyncio.create_task(post(client, text=["a", "b"], rid="mine", stream=True))
    assert (await aborting(client, engine, 2, rid="mine")).json() == {"aborted": 2}
    *chunks, done = sse((await asking).content)
    assert done == "[DONE]"
    assert {chunk["index"]: chunk["meta_info"]["finish_reason"]["type"] for chunk in chunks} == {0: "abort", 1: "abort"}
    assert (await client.post("/abort_request", json={"rid": "mine"})).json() == {"aborted": 0}


async def test_abort_of_one_in_a_batch_leaves_the_others(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: silence(request) if len(request.prompt) == 1 else spell(request, "done")
    asking = asyncio.create_task(made(client, text=["a", "bb"], rid=["x", "y"]))
    while len(engine.requests) < 2:
        await asyncio.sleep(0.001)
    assert (await client.post("/abort_request", json={"rid": "x"})).json() == {"aborted": 1}
    first, second = await asking
    assert first["meta_info"]["finish_reason"]["type"] == "abort"
    assert second["text"] == "done"


async def test_abort_needs_to_know_what(client: httpx.AsyncClient) -> None:
    error_of(await client.post("/abort_request", json={}), 400, "invalid_field", "rid")


def test_a_client_that_leaves_frees_its_slots(live: str, engine: FakeEngine) -> None:
    engine.script = forever
    with httpx.Client(base_url=live) as leaver:
        with leaver.stream("POST", "/generate", json={"text": ["a", "b"], "stream": True}) as response:
            next(response.iter_bytes())
        eventually(lambda: len(engine.aborted) == 2)
    assert not engine.running


# -- what clients ask at start ----------------------------------------------------------------------------------


async def test_model_info(client: httpx.AsyncClient, service: Service) -> None:
    info = (await client.get("/get_model_info")).json()
    assert info == (await client.get("/model_info")).json()
    assert (info["model_path"], info["served_model_name"], info["is_generation"]) == ("pocket-vl", "pocket-vl", True)
    named = dataclasses.replace(service, model=dataclasses.replace(service.model, family="qwen2_vl"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(named)), base_url="http://test") as http:
        info = (await http.get("/get_model_info")).json()
    assert info["model_path"] == "qwen2_vl/pocket-vl"  # SGLang's frontend finds its chat template by "qwen.*vl"
    assert info["model_type"] == "qwen2_vl"


async def test_server_info_under_its_old_name(client: httpx.AsyncClient) -> None:
    assert (await client.get("/get_server_info")).json() == (await client.get("/server_info")).json()


async def test_health_generate(client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await client.get("/health_generate")).status_code == 200
    assert [request.sampling.max_tokens for request in engine.requests] == [1]

    def fails(request: Request) -> Any:  # noqa: ARG001
        return iter([MMServeError("broken")])

    engine.script = fails
    assert (await client.get("/health_generate")).status_code == 503
    engine.script = silence
    monkeypatch.setattr("web.routes.native._HEALTH_SECONDS", 0.01)
    assert (await client.get("/health_generate")).status_code == 503
    engine.ready = False
    response = await client.get("/health_generate")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    error_of(await post(client, text="a"), 503, "engine_unavailable", None)


async def test_the_description_has_the_fields(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schema = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"text", "input_ids", "image_data", "sampling_params", "return_logprob", "stream", "rid"} <= set(
        schema["properties"]
    )
    assert json.dumps(schema)
