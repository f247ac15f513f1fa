"""OpenAI's client against a running server: chat, parse, stream, tools, responses, files, batches; each with a
picture where it may."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

URL = os.environ["OUTSIDE_URL"]
PICTURE = (Path(__file__).parents[2] / "mmserve/assets/examples/red-circle.png").read_bytes()
URI = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
IMAGE: Any = {"type": "image_url", "image_url": {"url": URI}}
ASKED: list[Any] = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What color is the circle?"}]}]
INPUT: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": URI, "detail": "auto"},
            {"type": "input_text", "text": "What color is the circle?"},
        ],
    }
]


class Shape(BaseModel):
    color: Literal["red", "green", "blue"]
    count: int


def report_shape(color: Literal["red", "green", "blue"]) -> str:
    return color


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "report_shape",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"color": {"enum": ["red", "green", "blue"]}},
            "required": ["color"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def api() -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)


def test_models(api: openai.OpenAI) -> None:
    [model] = api.models.list().data
    assert api.models.retrieve(model.id).id == model.id


def test_chat_with_a_picture(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(model="default", messages=ASKED, temperature=0)
    assert answer.choices[0].message.content == "red"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None


def test_stream_with_usage(api: openai.OpenAI) -> None:
    chunks = list(
        api.chat.completions.create(
            model="default", messages=ASKED, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "red"
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


def test_stream_helper(api: openai.OpenAI) -> None:
    with api.chat.completions.stream(model="default", messages=ASKED, temperature=0) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == "red"
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_parse(api: openai.OpenAI) -> None:
    answer = api.chat.completions.parse(model="default", messages=ASKED, temperature=0, response_format=Shape)
    assert isinstance(answer.choices[0].message.parsed, Shape)


def test_parse_of_a_stream(api: openai.OpenAI) -> None:
    with api.chat.completions.stream(model="default", messages=ASKED, temperature=0, response_format=Shape) as stream:
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Shape)


def test_tools_and_their_results(api: openai.OpenAI) -> None:
    first = api.chat.completions.create(model="default", messages=ASKED, tools=[TOOL], tool_choice="required")
    assert first.choices[0].finish_reason == "tool_calls"
    message: Any = first.choices[0].message
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": report_shape(**json.loads(call.function.arguments))}
        for call in message.tool_calls or ()
        if call.type == "function"
    ]
    second = api.chat.completions.create(model="default", messages=[*ASKED, message, *results], tools=[TOOL])
    assert second.choices[0].message.role == "assistant"


def test_logprobs(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(model="default", messages=ASKED, temperature=0, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs
    assert entries is not None
    assert all(len(entry.top_logprobs) == 3 for entry in entries.content or ())


def test_completions(api: openai.OpenAI) -> None:
    answer = api.completions.create(model="default", prompt=["One,", "Two,"], max_tokens=4, n=2, seed=1)
    assert len(answer.choices) == 4
    stream = api.completions.create(model="default", prompt="One,", max_tokens=4, stream=True)
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")


def test_responses(api: openai.OpenAI) -> None:
    first = api.responses.create(model="default", input=INPUT, temperature=0)
    assert first.output_text == "red"
    assert api.responses.retrieve(first.id).output_text == "red"
    second = api.responses.create(model="default", input="And its shape?", previous_response_id=first.id)
    assert second.status == "completed"
    api.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(first.id)


def test_responses_stream(api: openai.OpenAI) -> None:
    with api.responses.stream(model="default", input=INPUT, temperature=0) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "red"
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


def test_responses_parse(api: openai.OpenAI) -> None:
    answer = api.responses.parse(model="default", input=INPUT, temperature=0, text_format=Shape)
    assert isinstance(answer.output_parsed, Shape)


def test_responses_tools(api: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **TOOL["function"]}
    answer = api.responses.create(model="default", input=INPUT, tools=[tool], tool_choice="required")
    assert answer.output
    for call in answer.output:
        assert call.type == "function_call"
        assert json.loads(call.arguments)["color"] in ("red", "green", "blue")


def test_files(api: openai.OpenAI) -> None:
    sent = api.files.create(file=("notes.txt", b"hello"), purpose="user_data")
    assert api.files.retrieve(sent.id) == sent
    assert sent.id in [file.id for file in api.files.list(purpose="user_data")]
    assert api.files.content(sent.id).read() == b"hello"
    assert api.files.delete(sent.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.content(sent.id)


def batch_of(api: openai.OpenAI, *, most_tokens: list[int]) -> str:
    """A new batch of the question with so many tokens for each answer; a negative number is refused."""
    bodies: list[dict[str, Any]] = [{"model": "default", "messages": ASKED, "max_tokens": most} for most in most_tokens]
    lines = [
        json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for i, body in enumerate(bodies)
    ]
    sent = api.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = api.batches.create(
        input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"by": "a test"}
    )
    assert made.id in [batch.id for batch in api.batches.list()]
    return made.id


def ended(api: openai.OpenAI, identity: str) -> openai.types.Batch:
    for _ in range(600):
        batch = api.batches.retrieve(identity)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        time.sleep(0.1)
    raise AssertionError(batch)


def answers(api: openai.OpenAI, file: str | None) -> dict[str, Any]:
    lines = [] if file is None else api.files.content(file).text.splitlines()
    return {line["custom_id"]: line["response"] for line in map(json.loads, lines)}


def test_a_batch(api: openai.OpenAI) -> None:
    batch = ended(api, batch_of(api, most_tokens=[8] * 20 + [-1]))
    assert (batch.status, batch.metadata) == ("completed", {"by": "a test"})
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (20, 1)
    good, bad = answers(api, batch.output_file_id), answers(api, batch.error_file_id)
    assert {response["body"]["choices"][0]["message"]["content"] for response in good.values()} == {"red"}
    assert (len(good), bad["r20"]["status_code"]) == (20, 400)


def test_a_batch_is_cancelled(api: openai.OpenAI) -> None:
    identity = batch_of(api, most_tokens=[8] * 2_000)
    assert api.batches.cancel(identity).status in ("cancelling", "cancelled")
    batch = ended(api, identity)
    assert batch.status == "cancelled"
    told = answers(api, batch.output_file_id).keys() | answers(api, batch.error_file_id).keys()
    assert len(told) in (0, 2_000)  # none where the file had not been checked yet


def test_errors_are_the_clients_own(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="default", messages=ASKED, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model="gpt-7", messages=ASKED)
    broken: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError):
        api.chat.completions.create(model="default", messages=[{"role": "user", "content": [broken]}])


def test_many_at_once() -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as api:
            create = api.chat.completions.create
            answers = await asyncio.gather(*(create(model="default", messages=ASKED, temperature=0) for _ in range(16)))
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == ["red"] * 16
