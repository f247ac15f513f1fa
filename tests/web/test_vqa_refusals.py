"""What ``POST /v1/vqa`` refuses, and in which words."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mmserve.errors import CorruptPicture, PromptTooLong, RequestError, TooManyPictures
from tests.web.fakes import ROWS, FakeEngine, FakePrompts
from tests.web.test_vqa import PNG, QUESTION, ask, error_of
from web.schemas import VqaFields

pytestmark = pytest.mark.anyio


async def test_unknown_field_is_refused_with_what_is_accepted(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    message = error_of(await ask(client, {"temprature": "1"}), 400, "invalid_field", "temprature")
    assert 'did you mean "temperature"' in message
    for name in VqaFields.names():
        assert name in message
    assert not engine.requests


async def test_unknown_file_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/vqa", data=QUESTION, files={"picture": ("a.png", PNG)})
    assert "image (file)" in error_of(response, 400, "invalid_field", "picture")


async def test_picture_as_text_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/vqa", files={"image": (None, "photo.jpg"), "question": (None, "What?")})
    assert "@" in error_of(response, 400, "invalid_field", "image")


async def test_question_as_file_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/vqa", files={"image": ("a.png", PNG), "question": ("q.txt", "What?")})
    error_of(response, 400, "invalid_field", "question")


@pytest.mark.parametrize(
    "request_body",
    [
        {"files": {"question": (None, "What?")}},
        {"data": {"question": "What?"}},
        {"json": {"question": "What?"}},
        {"content": b""},
    ],
    ids=["multipart", "urlencoded", "json", "nothing"],
)
async def test_no_picture_says_what_to_do(client: httpx.AsyncClient, request_body: dict[str, Any]) -> None:
    response = await client.post("/v1/vqa", **request_body)
    assert "image" in error_of(response, 400, "invalid_field", "image")


async def test_empty_file_is_refused(client: httpx.AsyncClient) -> None:
    assert "empty" in error_of(await ask(client, pictures=(b"",)), 400, "unsupported_image", "image")


async def test_text_file_named_png_is_refused(client: httpx.AsyncClient) -> None:
    error_of(await ask(client, pictures=(b"hello",)), 400, "unsupported_image", "image")


@pytest.mark.parametrize(
    ("cls", "param"), [(CorruptPicture, "image"), (TooManyPictures, "image"), (PromptTooLong, "question")]
)
async def test_error_about_a_message_names_the_forms_field(
    client: httpx.AsyncClient, prompts: FakePrompts, cls: type[RequestError], param: str
) -> None:
    prompts.failure = cls("not this one", param="messages[0].content[0]")
    error_of(await ask(client), 400, cls.code, param)


async def test_error_of_the_engine_about_a_picture_names_the_field(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = lambda _: [CorruptPicture("the file ends early; send the whole file")]
    for stream in ("true", "false"):
        error_of(await ask(client, {"stream": stream}), 400, "corrupt_image", "image")


@pytest.mark.parametrize("question", ["", "  \n\t"])
async def test_empty_question_is_refused(client: httpx.AsyncClient, question: str) -> None:
    assert "empty" in error_of(await ask(client, {"question": question}), 400, "invalid_field", "question")


async def test_missing_question_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/vqa", files={"image": ("a.png", PNG)})
    assert "required" in error_of(response, 400, "invalid_field", "question")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "many"),
        ("max_tokens", "0"),
        ("max_tokens", "1.5"),
        ("max_tokens", "9" * 5000),
        ("temperature", "hot"),
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("top_p", "0"),
        ("top_p", "1.1"),
        ("min_p", "2"),
        ("repetition_penalty", "0"),
        ("seed", "x"),
        ("logprobs", "maybe"),
        ("stream", "maybe"),
        ("ignore_eos", "7"),
        ("stop", ""),
        ("stop_token_ids", "a"),
    ],
)
async def test_bad_values_name_their_field(client: httpx.AsyncClient, field: str, value: str) -> None:
    response = await ask(client, {field: value})
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert error["param"].split("[")[0] == field
    assert len(error["message"]) < 300


async def test_top_logprobs_out_of_range_or_alone(client: httpx.AsyncClient) -> None:
    error_of(await ask(client, {"logprobs": "true", "top_logprobs": "21"}), 400, "invalid_field", "top_logprobs")
    message = error_of(await ask(client, {"top_logprobs": "2"}), 400, "invalid_field", None)
    assert "logprobs" in message


async def test_single_field_given_twice_is_refused(client: httpx.AsyncClient) -> None:
    error_of(await ask(client, {"question": ["a", "b"]}), 400, "invalid_field", "question")


async def test_unknown_model_names_the_one_that_is_served(client: httpx.AsyncClient) -> None:
    message = error_of(await ask(client, {"model": "gpt"}), 404, "model_not_found", "model")
    assert "pocket-vl" in message
    assert "default" in message


@pytest.mark.parametrize("name", ["pocket-vl", "default"])
async def test_model_by_name_or_alias(client: httpx.AsyncClient, name: str) -> None:
    assert (await ask(client, {"model": name})).json()["model"] == "pocket-vl"


async def test_prompt_over_the_context_is_refused(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    message = error_of(await ask(client, {"question": "word " * 600}), 400, "context_length_exceeded", None)
    assert "604" in message
    assert "512" in message
    assert not engine.requests


async def test_prompt_and_max_tokens_over_the_context_are_refused(client: httpx.AsyncClient) -> None:
    room = 512 - ROWS - 3
    assert (await ask(client, {"max_tokens": str(room)})).status_code == 200
    message = error_of(await ask(client, {"max_tokens": str(room + 1)}), 400, "context_length_exceeded", "max_tokens")
    assert str(room) in message


async def test_not_ready_is_503(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.ready = False
    response = await ask(client)
    error_of(response, 503, "engine_unavailable", None)
    assert "retry-after" in response.headers
