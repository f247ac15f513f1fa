from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from mmserve.errors import CorruptPicture, MMServeError, QueueFull
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, TextPart, TokenEvent
from tests.web.fakes import ROWS, FakeEngine, FakePrompts, png, say, sse, usage_of
from web.parts import DetailFields, FrameFields
from web.schemas import VqaFields

pytestmark = pytest.mark.anyio

PNG = png()
QUESTION = {"question": "What is this?"}
CONSTRAINTS = {
    *("schema", "strict", "json", "regex", "choices", "grammar", "xml", "structural_tag"),
    *("must_include", "must_not_include", "start_with", "max_words"),
}


async def ask(
    client: httpx.AsyncClient, data: dict[str, Any] | None = None, pictures: tuple[bytes, ...] = (PNG,)
) -> httpx.Response:
    files = [("image", (f"p{i}.png", picture, "image/png")) for i, picture in enumerate(pictures)]
    return await client.post("/v1/vqa", data=QUESTION | (data or {}), files=files)


def error_of(response: httpx.Response, status: int, code: str, param: str | None) -> str:
    """The message of an error that must have this status, code and param."""
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    return error["message"]


async def test_answer_in_json(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await ask(client)
    assert response.status_code == 200, response.text
    body = response.json()
    timing = body.pop("timing")
    assert 0 <= timing["time_to_first_token"] <= timing["total"] < 10
    assert abs(body.pop("created") - time.time()) < 60
    identity = body.pop("id")
    assert identity == f"vqa-{response.headers['x-request-id']}" == engine.requests[0].id
    assert body == {
        "object": "vqa.answer",
        "model": "pocket-vl",
        "answer": "It is a cat.",
        "finish_reason": "stop",
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
                "video_tokens": 0,
                "audio_tokens": 0,
            },
        },
        "images": [{"width": 8, "height": 6, "tokens": ROWS, "resized": [16, 12]}],
        "constraint": None,
        "parsed": None,
    }
    assert engine.requests[0].constraint is None
    assert not engine.aborted
    assert not engine.running


async def test_message_is_system_then_pictures_in_order_then_question(
    client: httpx.AsyncClient, prompts: FakePrompts
) -> None:
    red, blue = png(8, 6), png(4, 2, "blue")
    response = await ask(client, {"system": "Be brief."}, (red, blue))
    assert prompts.built == [
        [
            Message("system", (TextPart("Be brief."),)),
            Message("user", (ImagePart(red), ImagePart(blue), TextPart("What is this?"))),
        ]
    ]
    assert response.json()["images"] == [
        {"width": 8, "height": 6, "tokens": ROWS, "resized": [16, 12]},
        {"width": 4, "height": 2, "tokens": ROWS, "resized": [8, 4]},
    ]


async def test_question_from_a_browser_form_has_plain_line_ends(
    client: httpx.AsyncClient, prompts: FakePrompts
) -> None:
    await ask(client, {"question": "a\r\nb 🐈"})
    assert prompts.built[0][-1].parts[-1] == TextPart("a\nb 🐈")


async def test_default_sampling_is_the_services(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await ask(client)
    assert engine.requests[0].sampling == SamplingParams()


async def test_every_sampling_field_arrives(
    client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts
) -> None:
    sent: dict[str, Any] = {
        "max_tokens": "20",
        "min_tokens": "2",
        "temperature": "0.5",
        "top_p": "0.9",
        "top_k": "40",
        "min_p": "0.1",
        "repetition_penalty": "1.1",
        "presence_penalty": "0.2",
        "frequency_penalty": "-0.3",
        "seed": "7",
        "stop": ["\n", "END"],
        "stop_token_ids": ["3", "4"],
        "ignore_eos": "true",
        "skip_special_tokens": "false",
        "logprobs": "true",
        "top_logprobs": "3",
        "cache_salt": "tenant",
        "model": "default",
    }
    others = {"question", "system", "stream"} | CONSTRAINTS | {*DetailFields.model_fields, *FrameFields.model_fields}
    assert set(sent) | others == set(VqaFields.names())
    response = await ask(client, sent)
    assert response.status_code == 200, response.text
    assert engine.requests[0].sampling == SamplingParams(
        max_tokens=20,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        seed=7,
        stop=("\n", "END"),
        stop_token_ids=(3, 4),
        ignore_eos=True,
        skip_special_tokens=False,
        logprobs=3,
    )
    assert engine.requests[0].cache_salt == "tenant"
    assert prompts.salts == ["tenant"]


async def test_logprobs(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("a", "ü", request=request, logprobs=True)
    body = (await ask(client, {"logprobs": "true"})).json()
    assert engine.requests[0].sampling.logprobs == 0
    unknown = {"token": "�", "logprob": -9999.0, "bytes": None}
    assert body["logprobs"] == {
        "content": [
            {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]}, unknown]},
            {"token": "ü", "logprob": -0.5, "bytes": [195, 188], "top_logprobs": [
                {"token": "ü", "logprob": -0.5, "bytes": [195, 188]}, unknown]},
        ]
    }  # fmt: skip


async def test_no_logprobs_unless_asked(client: httpx.AsyncClient) -> None:
    assert "logprobs" not in (await ask(client)).json()
    assert "logprobs" not in (await ask(client, {"logprobs": "false"})).json()


async def test_finish_reason_length(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("a", request=request, finish="length")
    assert (await ask(client)).json()["finish_reason"] == "length"


async def test_stream(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await ask(client, {"stream": "true"})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *chunks, last, done = sse(response.content)
    assert done == "[DONE]"
    assert [chunk["delta"] for chunk in (*chunks, last)] == ["It", " is", " a cat."]
    assert {chunk["object"] for chunk in (*chunks, last)} == {"vqa.chunk"}
    assert {chunk["id"] for chunk in (*chunks, last)} == {engine.requests[0].id}
    assert all("finish_reason" not in chunk for chunk in chunks)
    assert last["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] == ROWS + 6
    assert set(last["timing"]) == {"time_to_first_token", "total"}
    assert last["images"] == [{"width": 8, "height": 6, "tokens": ROWS, "resized": [16, 12]}]
    assert not engine.aborted


async def test_stream_skips_empty_events_but_not_the_first(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    def script(request: Any) -> Any:
        yield TokenEvent(request.id, token_ids=(1,))
        yield TokenEvent(request.id, token_ids=(2,))
        yield TokenEvent(request.id, text="é", token_ids=(3,))
        yield TokenEvent(request.id, finish_reason="stop", usage=usage_of(request, 3))

    engine.script = script
    *chunks, _ = sse((await ask(client, {"stream": "1"})).content)
    assert [chunk["delta"] for chunk in chunks] == ["", "é", ""]


async def test_stream_with_logprobs(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("a", "b", request=request, logprobs=True)
    first, second, _ = sse((await ask(client, {"stream": "true", "logprobs": "true"})).content)
    assert [chunk["logprobs"]["content"][0]["token"] for chunk in (first, second)] == ["a", "b"]


async def test_error_before_the_first_token_has_a_status_even_when_streaming(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for stream in ("true", "false"):
        engine.script = lambda _: [QueueFull("4096 requests wait already; try again in a moment")]
        response = await ask(client, {"stream": stream})
        assert "try again" in error_of(response, 429, "queue_full", None)
        assert response.headers["retry-after"] == "1"
        engine.script = lambda _: [CorruptPicture("picture 1 is damaged; send it again", param="image")]
        error_of(await ask(client, {"stream": stream}), 400, "corrupt_image", "image")


async def test_error_in_the_middle_of_a_stream_is_its_last_frame(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: [TokenEvent(request.id, text="It"), MMServeError("the device failed")]
    response = await ask(client, {"stream": "true"})
    assert response.status_code == 200
    first, last = sse(response.content)
    assert first["delta"] == "It"
    assert last["error"]["message"] == "the device failed"


async def test_fault_in_the_middle_of_a_stream_is_logged_and_hidden(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.script = lambda request: [TokenEvent(request.id, text="It"), KeyError("secret")]
    response = await ask(client, {"stream": "true"})
    last = sse(response.content)[-1]
    assert last["error"]["code"] == "internal_error"
    assert response.headers["x-request-id"] in last["error"]["message"]
    assert "secret" not in response.text
    assert "secret" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


async def test_error_carried_by_an_event_is_raised(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: [TokenEvent(request.id, error=QueueFull("full"))]
    error_of(await ask(client), 429, "queue_full", None)


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_engine_that_stops_in_the_middle_is_an_error(
    client: httpx.AsyncClient, engine: FakeEngine, stream: str
) -> None:
    engine.script = lambda request: [TokenEvent(request.id, text="It")]
    response = await ask(client, {"stream": stream})
    error = response.json()["error"] if stream == "false" else sse(response.content)[-1]["error"]
    assert error["code"] == "engine_unavailable"


async def test_big_pictures_are_prepared_in_a_thread_and_small_ones_inline(
    client: httpx.AsyncClient, prompts: FakePrompts
) -> None:
    await ask(client)
    await ask(client, pictures=(PNG + bytes(300_000),))
    assert prompts.threads[0] == threading.get_ident()
    assert prompts.threads[1] != threading.get_ident()


async def test_description_of_the_form_is_whole(client: httpx.AsyncClient) -> None:
    description = (await client.get("/openapi.json")).json()
    schema = description["paths"]["/v1/vqa"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {"image", "video", "audio", *VqaFields.names()}
    assert schema["required"] == ["question"]  # of files, one at least, whichever the model takes
    for path in ("/v1/vqa", "/v1/chat/completions", "/v1/decisions"):
        assert "$ref" not in json.dumps(description["paths"][path]["post"]["requestBody"])
