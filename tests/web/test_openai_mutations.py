"""Bodies that are nearly right: whatever one value in them is replaced by, there is an answer or a refusal."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmserve.config import Limits
from tests.web.fakes import FakeEngine, FakePrompts
from tests.web.test_chat import picture, text, user
from tests.web.test_responses import image
from tests.web.test_responses import user as item
from tests.web.test_tool_calls import TOOLS
from web.app import create_app
from web.service import ServedModel, Service

CALL = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user(text("What?"), picture()),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "Noon"},
        ],
        "tools": TOOLS,
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[1]]}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        "logit_bias": {"5": 1},
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 2,
        "logprobs": True,
        "top_logprobs": 1,
    },
    "/v1/completions": {
        "prompt": [[97, 98], [99]],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 0,
        "n": 2,
        "stop": ["x"],
        "logit_bias": {"5": 1},
        "best_of": 2,
    },
    "/v1/responses": {
        "input": [
            item("What?", image()),
            {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "a", "name": "clock", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "Noon"}]},
        ],
        "instructions": "Be brief.",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": False}},
        "tools": [{"type": "function", "name": "clock", "parameters": SCHEMA}],
        "tool_choice": {"type": "function", "name": "clock"},
        "include": ["message.output_text.logprobs"],
        "metadata": {"a": "b"},
        "reasoning": {"effort": None},
    },
}
VALUES = st.one_of(
    st.sampled_from([None, True, 0, -1, 10**30, 1.5, "", "auto", "x" * 300, [], {}, [[]], [None], {"type": "x"}]),
    st.text(max_size=5),
    st.recursive(st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a body there are values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


@pytest.fixture(scope="module")
def transport() -> httpx.ASGITransport:
    service = Service(ServedModel("pocket-vl"), FakePrompts(), FakeEngine(), 512, Limits(), judge=lambda *_: True)
    return httpx.ASGITransport(create_app(service), raise_app_exceptions=False)


async def send(transport: httpx.ASGITransport, route: str, body: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(route, json=body)


def test_the_bodies_are_right(transport: httpx.ASGITransport) -> None:
    for route, body in BODIES.items():
        response = asyncio.run(send(transport, route, body))
        assert response.status_code == 200, response.text


@given(st.sampled_from(sorted(BODIES)), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_body_gets_an_answer(transport: httpx.ASGITransport, route: str, data: st.DataObject) -> None:
    body = copy.deepcopy(BODIES[route])
    path = data.draw(st.sampled_from(list(places(body))))
    at: Any = body
    for key in path[:-1]:
        at = at[key]
    if data.draw(st.booleans(), label="remove") and isinstance(at, dict):
        del at[path[-1]]
    else:
        at[path[-1]] = data.draw(VALUES)
    response = asyncio.run(send(transport, route, body))
    assert response.status_code < 500, (path, at, response.text)
    if response.status_code != 200:
        assert len(response.json()["error"]["message"]) < 400
