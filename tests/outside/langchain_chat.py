"""LangChain's standard tests of chat models (``langchain_tests``) over ``ChatOpenAI``, and its chat with a picture."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from pydantic import BaseModel

URL = os.environ["OUTSIDE_URL"]
PICTURE = (Path(__file__).parents[2] / "mmserve/assets/examples/red-circle.png").read_bytes()
URI = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
ASKED: list[BaseMessage] = [
    HumanMessage(
        [{"type": "image_url", "image_url": {"url": URI}}, {"type": "text", "text": "What color is the circle?"}]
    )
]
SETTINGS: dict[str, Any] = {
    "model": "default",
    "base_url": f"{URL}/v1",
    "api_key": "none",
    "temperature": 0,
    "max_retries": 0,
    "max_tokens": 200,  # the embedded model would write an integer's digits until its context is full
    "stream_usage": True,
}


class Shape(BaseModel):
    """What is in the picture."""

    color: Literal["red", "green", "blue"]
    count: int


@tool  # type: ignore[untyped-decorator]
def report_shape(color: Literal["red", "green", "blue"]) -> str:
    """Report the color of the shape."""
    return color


class TestStandard(ChatModelIntegrationTests):  # type: ignore[misc]
    @property
    def chat_model_class(self) -> Any:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return SETTINGS

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "pocket-vl"


@pytest.fixture(params=[False, True], ids=["chat completions", "responses"])
def model(request: pytest.FixtureRequest) -> ChatOpenAI:
    return ChatOpenAI(**SETTINGS, use_responses_api=request.param)


class TestPicture:
    def test_invoke(self, model: ChatOpenAI) -> None:
        answer = model.invoke(ASKED)
        assert answer.text == "red"
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] > 0

    def test_standard_content_block(self, model: ChatOpenAI) -> None:
        image = {"type": "image", "base64": base64.b64encode(PICTURE).decode(), "mime_type": "image/png"}
        asked = HumanMessage([{"type": "text", "text": "What color is the circle?"}, image])
        assert isinstance(model.invoke([asked]).text, str)

    def test_stream(self, model: ChatOpenAI) -> None:
        assert "".join(chunk.text for chunk in model.stream(ASKED)) == "red"

    async def test_async(self, model: ChatOpenAI) -> None:
        assert (await model.ainvoke(ASKED)).text == "red"
        assert "".join([chunk.text async for chunk in model.astream(ASKED)]) == "red"

    def test_batch(self, model: ChatOpenAI) -> None:
        assert [answer.text for answer in model.batch([ASKED] * 8)] == ["red"] * 8

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output(self, model: ChatOpenAI, method: Any) -> None:
        assert isinstance(model.with_structured_output(Shape, method=method).invoke(ASKED), Shape)

    @pytest.mark.parametrize("choice", ["any", "report_shape"])
    def test_tools(self, model: ChatOpenAI, choice: str) -> None:
        bound = model.bind_tools([report_shape], tool_choice=choice)
        answer = bound.invoke(ASKED)
        assert isinstance(answer, AIMessage)
        results = [
            ToolMessage(report_shape.invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls
        ]
        assert results
        told = model.bind_tools([report_shape]).invoke([*ASKED, answer, *results])
        assert isinstance(told, AIMessage)

    def test_tools_of_a_stream(self, model: ChatOpenAI) -> None:
        chunks = list(model.bind_tools([report_shape], tool_choice="any").stream(ASKED))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        assert whole.tool_calls
        assert not whole.invalid_tool_calls
