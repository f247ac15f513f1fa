"""OpenAI's client against the embedded model: what only the whole can show."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from jsonschema import validate

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from tests.web.fakes import serve
from web.service import ServedModel, Service

PICTURE = Path(__file__).parents[2] / "mmserve/assets/examples/black-triangle.png"
URI = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
ASKED: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": URI}},
            {"type": "text", "text": "What color is the triangle?"},
        ],
    }
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "black", "blue"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["color", "count"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "report", "parameters": SCHEMA, "strict": True},
    },
    {"type": "function", "function": {"name": "give_up"}},
]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    checkpoint = load_registry().resolve("pocket-vl", offline=True)
    engine = LocalEngineClient(
        build_engine(checkpoint, EngineConfig(device="cpu", kv_slots=8192, check_invariants=True))
    )
    prompts = PromptBuilder(checkpoint, Limits())
    yield Service(ServedModel("pocket-vl"), prompts, engine, checkpoint.max_model_len)
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[openai.OpenAI]:
    with (
        serve(service) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def ask(api: openai.OpenAI, **fields: Any) -> Any:
    create: Any = api.chat.completions.create
    return create(**{"model": "default", "messages": ASKED, "temperature": 0} | fields)


def test_an_answer_with_the_bytes_of_its_tokens(api: openai.OpenAI) -> None:
    [choice] = ask(api, logprobs=True, top_logprobs=3).choices
    assert choice.message.content == "black"
    spelled = [bytes(entry.bytes) for entry in choice.logprobs.content]
    assert b"".join(spelled[:-1]).decode() == "black"  # the last token ends the turn
    assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)


def test_a_bias_bans_a_token_and_calls_one_up(api: openai.OpenAI, service: Service) -> None:
    first = int(service.prompts.build_text("black", ()).token_ids[0])
    banned = ask(api, logit_bias={str(first): -100}, logprobs=True)
    assert banned.choices[0].message.content != "black"
    [wanted] = ask(api, logit_bias={str(first): 100}, max_tokens=3).choices
    assert wanted.message.content == service.prompts.decode([first] * 3)


def test_several_answers_share_their_prompt_and_have_seeds_of_their_own(api: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "n": 3,
        "seed": 7,
        "temperature": 3.0,
        "max_tokens": 12,
        "extra_body": {"ignore_eos": True},
    }
    texts = [choice.message.content for choice in ask(api, **fields).choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in ask(api, **fields).choices]
    single = fields | {"n": 1, "seed": 8}
    assert ask(api, **single).choices[0].message.content == texts[1]


def test_a_prompt_is_computed_once_for_all_answers(api: openai.OpenAI, service: Service) -> None:
    def prefilled() -> float:
        return dict(service.engine.stats())["prefilled_tokens"]

    before = prefilled()
    usage = ask(api, n=4, max_tokens=1, extra_body={"cache_salt": "fresh"}).usage
    # Each of the others computes the prompt's last token again, to choose from its logits.
    assert usage.prompt_tokens <= prefilled() - before <= usage.prompt_tokens + 3


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "report"}}])
def test_a_forced_call_is_valid(api: openai.OpenAI, choice: Any, temperature: float) -> None:
    fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 120, "seed": 5}
    answer = ask(api, temperature=temperature, **fields).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    for call in answer.message.tool_calls:
        if call.function.name == "report":
            validate(json.loads(call.function.arguments), SCHEMA)
        else:
            assert (choice, call.function.name, call.function.arguments) == ("required", "give_up", "{}")
    with api.chat.completions.stream(model="default", messages=ASKED, temperature=temperature, **fields) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert [call.function for call in final.message.tool_calls or ()] != []
    assert [(call.function.name, call.function.arguments) for call in final.message.tool_calls or ()] == [
        (call.function.name, call.function.arguments) for call in answer.message.tool_calls
    ]


def test_a_call_and_its_result_are_understood(api: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "report"}}
    message = ask(api, tools=TOOLS, tool_choice=named).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "noted"}
    answer = ask(api, messages=[*ASKED, message, result], tools=TOOLS, max_tokens=20)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_text_beside_tools_ends_with_its_budget(api: openai.OpenAI) -> None:
    [choice] = ask(api, tools=TOOLS, max_tokens=4, extra_body={"min_tokens": 4}, temperature=2.0, seed=1).choices
    assert choice.finish_reason == "length"


def test_a_schema_that_cannot_be_kept_is_refused(api: openai.OpenAI) -> None:
    bad = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    with pytest.raises(openai.UnprocessableEntityError) as error:
        ask(api, tools=[{"type": "function", "function": bad}])
    assert error.value.param == "tools"


def test_a_completion_scores_its_prompt_and_goes_on(api: openai.OpenAI, service: Service) -> None:
    ids = service.prompts.build_text("The color is", ()).token_ids.tolist()
    by_text, by_ids = (
        api.completions.create(model="default", prompt=prompt, echo=True, logprobs=2, max_tokens=4, temperature=0)
        for prompt in ("The color is", ids)
    )
    assert by_text.choices[0].text == by_ids.choices[0].text
    logprobs = by_text.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.token_logprobs) == len(ids) + by_text.usage.completion_tokens
    scored = api.completions.create(model="default", prompt="The color is", echo=True, logprobs=2, max_tokens=0)
    assert scored.choices[0].logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
        logprobs.token_logprobs[1 : len(ids)], abs=1e-3
    )


def test_a_response_sees_a_picture_and_the_next_one_remembers(api: openai.OpenAI) -> None:
    question: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": URI, "detail": "auto"},
                {"type": "input_text", "text": "What color is the triangle?"},
            ],
        }
    ]
    first = api.responses.create(model="default", input=question, temperature=0)
    assert first.output_text == "black"
    with api.responses.stream(model="default", input=question, temperature=0) as stream:
        assert stream.get_final_response().output_text == "black"
    second = api.responses.create(
        model="default", input="What color is the triangle?", previous_response_id=first.id, temperature=0
    )
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= 16  # the picture's


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_response_calls_and_keeps_its_schema(api: openai.OpenAI, temperature: float) -> None:
    tools: list[Any] = [{"type": "function", "name": "report", "parameters": SCHEMA, "strict": True}]
    with api.responses.stream(
        model="default", input="Report.", tools=tools, tool_choice="required", temperature=temperature,
        max_output_tokens=100,
    ) as stream:  # fmt: skip
        response = stream.get_final_response()
    for call in response.output:
        assert call.type == "function_call"
        validate(json.loads(call.arguments), SCHEMA)
    format_: Any = {"format": {"type": "json_schema", "name": "r", "schema": SCHEMA, "strict": True}}
    answer = api.responses.create(model="default", input="Report.", text=format_, temperature=temperature)
    validate(json.loads(answer.output_text), SCHEMA)
