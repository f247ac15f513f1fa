"""`mmserve serve` in a process of its own, with the embedded model, asked as users ask it."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import mmserve
from bench.server import served
from mmserve import AsyncClient, Client
from mmserve.errors import CorruptPicture, InvalidField, ModelNotFound, PromptTooLong, RequestError, UnsupportedPicture
from tests.engine.pictures import png

EXAMPLES = Path(mmserve.__file__).parent / "assets" / "examples"
CIRCLE, RECTANGLE = EXAMPLES / "red-circle.png", EXAMPLES / "blue-rectangle.png"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served("--device", "cpu") as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def chat(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def metric(url: str, name: str) -> float:
    """Of all replicas, where there are several (``tests.deploy.through_serve``)."""
    found = re.findall(rf"^mmserve:{name}(?:\{{.*\}})? (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    assert found
    return sum(map(float, found))


def data_uri(path: Path) -> dict[str, Any]:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def test_the_answer_is_right_streamed_or_not(client: Client) -> None:
    assert str(client.ask(CIRCLE, "What color is the circle?", temperature=0)) == "red"
    with client.stream(RECTANGLE, "What is this?", temperature=0) as stream:
        assert "".join(stream) == "a blue rectangle"
        assert stream.answer.finish_reason == "stop"


def test_a_second_question_computes_only_what_is_new(client: Client, url: str, tmp_path: Path) -> None:
    """The picture is met under its name, under another, and as a data URI: decoded and encoded once."""
    system, picture = "You are a helpful assistant.", EXAMPLES / "teal-circle.png"
    before = [metric(url, name) for name in ("pictures_decoded_total", "encoder_runs_total")]
    first = client.ask(picture, "What is this?", system=system)
    second = client.ask(picture, "is there a red shape?", system=system)
    other_name = tmp_path / "holiday.jpg"
    other_name.write_bytes(picture.read_bytes())
    third = client.ask(other_name, "what color is the shape?", system=system)
    fourth = client.chat([{"role": "user", "content": [picture, "Describe the picture."]}])
    after = [metric(url, name) for name in ("pictures_decoded_total", "encoder_runs_total")]
    assert first.usage.cached_pictures == 0
    for answer in (second, third, fourth):
        # Everything up to the picture's end: the system prompt's tokens and the picture's.
        assert answer.usage.cached_tokens > answer.usage.image_tokens == 16
        assert answer.usage.cached_pictures == 1
    assert [str(a) for a in (second, third, fourth)] == ["no", "teal", "a teal circle"]
    assert after == [count + 1 for count in before]


@pytest.mark.parametrize("streamed", [False, True])
def test_openais_client_chats_with_pictures_over_several_turns(chat: openai.OpenAI, streamed: bool) -> None:
    messages: list[Any] = []

    def say(*content: dict[str, Any]) -> str:
        messages.append({"role": "user", "content": list(content)})
        if streamed:
            chunks = chat.chat.completions.create(model="default", messages=messages, temperature=0, stream=True)
            reply = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            answer = chat.chat.completions.create(model="pocket-vl", messages=messages, temperature=0)
            reply = answer.choices[0].message.content or ""
        messages.append({"role": "assistant", "content": reply})
        return reply

    assert say(data_uri(CIRCLE), data_uri(RECTANGLE), text("which picture has the circle?")) == "first"
    assert say(text("which picture has the rectangle?")) == "second"
    assert [model.id for model in chat.models.list()] == ["pocket-vl"]


def test_openais_usage_says_what_was_cached(chat: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": [data_uri(CIRCLE), text("is there a circle?")]}]
    chunks = [
        list(
            chat.chat.completions.create(
                model="default", messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        for _ in range(2)
    ]
    usage = chunks[1][-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= usage.prompt_tokens - 1


TEXT, CUT = b"this is not a picture", png("noise", (90, 90))[:4000]


@pytest.mark.parametrize(
    ("pictures", "question", "options", "error", "hint"),
    [
        ([TEXT], "What?", {}, UnsupportedPicture, "JPEG"),
        ([CUT], "What?", {}, CorruptPicture, "undamaged"),
        ([], "What?", {}, InvalidField, "picture"),
        ([png("red")], "  ", {}, InvalidField, "question"),
        ([png("red")], "What?", {"model": "gpt-4"}, ModelNotFound, "pocket-vl"),
        ([png("red")], "word " * 9000, {}, PromptTooLong, "8,192"),
        ([png("red")], "What?", {"max_tokens": 9000}, PromptTooLong, "max_tokens"),
        ([png("red")], "What?", {"temperature": -1}, InvalidField, "temperature"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words_and_harms_nobody(
    client: Client, pictures: list[bytes], question: str, options: dict[str, Any], error: type[RequestError], hint: str
) -> None:
    with client.stream(CIRCLE, "Describe the picture.", min_tokens=60, max_tokens=60) as stream:
        next(stream)
        with pytest.raises(error, match=hint):
            client.ask(pictures, question, **options)
        for _ in stream:
            pass
        assert stream.answer.usage.completion_tokens == 60


def test_an_unknown_field_is_refused_here_and_ignored_there(url: str) -> None:
    refused = httpx.post(
        f"{url}/v1/vqa", files={"image": CIRCLE.read_bytes()}, data={"question": "What?", "tempreature": "0"}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tempreature"
    body = {"model": "default", "messages": [{"role": "user", "content": "Hello"}], "tempreature": 0, "max_tokens": 3}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200


def test_a_client_that_leaves_frees_its_slots(client: Client, url: str) -> None:
    with client.stream(CIRCLE, "What?", ignore_eos=True) as stream:
        next(stream)
        assert metric(url, "num_requests_running") == 1
    wait_until(lambda: metric(url, "num_requests_running") == 0)
    assert metric(url, "num_used_tokens") == 0


@pytest.mark.anyio
async def test_many_at_once_get_each_its_own_answer(url: str) -> None:
    asked = [
        (EXAMPLES / f"{name}.png", f"a {name.replace('-', ' ')}") for name in ("red-circle", "black-triangle")
    ] * 16
    async with AsyncClient(url) as client:
        answers = await asyncio.gather(*(client.ask(path, "What is this?", temperature=0) for path, _ in asked))
    assert [str(answer) for answer in answers] == [right for _, right in asked]
