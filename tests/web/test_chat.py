from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mmserve.errors import MMServeError, QueueFull
from mmserve.types import ImagePart, Message, Request, SamplingParams, TextPart, TokenEvent
from tests.web.fakes import ROWS, FakeEngine, FakePrompts, Step, png, say, sse, usage_of
from tests.web.test_vqa import error_of
from web.schemas import ChatRequest

pytestmark = pytest.mark.anyio

PNG = png()


def data_uri(data: bytes = PNG, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or data_uri(), "detail": "auto"}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


async def chat(client: httpx.AsyncClient, *messages: dict[str, Any], **fields: Any) -> httpx.Response:
    asked = list(messages) or [user(picture(), text("What is this?"))]
    return await client.post("/v1/chat/completions", json={"model": "pocket-vl", "messages": asked, **fields})


async def test_completion(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await chat(client)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body.pop("id") == engine.requests[0].id == f"chatcmpl-{response.headers['x-request-id']}"
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": "pocket-vl",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "It is a cat.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "matched_stop": 3,  # the fake tokenizer's end of turn
            }
        ],
        "usage": {
            "prompt_tokens": ROWS + 3,
            "completion_tokens": 3,
            "total_tokens": ROWS + 6,
            "prompt_tokens_details": {
                "cached_tokens": 2,
                "image_tokens": ROWS,
                "cached_images": 1,
                "system_tokens": 0,
                "cached_system_tokens": 0,
            },
        },
        "images": [{"width": 8, "height": 6, "tokens": ROWS, "resized": [16, 12]}],
    }


async def test_turns_roles_and_pictures_keep_their_order(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    other = png(4, 4, "blue")
    response = await chat(
        client,
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [text("And kind.")]},
        user(text("Look:"), picture(), picture(data_uri(other)), text("Which is red?")),
        {"role": "assistant", "content": "The first."},
        {"role": "user", "name": "eve", "content": "Why?"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [picture(data_uri()) | {"image_url": data_uri()}]},
    )
    assert response.status_code == 200, response.text
    assert prompts.built == [
        [
            Message("system", (TextPart("Be brief."),)),
            Message("system", (TextPart("And kind."),)),
            Message("user", (TextPart("Look:"), ImagePart(PNG), ImagePart(other), TextPart("Which is red?"))),
            Message("assistant", (TextPart("The first."),)),
            Message("user", (TextPart("Why?"),)),
            Message("assistant", ()),
            Message("user", (ImagePart(PNG),)),
        ]
    ]


async def test_every_sampling_field_arrives(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await chat(
        client,
        max_completion_tokens=9,
        logit_bias={"7": -3, "5": 2.5},
        max_tokens=5,
        min_tokens=1,
        temperature=1,
        top_p=0.5,
        top_k=3,
        min_p=0.05,
        repetition_penalty=1.2,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        seed=3,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
        skip_special_tokens=False,
        logprobs=True,
        top_logprobs=2,
        cache_salt="s",
    )
    asked = engine.requests[0]
    assert asked.cache_salt == "s"
    assert asked.sampling == SamplingParams(
        max_tokens=9,
        min_tokens=1,
        temperature=1.0,
        top_p=0.5,
        top_k=3,
        min_p=0.05,
        repetition_penalty=1.2,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        seed=3,
        stop=("a", "b"),
        stop_token_ids=(1, 2),
        ignore_eos=True,
        skip_special_tokens=False,
        logprobs=2,
        logit_bias=((5, 2.5), (7, -3.0)),
    )


async def test_nulls_and_a_single_stop_string(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    nothing = dict.fromkeys(set(ChatRequest.model_fields) - {"messages"})
    assert (await chat(client, **nothing)).status_code == 200
    assert engine.requests[0].sampling == SamplingParams()
    await chat(client, stop="END")
    assert engine.requests[1].sampling.stop == ("END",)


async def test_several_answers_to_one_prompt(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        number = request.id[-1]
        yield 0.02 * (3 - int(number))  # the last begins first
        yield from say("answer ", number, request=request)

    engine.script = script
    body = (await chat(client, n=3, seed=2**64 - 1)).json()
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [
        (0, "answer 0"),
        (1, "answer 1"),
        (2, "answer 2"),
    ]
    assert body["usage"]["prompt_tokens"] == ROWS + 3
    assert body["usage"]["completion_tokens"] == 6
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds == [2**64 - 1, 0, 1]
    assert len({request.id for request in engine.requests}) == 3
    assert not engine.running


async def test_error_of_one_answer_ends_the_others(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield 0.01 if request.id.endswith("1") else 3600.0
        yield QueueFull("full")

    engine.script = script
    error_of(await chat(client, n=3), 429, "queue_full", None)
    assert not engine.running
    assert len(engine.aborted) == 2


async def test_stream(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await chat(client, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = sse(response.content)
    assert done == "[DONE]"
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"] == engine.requests[0].id
        assert set(chunk) == {"id", "object", "created", "model", "choices"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "It"},
        {"content": " is"},
        {"content": " a cat."},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "stop"]


async def test_stream_with_usage(client: httpx.AsyncClient) -> None:
    response = await chat(client, stream=True, stream_options={"include_usage": True})
    *chunks, last, done = sse(response.content)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens_details"]["image_tokens"] == ROWS
    assert last["images"] == [{"width": 8, "height": 6, "tokens": ROWS, "resized": [16, 12]}]


async def test_stream_with_logprobs_keeps_those_of_tokens_without_text(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    def script(request: Request) -> Iterator[Step]:
        [half] = [step.logprobs for step in say("�", request=request, logprobs=True) if isinstance(step, TokenEvent)]
        yield TokenEvent(request.id, token_ids=(1,), logprobs=half)
        yield TokenEvent(request.id, text="é", finish_reason="stop", usage=usage_of(request, 2))

    engine.script = script
    *chunks, _ = sse((await chat(client, stream=True, logprobs=True)).content)
    with_logprobs = [c["choices"][0] for c in chunks if c["choices"][0]["logprobs"]]
    assert with_logprobs[0]["logprobs"]["content"][0]["token"] == "�"
    assert with_logprobs[0]["delta"] == {"content": ""}


async def test_stream_of_several_answers(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("answer ", request.id[-1], request=request)
    chunks = sse((await chat(client, n=2, stream=True)).content)[:-1]
    texts = {0: "", 1: ""}
    ends = []
    for choice in (chunk["choices"][0] for chunk in chunks):
        texts[choice["index"]] += choice["delta"].get("content", "")
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert texts == {0: "answer 0", 1: "answer 1"}
    assert sorted(ends) == [0, 1]


async def test_stream_error_before_and_after_the_first_token(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda _: [QueueFull("full")]
    error_of(await chat(client, stream=True), 429, "queue_full", None)
    engine.script = lambda request: [TokenEvent(request.id, text="x"), MMServeError("the device failed")]
    last = sse((await chat(client, stream=True)).content)[-1]
    assert last["error"]["code"] == "internal_error"


async def test_logprobs(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("a", request=request, logprobs=True)
    logprobs = (await chat(client, logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]
    assert set(logprobs) == {"content", "refusal"}
    assert logprobs["content"][0]["bytes"] == [97]
    assert logprobs["content"][0]["top_logprobs"] == [
        {"token": "a", "logprob": -0.5, "bytes": [97]},
        {"token": "�", "logprob": -9999.0, "bytes": [0]},  # the bytes of the token and not of what is shown for it
    ]


async def test_the_last_message_can_be_continued(
    client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts
) -> None:
    turns = [{"role": "user", "content": "Where is the cat?"}, {"role": "assistant", "content": "It is"}]
    for extra in ({}, {"add_generation_prompt": False}):
        assert (await chat(client, *turns, continue_final_message=True, **extra)).status_code == 200
        assert [message.role for message in prompts.built[-1]] == ["user"]
        assert engine.requests[-1].prompt.token_ids.tolist() == [0, 0, 0, 0, *map(ord, "It is")]
    turns[1]["content"] = ""
    assert (await chat(client, *turns, continue_final_message=True)).status_code == 200
    assert engine.requests[-1].prompt.token_ids.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "turns", [[{"role": "user", "content": "Where?"}], [{"role": "assistant", "content": "It is"}]]
)
async def test_only_an_assistants_turn_can_be_continued(client: httpx.AsyncClient, turns: list[dict[str, str]]) -> None:
    response = await chat(client, *turns, continue_final_message=True)
    error_of(response, 400, "invalid_field", "continue_final_message")


async def test_to_begin_a_turn_and_to_continue_one_exclude_each_other(client: httpx.AsyncClient) -> None:
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "It is"}]
    response = await chat(client, *turns, continue_final_message=True, add_generation_prompt=True)
    error_of(response, 400, "invalid_field", "add_generation_prompt")


async def test_unknown_fields_are_ignored_and_logged_once(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "web")
    for _ in range(2):
        assert (await chat(client, user="u1", metadata={"a": "b"}, service_tier="auto", tools=[])).status_code == 200
    lines = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert len(lines) == 2
    assert any("'user'" in line for line in lines)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_choice", "required"),
        ("tool_choice", "sometimes"),
        ("logit_bias", {"one": 100}),
        ("logit_bias", {"-1": 100}),
        ("logit_bias", {"2000000": 1}),
        ("modalities", ["audio"]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("web_search_options", {"search_context_size": "low"}),
        ("service_tier", "flex"),
        ("verbosity", "low"),
        ("reasoning_effort", "high"),
        ("store", True),
        ("stream_options", {"include_usage": True}),
        ("guided_whitespace_pattern", " ?"),
        ("add_generation_prompt", False),
        ("best_of", 2),
    ],
)
async def test_field_whose_loss_would_change_the_answer_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, value: object
) -> None:
    response = await chat(client, **{field: value})
    assert field in error_of(response, 400, "invalid_field", field)
    assert not engine.requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "text"}),
        ("guided_decoding_backend", "xgrammar"),
        ("tool_choice", "none"),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", True),
        ("store", False),
        ("service_tier", "default"),
        ("reasoning_effort", "none"),
        ("verbosity", "medium"),
        ("prediction", {"type": "content", "content": "It is"}),
        ("safety_identifier", "u"),
        ("prompt_cache_key", "k"),
        ("tools", None),
        ("modalities", ["text"]),
        ("logit_bias", {}),
        ("best_of", 1),
    ],
)
async def test_field_that_asks_for_nothing_is_harmless(client: httpx.AsyncClient, field: str, value: object) -> None:
    assert (await chat(client, **{field: value})).status_code == 200


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "tool", "content": "x"}], "messages[0]"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c"}], "messages[0].tool_call_id"),
        ([{"role": "user"}], "messages[0]"),
        ([{"role": "user", "content": []}], "messages[0]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": {}})], "messages[0].content[0].image_url.url"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].id"),
        ([{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}], "messages[0]"),
        ("hello", "messages"),
    ],
)  # fmt: skip
async def test_bad_messages_name_the_place(client: httpx.AsyncClient, messages: object, param: str) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": messages})
    error_of(response, 400, "invalid_field", param)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.org/cat.png", "invalid_field"),
        ("http://169.254.169.254/", "invalid_field"),
        ("file:///etc/passwd", "invalid_field"),
        ("/etc/passwd", "invalid_field"),
        ("", "invalid_field"),
        ("data:", "invalid_field"),
        ("data:image/png", "invalid_field"),
        ("data:image/png,abcd", "invalid_field"),
        ("data:base64,abcd", "invalid_field"),
        ("data:image/png;base64,a-_b", "invalid_field"),
        ("data:image/png;base64,abc", "invalid_field"),
        ("data:image/png;base64,ab\ncd", "invalid_field"),
        ("data:image/png;base64,äöüß", "invalid_field"),
        ("data:image/png;base64,", "unsupported_image"),
        ("data:text/html;base64,aGVsbG8=", "unsupported_image"),
    ],
)
async def test_bad_picture_addresses(client: httpx.AsyncClient, engine: FakeEngine, url: str, code: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    message = error_of(await chat(client, user(text("a"), part)), 400, code, "messages[0].content[1].image_url")
    if not url.startswith("data:"):
        assert "data URI" in message
    assert not engine.requests


@pytest.mark.parametrize(
    "head", ["data:image/png;base64,", "DATA:IMAGE/PNG;BASE64,", "data:;base64,", "data:image/jpeg;name=a.jpg;base64,"]
)
async def test_data_uri_heads(client: httpx.AsyncClient, prompts: FakePrompts, head: str) -> None:
    response = await chat(client, user(picture(head + base64.b64encode(PNG).decode())))
    assert response.status_code == 200, response.text
    assert prompts.built[0][0].parts == (ImagePart(PNG),)


async def test_picture_over_the_byte_limit_is_413(client: httpx.AsyncClient) -> None:
    at_limit = await chat(client, user(picture(data_uri(PNG + bytes(600_000 - len(PNG))))))
    assert at_limit.status_code == 200
    over = await chat(client, user(picture(data_uri(PNG + bytes(600_001 - len(PNG))))))
    error_of(over, 413, "image_too_large", "messages[0].content[0].image_url")


async def test_too_many_pictures_over_the_whole_conversation(client: httpx.AsyncClient) -> None:
    turns = [user(picture(), picture()), {"role": "assistant", "content": "ok"}]
    assert (await chat(client, *turns, user(picture()))).status_code == 200
    response = await chat(client, *turns, user(picture(), picture()))
    error_of(response, 400, "too_many_images", "messages[2].content[1].image_url")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "12"),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_completion_tokens", 0),
        ("temperature", "0.5"),
        ("temperature", -1),
        ("top_p", 0),
        ("n", 0),
        ("n", 17),
        ("seed", 1.5),
        ("stop", 5),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stream", "yes"),
        ("stream_options", 1),
        ("logprobs", 5),
        ("min_tokens", 10**30),
        ("logit_bias", {"1": 101}),
        ("tool_choice", 5),
    ],
)
async def test_bad_values_name_their_field(client: httpx.AsyncClient, field: str, value: object) -> None:
    response = await chat(client, **{field: value})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].split("[")[0] == field


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"messages":' + b"[" * 10_000, b'{"messages": "\\ud800"}'],
)
async def test_body_that_is_no_json_object(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert len(response.json()["error"]["message"]) < 300


async def test_unknown_model(client: httpx.AsyncClient) -> None:
    error_of(await chat(client, model="gpt-5"), 404, "model_not_found", "model")


async def test_model_may_be_left_out(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": [user(text("hi"))]})
    assert response.json()["model"] == "pocket-vl"


async def test_prompt_over_the_context(client: httpx.AsyncClient) -> None:
    error_of(await chat(client, user(text("word " * 600))), 400, "context_length_exceeded", None)


async def test_body_over_the_limit_is_413(client: httpx.AsyncClient) -> None:
    response = await chat(client, user(text("x" * 2_000_001)))
    error_of(response, 413, "request_too_large", None)


async def test_big_bodies_are_prepared_in_a_thread(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    await chat(client)
    await chat(client, user(picture(data_uri(PNG + bytes(300_000)))))
    assert prompts.threads[0] == threading.get_ident() != prompts.threads[1]


async def test_not_ready_is_503(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.ready = False
    error_of(await chat(client), 503, "engine_unavailable", None)
