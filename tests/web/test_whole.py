"""The web layer over the real prompt builder and engine, with a tiny random model: what only the whole can show."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from tests.web.fakes import eventually, png, serve, sse
from tests.web.test_vqa import error_of
from web.service import ServedModel, Service

RED, BLUE = png(100, 80), png(64, 120, "blue")


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Iterator[LocalEngineClient]:
    client = LocalEngineClient(build_engine(checkpoint, EngineConfig(device="cpu", check_invariants=True)))
    yield client
    asyncio.run(client.close())


@pytest.fixture(scope="module")
def server(checkpoint: Checkpoint, engine: LocalEngineClient) -> Iterator[httpx.Client]:
    limits = Limits()
    service = Service(
        ServedModel("tiny"), PromptBuilder(checkpoint, limits), engine, checkpoint.max_model_len, limits=limits
    )
    with serve(service) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def ask(server: httpx.Client, *pictures: bytes, name: str = "a.png", **fields: str) -> httpx.Response:
    files = [("image", (name, picture, "image/png")) for picture in pictures]
    data = {"question": "What is this?", "max_tokens": "6", "ignore_eos": "true"} | fields
    return server.post("/v1/vqa", data=data, files=files)


def chat_body(*pictures: bytes, **fields: Any) -> dict[str, Any]:
    urls = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    question = {"type": "text", "text": "What is this?"}
    return {"messages": [{"role": "user", "content": [*content, question]}], "max_tokens": 6} | fields


def counts(engine: LocalEngineClient) -> Mapping[str, float]:
    return dict(engine.stats())


def test_a_known_picture_is_not_looked_at_again_whatever_it_is_called(
    server: httpx.Client, engine: LocalEngineClient
) -> None:
    first = ask(server, RED, cache_salt="known").json()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    [image] = first["images"]
    assert (image["width"], image["height"]) == (100, 80)
    assert image["tokens"] == image["resized"][0] * image["resized"][1] // 28**2
    before = counts(engine)
    again = ask(server, RED, name="other.png", cache_salt="known").json()
    as_uri = server.post("/v1/chat/completions", json=chat_body(RED, ignore_eos=True, cache_salt="known")).json()
    assert again["images"] == as_uri["images"] == [image]
    assert again["answer"] == first["answer"] == as_uri["choices"][0]["message"]["content"]
    for usage in (again["usage"], as_uri["usage"]):
        details = usage["prompt_tokens_details"]
        assert details["cached_tokens"] >= details["image_tokens"] > 0
        assert details["cached_images"] == 1
        assert details["cached_system_tokens"] == details["system_tokens"] > 0
    after = counts(engine)
    assert after["pictures_decoded"] == before["pictures_decoded"]
    assert after["pictures_encoded"] == before["pictures_encoded"]


def test_a_system_prompt_is_known_by_its_words_and_before_any_picture(server: httpx.Client) -> None:
    fresh = ask(server, RED, system="Answer in one word.", cache_salt="told").json()["usage"]
    other_picture = ask(server, BLUE, system="Answer in one word.", cache_salt="told").json()["usage"]
    other_words = ask(server, RED, system="Answer in two words.", cache_salt="told").json()["usage"]
    told = [usage["prompt_tokens_details"] for usage in (fresh, other_picture, other_words)]
    assert [each["cached_images"] for each in told] == [0, 0, 1]
    assert told[0]["cached_system_tokens"] == 0
    assert told[1]["cached_system_tokens"] == told[1]["system_tokens"] == told[0]["system_tokens"] > 0
    assert told[2]["cached_system_tokens"] < told[2]["system_tokens"]


def test_stream_and_whole_answer_are_the_same_text(server: httpx.Client) -> None:
    whole = ask(server, RED, BLUE, max_tokens="20").json()
    *chunks, done = sse(ask(server, RED, BLUE, max_tokens="20", stream="true").content)
    assert done == "[DONE]"
    assert "".join(chunk["delta"] for chunk in chunks) == whole["answer"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"] == "length"
    body = chat_body(RED, BLUE, stream=True, max_tokens=20, ignore_eos=True)
    *chunks, _ = sse(server.post("/v1/chat/completions", json=body).content)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == whole["answer"]


@pytest.mark.parametrize("stream", ["true", "false"])
def test_bad_requests_are_refused_in_words(server: httpx.Client, stream: str) -> None:
    broken = png(200, 200, "green")
    error_of(ask(server, b"hello", stream=stream), 400, "unsupported_image", "image")
    error_of(ask(server, broken[: len(broken) // 2], stream=stream), 400, "corrupt_image", "image")
    error_of(ask(server, RED, question="word " * 20_000, stream=stream), 400, "context_length_exceeded", "question")
    error_of(ask(server, RED, max_tokens="99999", stream=stream), 400, "context_length_exceeded", "max_tokens")
    assert ask(server, RED).status_code == 200


def test_clients_that_leave_free_their_slots(server: httpx.Client, engine: LocalEngineClient) -> None:
    aborted = counts(engine)["requests_aborted"]
    endless = chat_body(RED, ignore_eos=True, stream=True, max_tokens=None, n=2)
    with httpx.Client(base_url=server.base_url) as leaver:
        with leaver.stream("POST", "/v1/chat/completions", json=endless) as response:
            next(response.iter_bytes())
            eventually(lambda: counts(engine)["requests_running"] >= 1)  # told of once a step
            assert ask(server, BLUE).status_code == 200
        eventually(lambda: counts(engine)["requests_aborted"] == aborted + 2)
    eventually(lambda: counts(engine)["requests_running"] == 0)
    left = counts(engine)
    assert left["slots_free"] + left["slots_cached"] == left["slots_total"]
