"""The unmodified OpenAI client, over a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from mmserve.errors import MMServeError, QueueFull
from mmserve.grammar.spec import JsonSchema, StructuralTag
from mmserve.types import ConstraintReport, TokenEvent
from tests.web.fakes import FakeEngine, FakePrompts, say
from tests.web.test_chat import picture, text, user


@pytest.fixture
def openai_client(live: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live}/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


CONVERSATION: list[Any] = [
    {"role": "system", "content": "Be brief."},
    user(picture(), picture(), text("Which is red?")),
    {"role": "assistant", "content": "Both."},
    user(text("Sure?")),
]


def test_openai_client(openai_client: openai.OpenAI, prompts: FakePrompts) -> None:
    answer = openai_client.chat.completions.create(
        model="pocket-vl", messages=CONVERSATION, n=2, logprobs=True, extra_body={"top_k": 3}
    )
    assert [choice.message.content for choice in answer.choices] == ["It is a cat."] * 2
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert [len(message.parts) for message in prompts.built[0]] == [1, 3, 1, 1]


def test_openai_client_streams(openai_client: openai.OpenAI) -> None:
    chunks = list(
        openai_client.chat.completions.create(
            model="pocket-vl", messages=CONVERSATION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "It is a cat."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_openai_client_gets_its_own_error_classes(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    def ask(**fields: Any) -> object:
        answer = openai_client.chat.completions.create(**{"model": "pocket-vl", "messages": CONVERSATION} | fields)
        return list(answer) if fields.get("stream") else answer

    with pytest.raises(openai.BadRequestError) as bad:
        ask(temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="pocket-vl"):
        ask(model="other")
    engine.script = lambda _: [QueueFull("full")]
    with pytest.raises(openai.RateLimitError, match="full"):
        ask(stream=True)
    engine.script = lambda request: [TokenEvent(request.id, text="x"), MMServeError("the device failed")]
    with pytest.raises(openai.APIError, match="the device failed"):
        ask(stream=True)


class Animal(pydantic.BaseModel):
    name: str
    legs: int = pydantic.Field(ge=0)


def test_openai_client_parses_into_a_model(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = lambda request: say('{"name":"cat",', '"legs":4}', request=request)
    answer = openai_client.chat.completions.parse(model="pocket-vl", messages=CONVERSATION, response_format=Animal)
    assert answer.choices[0].message.parsed == Animal(name="cat", legs=4)
    constraint = engine.requests[0].constraint
    assert isinstance(constraint, JsonSchema)
    assert constraint.strict
    assert json.loads(constraint.schema)["required"] == ["name", "legs"]
    with openai_client.chat.completions.stream(
        model="pocket-vl", messages=CONVERSATION, response_format=Animal
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Animal(name="cat", legs=4)


def test_openai_client_takes_what_we_add_about_a_constraint(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    report = ConstraintReport("coerced", ("oneOf at / is anyOf",), closed_early=True)
    engine.script = lambda request: say('{"name":"cat","legs":4}', request=request, report=report)
    answer = openai_client.chat.completions.create(
        model="pocket-vl",
        messages=CONVERSATION,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": Animal.model_json_schema()}},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_dump()["closed_early"] is True
    assert answer.model_dump()["constraint"]["relaxed"] == ["oneOf at / is anyOf"]


def test_openai_client_lists_models(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["pocket-vl"]
    assert openai_client.models.retrieve("pocket-vl").model_dump()["max_model_len"] == 512


class Look(pydantic.BaseModel):
    """Looks at a part of the picture."""

    x: int
    y: int


def test_openai_client_parses_the_arguments_of_a_call(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    said = '<tool_call>\n{"name": "Look", "arguments": {"x":1,"y":2}}\n</tool_call>'
    engine.script = lambda request: say(said[:50], said[50:], request=request)
    tools = [openai.pydantic_function_tool(Look)]
    answer = openai_client.chat.completions.parse(
        model="pocket-vl", messages=CONVERSATION, tools=tools, response_format=Animal
    )
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.parsed_arguments for call in calls] == [Look(x=1, y=2)]
    constraint = engine.requests[0].constraint
    assert isinstance(constraint, StructuralTag)
    assert isinstance(constraint.instead, JsonSchema)
    with openai_client.chat.completions.stream(model="pocket-vl", messages=CONVERSATION, tools=tools) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [Look(x=1, y=2)]
