"""A captioner with no HTTP between says what one over HTTP says."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from mmserve import Answer, AsyncClient
from mmserve.caption import ClientCaptioner
from mmserve.checkpoint import Checkpoint
from mmserve.cli_direct import DirectCaptioner
from mmserve.client import AnswerNotValid
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.errors import CorruptPicture, InvalidConstraint, InvalidField, MMServeError, UnsupportedPicture
from mmserve.prompt import PromptBuilder
from tests.engine.pictures import png
from web.app import create_app
from web.service import ServedModel, Service


@pytest.fixture(scope="module")
def service(checkpoint: Checkpoint) -> Iterator[Service]:
    engine = LocalEngineClient(build_engine(checkpoint, EngineConfig(device="cpu", kv_slots=2048)))
    limits = Limits()
    prompts = PromptBuilder(checkpoint, limits)
    yield Service(ServedModel("tiny"), prompts, engine, checkpoint.max_model_len, limits=limits)
    asyncio.run(engine.close())


Ask = Callable[[bytes, dict[str, Any]], Answer]


def straight(service: Service) -> Ask:
    def ask(data: bytes, options: Any) -> Answer:
        return asyncio.run(DirectCaptioner(service, system="Be brief.", options=options).ask(data, "What?"))

    return ask


def over_http(service: Service) -> Ask:
    async def go(data: bytes, options: Any) -> Answer:
        async with AsyncClient(transport=httpx.ASGITransport(create_app(service))) as client:
            return await ClientCaptioner(client, system="Be brief.", options=options).ask(data, "What?")

    return lambda data, options: asyncio.run(go(data, options))


def without_what_differs(answer: Answer) -> Answer:
    return dataclasses.replace(answer, id="", created=0, timing=None, pictures=())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "seed": 3, "stop": ["x"]},
        {"start_with": "It is", "must_not_include": "seems", "max_words": 5},
        {"schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}},
        {"choices": ["red", "blue"]},
    ],
)
def test_the_same_answers(service: Service, options: dict[str, Any]) -> None:
    given = {"max_tokens": 24, **options}
    first = straight(service)(png("red"), {**given, "cache_salt": "1"})
    second = over_http(service)(png("red"), {**given, "cache_salt": "2"})
    assert without_what_differs(first) == without_what_differs(second)
    assert first.usage.image_tokens > 0
    assert (first.constraint is not None) == bool(options.keys() & {"schema", "choices", "max_words"})


@pytest.mark.parametrize(
    ("data", "options", "error"),
    [
        (b"text", {}, UnsupportedPicture),
        (png("noise")[:300], {}, CorruptPicture),
        (png("red"), {"max_tokens": 0}, InvalidField),
        (png("red"), {"schema": {"type": 3}}, InvalidConstraint),
        (png("red"), {"schema": {"type": "object", "required": ["a"]}, "max_tokens": 1}, MMServeError),
    ],
)
def test_the_same_errors(service: Service, data: bytes, options: dict[str, Any], error: type[MMServeError]) -> None:
    found = []
    for ask in (straight(service), over_http(service)):
        with pytest.raises(error) as caught:
            ask(data, {"max_tokens": 8, **options})
        found.append((type(caught.value), caught.value.message))
    assert found[0] == found[1]
    assert found[0][0] is not AnswerNotValid
