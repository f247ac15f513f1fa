"""LiteLLM's chat through its provider for servers with OpenAI's API: picture, stream, structured output, tools."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel

URL = os.environ["OUTSIDE_URL"]
PICTURE = (Path(__file__).parents[2] / "mmserve/assets/examples/red-circle.png").read_bytes()
URI = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
ASKED = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": URI}},
            {"type": "text", "text": "What color is the circle?"},
        ],
    }
]
PARAMETERS = {
    "type": "object",
    "properties": {"color": {"type": "string", "enum": ["red", "green", "blue"]}},
    "required": ["color"],
}
TOOLS = [{"type": "function", "function": {"name": "report_shape", "parameters": PARAMETERS}}]


class Shape(BaseModel):
    color: Literal["red", "green", "blue"]
    count: int


@pytest.fixture(params=["openai", "hosted_vllm"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"model": f"{request.param}/default", "api_base": f"{URL}/v1", "api_key": "none", "max_retries": 0}


def test_chat_with_a_picture(where: dict[str, Any]) -> None:
    answer = litellm.completion(messages=ASKED, temperature=0, **where)
    assert answer.choices[0].message.content == "red"
    assert answer.usage.prompt_tokens > 0


def test_stream(where: dict[str, Any]) -> None:
    chunks = list(
        litellm.completion(messages=ASKED, temperature=0, stream=True, stream_options={"include_usage": True}, **where)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "red"
    whole = litellm.stream_chunk_builder(chunks, messages=ASKED)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 0


def test_async(where: dict[str, Any]) -> None:
    answer = asyncio.run(litellm.acompletion(messages=ASKED, temperature=0, **where))
    assert answer.choices[0].message.content == "red"


def test_structured_output(where: dict[str, Any]) -> None:
    answer = litellm.completion(messages=ASKED, temperature=0, response_format=Shape, **where)
    Shape.model_validate_json(answer.choices[0].message.content)


def test_json_object(where: dict[str, Any]) -> None:
    answer = litellm.completion(messages=ASKED, max_tokens=40, response_format={"type": "json_object"}, **where)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "report_shape"}}])
def test_tools(where: dict[str, Any], choice: object) -> None:
    answer = litellm.completion(messages=ASKED, tools=TOOLS, tool_choice=choice, **where)
    message = answer.choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments)["color"] in ("red", "green", "blue")
    results = [{"role": "tool", "tool_call_id": call.id, "content": "red"} for call in message.tool_calls]
    told = litellm.completion(messages=[*ASKED, message.model_dump(), *results], tools=TOOLS, **where)
    assert told.choices[0].message.role == "assistant"


def test_tools_of_a_stream(where: dict[str, Any]) -> None:
    chunks = list(litellm.completion(messages=ASKED, tools=TOOLS, tool_choice="required", stream=True, **where))
    whole = litellm.stream_chunk_builder(chunks, messages=ASKED)
    assert json.loads(whole.choices[0].message.tool_calls[0].function.arguments)["color"]


def test_logprobs(where: dict[str, Any]) -> None:
    answer = litellm.completion(messages=ASKED, temperature=0, logprobs=True, top_logprobs=2, **where)
    assert answer.choices[0].logprobs.content[0].token == "red"


def test_text_completion(where: dict[str, Any]) -> None:
    fields = {**where, "model": f"text-completion-openai/{where['model'].partition('/')[2]}"}
    answer = litellm.text_completion(prompt="One,", max_tokens=4, **fields)
    assert isinstance(answer.choices[0].text, str)


def test_errors_are_the_clients_own(where: dict[str, Any]) -> None:
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=ASKED, temperature=-1, **where)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "word " * 20_000}], **where)
