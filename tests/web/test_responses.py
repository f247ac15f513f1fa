"""The Responses API over the stand-ins."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx
import openai
import pydantic
import pytest

from mmserve.errors import MMServeError, QueueFull, ResponseNotKept, UnsupportedPicture
from mmserve.grammar.spec import AnyJson, JsonSchema, StructuralTag
from mmserve.sampling import SamplingParams
from mmserve.types import ConstraintReport, ImagePart, Message, TextPart, TokenEvent
from tests.web.fakes import ROWS, FakeEngine, FakePrompts, say
from tests.web.test_chat import PNG, data_uri
from tests.web.test_tool_calls import NOW, OSLO
from tests.web.test_vqa import error_of
from web.app import create_app
from web.openai.responses_store import Kept, ResponseStore
from web.service import Service

pytestmark = pytest.mark.anyio

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS: list[Any] = [WEATHER, {"type": "function", "name": "clock"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


async def respond(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/responses", json={"model": "pocket-vl", "input": "What?", **fields})


async def made(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await respond(client, **fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def events(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await respond(client, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    found = []
    for block in response.text[:-2].split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    texts = [{"type": "input_text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": texts}


def image(url: str | None = None) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url or data_uri(), "detail": "auto"}


# -- one answer -----------------------------------------------------------------------------------------------------


async def test_response(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = await made(client, metadata={"a": "b"}, user="u", max_output_tokens=9, temperature=0.5)
    assert body["id"] == engine.requests[0].id
    assert body["id"].startswith("resp_")
    [item] = body["output"]
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "It is a cat.", "annotations": [], "logprobs": []}],
    }
    assert (body["object"], body["status"], body["error"], body["incomplete_details"]) == (
        "response", "completed", None, None,
    )  # fmt: skip
    assert (body["metadata"], body["user"], body["max_output_tokens"], body["temperature"]) == ({"a": "b"}, "u", 9, 0.5)
    assert (body["store"], body["truncation"], body["tools"], body["tool_choice"]) == (True, "disabled", [], "auto")
    assert body["usage"]["input_tokens"] == 1
    assert body["usage"]["input_tokens_details"]["cached_tokens"] == 2
    assert body["usage"]["output_tokens"] == 3
    assert engine.requests[0].sampling == SamplingParams(max_tokens=9, temperature=0.5)


async def test_items_are_turns(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    items = [
        {"type": "message", "role": "developer", "content": "Be kind."},
        user("Look:", image()),
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city":"Oslo"}', "id": "fc_1"},
        {"type": "function_call", "call_id": "b", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "Rain"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "Noon"}, image()]},
        {"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{}"},
    ]
    body = await made(client, input=items, instructions="Be brief.")
    begin, end = TextPart("<tool_response>\n"), TextPart("\n</tool_response>")
    assert prompts.built == [
        [
            Message("system", (TextPart("Be brief."),)),
            Message("system", (TextPart("Be kind."),)),
            Message("user", (TextPart("Look:"), ImagePart(PNG))),
            Message("assistant", (TextPart("I look."), TextPart(f"\n{OSLO}\n{NOW}"))),
            Message(
                "user", (begin, TextPart("Rain"), end, TextPart("\n"), begin, TextPart("Noon"), ImagePart(PNG), end)
            ),
            Message("assistant", (TextPart(NOW),)),
        ]
    ]
    assert body["usage"]["input_tokens_details"]["image_tokens"] == 2 * ROWS
    assert len(body["images"]) == 2


@pytest.mark.parametrize(
    ("format_", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, AnyJson()),
        (
            {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True},
            JsonSchema.of(SCHEMA, strict=True),
        ),
    ],
)
async def test_formats(
    client: httpx.AsyncClient, engine: FakeEngine, format_: dict[str, Any], constraint: object
) -> None:
    body = await made(client, text={"format": format_, "verbosity": "medium"})
    assert engine.requests[0].constraint == constraint
    assert body["text"] == {"format": format_}


async def test_calls(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    engine.script = lambda request: say(f"I look.\n{OSLO}\n{NOW}", request=request)
    body = await made(client, tools=TOOLS, parallel_tool_calls=False)
    assert body["parallel_tool_calls"] is False
    assert body["status"] == "completed"
    assert [item["type"] for item in body["output"]] == ["message", "function_call", "function_call"]
    call = body["output"][1]
    assert (call["name"], call["arguments"], call["status"]) == ("weather", '{"city":"Oslo"}', "completed")
    assert call["call_id"] != call["id"]
    assert body["tools"][0]["name"] == "weather"
    [system, _] = prompts.built[-1]
    assert '{"name": "weather"' in system.parts[0].text  # type: ignore[union-attr]
    await made(client, tools=TOOLS, tool_choice={"type": "function", "name": "weather"})
    constraint = engine.requests[-1].constraint
    assert isinstance(constraint, StructuralTag)
    assert (len(constraint.tags), constraint.bare, constraint.stop_after_first) == (1, True, True)


async def test_an_answer_that_was_cut_off_is_incomplete(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("It", request=request, finish="length")
    body = await made(client)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    assert (await events(client))[-1]["type"] == "response.incomplete"


async def test_what_a_constraint_gave_up_is_told(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    report = ConstraintReport("coerced", ("something",), closed_early=True)
    engine.script = lambda request: say("{}", request=request, report=report)
    body = await made(client, text={"format": {"type": "json_object"}})
    assert (body["closed_early"], body["constraint"]["relaxed"]) == (True, ["something"])


async def test_logprobs(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("a", "b", request=request, logprobs=True)
    for fields in ({"include": ["message.output_text.logprobs"]}, {"top_logprobs": 0}):
        [item] = (await made(client, **fields))["output"]
        assert [entry["token"] for entry in item["content"][0]["logprobs"]] == ["a", "b"]
    assert [request.sampling.logprobs for request in engine.requests] == [0, 0]
    told = await events(client, top_logprobs=2)
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    assert [len(event["logprobs"]) for event in deltas] == [1, 1]
    assert deltas[0]["logprobs"][0]["top_logprobs"][0] == {"token": "a", "logprob": -0.5, "bytes": [97]}


# -- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_of_text(client: httpx.AsyncClient) -> None:
    told = await events(client)
    assert [event["type"] for event in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert told[0]["response"]["status"] == "in_progress"
    assert (told[2]["item"]["content"], told[2]["item"]["status"]) == ([], "in_progress")
    assert "".join(event["delta"] for event in told[4:7]) == told[7]["text"] == "It is a cat."
    assert len({event["item_id"] for event in told if "item_id" in event}) == 1
    assert told[-1]["response"]["output"] == [told[-2]["item"]]
    kept = await client.get(f"/v1/responses/{told[0]['response']['id']}")
    assert kept.json() == told[-1]["response"]


async def test_a_stream_of_calls(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("I look.\n", OSLO[:60], OSLO[60:] + "\n" + NOW, request=request)
    told = await events(client, tools=TOOLS)
    assert [(event["type"].removeprefix("response."), event.get("output_index")) for event in told[2:-1]] == [
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("output_text.delta", 0),
        ("output_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("function_call_arguments.delta", 1),
        ("function_call_arguments.delta", 1),
        ("function_call_arguments.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
    ]
    done = [event for event in told if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"]) for event in done] == [("weather", '{"city":"Oslo"}'), ("clock", "{}")]


async def test_an_answer_of_nothing_is_an_empty_message(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("", request=request)
    [item] = (await made(client))["output"]
    assert item["content"][0]["text"] == ""


async def test_errors_of_a_stream(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda _: [QueueFull("full")]
    error_of(await respond(client, stream=True), 429, "queue_full", None)
    engine.script = lambda request: [TokenEvent(request.id, text="x"), MMServeError("the device failed")]
    last = (await events(client))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "the device failed"}
    assert (await client.get(f"/v1/responses/{last['response']['id']}")).status_code == 404


# -- what is kept ---------------------------------------------------------------------------------------------------


async def test_a_conversation_goes_on(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    first = await made(client, input=[user("What?", image())], instructions="Be brief.")
    second = await made(client, input="Sure?", previous_response_id=first["id"])
    third = await made(client, input="Why?", previous_response_id=second["id"], instructions="Be long.")
    said = Message("assistant", (TextPart("It is a cat."),))
    assert prompts.built[-1] == [
        Message("system", (TextPart("Be long."),)),  # instructions are of one answer only
        Message("user", (TextPart("What?"), ImagePart(PNG))),
        said,
        Message("user", (TextPart("Sure?"),)),
        said,
        Message("user", (TextPart("Why?"),)),
    ]
    assert third["previous_response_id"] == second["id"]
    assert (await client.delete(f"/v1/responses/{first['id']}")).json() == {
        "id": first["id"],
        "object": "response",
        "deleted": True,
    }
    for path in (await client.get(f"/v1/responses/{first['id']}"), await client.delete(f"/v1/responses/{first['id']}")):
        error_of(path, 404, "response_not_kept", None)
    error_of(await respond(client, previous_response_id=third["id"]), 404, "response_not_kept", "previous_response_id")


async def test_calls_are_answered_by_the_next_response(
    client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts
) -> None:
    engine.script = lambda request: say(OSLO, request=request)
    first = await made(client, tools=TOOLS)
    output = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "Rain"}
    await made(client, input=[output], previous_response_id=first["id"])
    assert [message.role for message in prompts.built[-1]] == ["user", "assistant", "user"]
    assert prompts.built[-1][1].parts == (TextPart(OSLO),)


async def test_what_is_not_to_be_kept_is_not(client: httpx.AsyncClient) -> None:
    body = await made(client, store=False)
    assert body["store"] is False
    error_of(await client.get(f"/v1/responses/{body['id']}"), 404, "response_not_kept", None)
    kept = await made(client)
    assert (await client.get(f"/v1/responses/{kept['id']}")).json() == kept
    error_of(await client.get(f"/v1/responses/{kept['id']}?stream=true"), 400, "invalid_field", "stream")


class TestStore:
    def kept(self, previous: str | None = None, size: int = 10) -> Kept:
        return Kept({"output": [{"out": previous}]}, [{"in": previous}], previous, size)

    def test_is_bounded_in_bytes_and_forgets_the_longest_unused(self) -> None:
        store = ResponseStore(30, 60)
        for name in "abc":
            assert store.put(name, self.kept())
        store.get("a")
        assert store.put("d", self.kept())
        assert store.size == 30
        with pytest.raises(ResponseNotKept):
            store.get("b")
        assert store.get("a")
        assert not store.put("e", self.kept(size=31))
        assert store.size == 30

    def test_is_bounded_in_time(self) -> None:
        now = [0.0]
        store = ResponseStore(100, 60, clock=lambda: now[0])
        store.put("a", self.kept())
        now[0] = 59
        store.get("a")
        now[0] = 118
        store.get("a")
        now[0] = 178
        with pytest.raises(ResponseNotKept):
            store.get("a")
        store.put("b", self.kept())
        assert store.size == 10

    def test_a_conversation_is_used_as_a_whole(self) -> None:
        store = ResponseStore(30, 60)
        store.put("a", self.kept())
        store.put("x", self.kept())
        store.put("b", self.kept("a"))
        assert store.conversation("b", "p") == [{"in": None}, {"out": None}, {"in": "a"}, {"out": "a"}]
        store.put("c", self.kept())  # takes the place of x, though a is older
        assert len(store.conversation("b", "p")) == 4
        with pytest.raises(ResponseNotKept) as error:
            store.conversation("x", "p")
        assert error.value.param == "p"


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [user({"type": "input_file", "file_id": "x"})]}, "input[0].content[0].type"),
        ({"input": [user({"type": "input_image"})]}, "input[0].content[0]"),
        ({"input": [user("x", image("https://example.org/cat.png"))]}, "input[0].content[1].image_url"),
        ({"input": [user("x"), {"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[1]"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, "input[0]"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].name"),
        ({"tools": [{"type": "web_search", "name": "x"}]}, "tools[0].type"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"2000000": 1}}, "logit_bias"),
    ],
)
async def test_bad_fields_are_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = await respond(client, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert "messages[" not in error["message"]
    assert not engine.requests


@pytest.mark.parametrize(
    "fields",
    [
        {"background": False, "truncation": "disabled", "service_tier": "auto", "reasoning": {"effort": None}},
        {"include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "safety_identifier": "s"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "max_tool_calls": 3, "text": None},
    ],
)
async def test_what_asks_for_nothing_is_harmless(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    await made(client, **fields)


async def test_an_error_of_the_prompt_names_its_field(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    prompts.failure = UnsupportedPicture("no", param="messages[1].content[1]")
    response = await respond(client, input=[user("What?", image())], instructions="Be brief.")
    error_of(response, 400, "unsupported_image", "input[0].content[1]")
    prompts.failure = UnsupportedPicture("no", param="messages[0].content[0]")
    error_of(await respond(client, instructions="Be brief."), 400, "unsupported_image", "instructions")


async def test_too_large_to_be_kept(service: Service, engine: FakeEngine) -> None:
    small = dataclasses.replace(service, limits=dataclasses.replace(service.limits, max_kept_bytes=100))
    transport = httpx.ASGITransport(create_app(small))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        error_of(await respond(http, input="x" * 200), 400, "invalid_field", "store")
        assert (await made(http, input="x" * 200, store=False))["status"] == "completed"
        assert (await made(http))["store"] is False  # the answer made it too large
    assert len(engine.requests) == 2


async def test_unknown_model_and_not_ready(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    error_of(await respond(client, model="gpt-5"), 404, "model_not_found", "model")
    await made(client, model="default")
    engine.ready = False
    error_of(await respond(client), 503, "engine_unavailable", None)


# -- OpenAI's client ------------------------------------------------------------------------------------------------


class Animal(pydantic.BaseModel):
    name: str
    legs: int


def test_openai_client(live: str, engine: FakeEngine) -> None:
    with openai.OpenAI(base_url=f"{live}/v1", api_key="none", max_retries=0, timeout=10) as api:
        first = api.responses.create(model="pocket-vl", input="What?")
        assert first.output_text == "It is a cat."
        assert api.responses.retrieve(first.id).output_text == "It is a cat."
        second = api.responses.create(model="pocket-vl", input="Sure?", previous_response_id=first.id)
        assert second.usage is not None
        assert second.usage.input_tokens == 6
        with api.responses.stream(model="pocket-vl", input="What?") as stream:
            texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
            assert "".join(texts) == stream.get_final_response().output_text == "It is a cat."
        api.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            api.responses.retrieve(first.id)
        engine.script = lambda request: say('{"name":"cat",', '"legs":4}', request=request)
        parsed = api.responses.parse(model="pocket-vl", input="What?", text_format=Animal)
        assert parsed.output_parsed == Animal(name="cat", legs=4)
        engine.script = lambda request: say(OSLO, request=request)
        with api.responses.stream(model="pocket-vl", input="What?", tools=TOOLS) as stream:
            [call] = stream.get_final_response().output
        assert call.type == "function_call"
        assert json.loads(call.arguments) == {"city": "Oslo"}
        assert engine.requests[-1].constraint is not None
