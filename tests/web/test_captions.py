"""``POST /v1/captions``: a line for each picture as it is ready, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mmserve.errors import (
    CorruptPicture,
    EngineUnavailable,
    InvalidConstraint,
    MMServeError,
    PromptTooLong,
    QueueFull,
)
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Request, TextPart
from tests.web.fakes import FakeEngine, FakePrompts, Step, eventually, forever, png, say, silence
from tests.web.test_vqa import error_of
from web.app import create_app
from web.routes.captions import IN_FLIGHT, CaptionFields
from web.service import Service

pytestmark = pytest.mark.anyio

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
PNGS = {f"{colour}.png": png(colour=colour) for colour in COLOURS}


@pytest.fixture
async def client(service: Service) -> Any:
    """Room for 40 pictures, and for 3 at a time on the other routes."""
    import dataclasses

    roomy = dataclasses.replace(service, limits=dataclasses.replace(service.limits, max_captions=40))
    transport = httpx.ASGITransport(create_app(roomy), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def send(client: httpx.AsyncClient, pictures: Any, **fields: Any) -> httpx.Response:
    named = pictures.items() if isinstance(pictures, dict) else pictures
    return await client.post(
        "/v1/captions", data=fields, files=[("image", (name, data, "image/png")) for name, data in named]
    )


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.content.endswith(b"\n")
    return [json.loads(line) for line in response.content.decode().split("\n")[:-1]]


def question_of(prompts: FakePrompts, colour: str) -> str:
    """What was asked about the picture of this colour."""
    for messages in prompts.built:
        *_, user = messages
        picture, text = user.parts
        assert isinstance(picture, ImagePart)
        assert isinstance(text, TextPart)
        if picture.data == PNGS[f"{colour}.png"]:
            return text.text
    raise AssertionError(f"nothing was asked about {colour}")


async def test_a_line_for_each_picture(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    found = {line["index"]: line for line in lines(await send(client, PNGS))}
    assert sorted(found) == list(range(6))
    for i, name in enumerate(PNGS):
        line = found[i]
        assert line.pop("timing")["total"] >= 0
        usage = line.pop("usage")
        assert usage["prompt_tokens_details"]["image_tokens"] == 4
        assert line == {
            "index": i,
            "name": name,
            "caption": "It is a cat.",
            "finish_reason": "stop",
            "model": "pocket-vl",
            "image": {"width": 8, "height": 6, "tokens": 4, "resized": [16, 12]},
            "copy_of": None,
            "constraint": None,
            "parsed": None,
        }
    assert len({request.id for request in engine.requests}) == 6
    assert {question_of(prompts, colour) for colour in COLOURS} == {"Describe this picture in one sentence."}


async def test_lines_come_in_the_order_in_which_they_are_ready(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    def slow_first(request: Request) -> Iterator[Step]:
        if request.id.endswith("-0"):
            yield 0.1
        yield from say("x", request=request)

    engine.script = slow_first
    found = lines(await send(client, PNGS))
    assert [line["index"] for line in found] == [1, 2, 3, 4, 5, 0]


async def test_the_template_knows_the_file(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    named = [
        ("cats/tom.png", PNGS["red.png"]),
        ("C:\\x\\dogs\\rex.png", PNGS["blue.png"]),
        ("a.png", PNGS["white.png"]),
    ]
    await send(client, named, prompt='{name} in "{directory}{folder}" {"k": 1} \\{name\\}')
    assert question_of(prompts, "red") == 'tom in "catscats" {"k": 1} {name}'
    assert question_of(prompts, "white") == 'a in "" {"k": 1} {name}'


@pytest.mark.parametrize("place", ["tags", "nmae"])
async def test_a_place_that_nothing_is_known_for_is_refused(client: httpx.AsyncClient, place: str) -> None:
    message = error_of(await send(client, PNGS, prompt=f"See {{{place}}}"), 400, "invalid_field", "prompt")
    assert f"{{{place}}}" in message
    assert "{name}" in message


async def test_duplicates_are_captioned_once(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    red, blue = PNGS["red.png"], PNGS["blue.png"]
    named = [("a.png", red), ("b.png", blue), ("c.png", red), ("d.png", red)]
    found = {line["index"]: line for line in lines(await send(client, named))}
    assert len(engine.requests) == 2
    assert [found[i]["copy_of"] for i in range(4)] == [None, None, 0, 0]
    assert [found[i]["name"] for i in range(4)] == ["a.png", "b.png", "c.png", "d.png"]
    assert found[3]["caption"] == found[0]["caption"]
    assert found[3]["usage"] is None
    engine.requests.clear()
    lines(await send(client, named, prompt="{name}?"))  # another question is another thing to ask
    assert len(engine.requests) == 4


async def test_what_is_wrong_with_a_picture_is_its_line(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        if request.id.endswith("-4"):
            yield CorruptPicture("its data is damaged")
        elif request.id.endswith("-5"):
            yield PromptTooLong("too many tiles", param="messages[0]")
        else:
            yield from say("x", request=request)

    engine.script = script
    named = [
        *(("text.png", b"hello"), ("good.png", PNGS["red.png"]), ("empty.png", b""), ("huge.png", bytes(600_001))),
        *(("torn.png", PNGS["blue.png"]), ("long.png", PNGS["white.png"]), ("torn too.png", PNGS["blue.png"])),
    ]
    found = {line["index"]: line for line in lines(await send(client, named))}
    assert {i: line["error"]["code"] for i, line in found.items() if "error" in line} == {
        0: "unsupported_image",
        2: "unsupported_image",
        3: "image_too_large",
        4: "corrupt_image",
        5: "context_length_exceeded",
        6: "corrupt_image",
    }
    assert found[1]["caption"] == "x"
    assert set(found[0]) == {"index", "name", "error"}
    assert found[0]["error"]["param"] == "image"
    assert set(found[0]["error"]) == {"message", "type", "param", "code"}


async def test_nothing_but_bad_pictures(client: httpx.AsyncClient) -> None:
    found = lines(await send(client, [("a.png", b"x"), ("b.png", b"")]))
    assert Counter(line["error"]["code"] for line in found) == {"unsupported_image": 2}


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (QueueFull("full"), 429, "queue_full", None),
        (EngineUnavailable("gone"), 503, "engine_unavailable", None),
        (MMServeError("?"), 500, "internal_error", None),
        (InvalidConstraint("no such keyword"), 400, "invalid_constraint", "schema"),
    ],
)
async def test_what_meets_every_picture_is_a_status(
    client: httpx.AsyncClient, engine: FakeEngine, error: MMServeError, status: int, code: str, param: str | None
) -> None:
    """Also where a picture that is corrupt was found first."""

    def script(request: Request) -> Iterator[Step]:  # noqa: ARG001
        yield 0.02
        yield error

    engine.script = script
    response = await send(client, {"bad.png": b"bad", **PNGS}, schema="{}")
    error_of(response, status, code, param)
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert not engine.running


async def test_an_engine_that_fails_midway_is_said_in_the_other_lines(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def script(request: Request) -> Iterator[Step]:
        if request.id.endswith("-0"):
            yield from say("x", request=request)
            return
        yield 0.05
        yield EngineUnavailable("gone") if request.id.endswith("-1") else RuntimeError("secret")

    engine.script = script
    found = {line["index"]: line for line in lines(await send(client, list(PNGS.items())[:3]))}
    assert found[0]["caption"] == "x"
    assert found[1]["error"]["code"] == "engine_unavailable"
    assert found[2]["error"]["code"] == "internal_error"
    assert "secret" not in found[2]["error"]["message"]
    assert "secret" in caplog.text


async def test_a_bounded_number_is_in_flight(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    most = 0

    def script(request: Request) -> Iterator[Step]:
        nonlocal most
        most = max(most, len(engine.running))
        yield 0.002
        yield from say("x", request=request)

    engine.script = script
    named = [(f"{i}.png", png(8 + i)) for i in range(40)]
    assert len(lines(await send(client, named))) == 40
    assert most == IN_FLIGHT < 40


async def test_fields_reach_the_engine(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    engine.script = lambda request: say("a", " cat", request=request, logprobs=True)
    fields = {"system": "Be brief.", "max_tokens": "9", "temperature": "0.5", "stop": ["x", "y"], "cache_salt": "s"}
    words = {"must_include": ["cat", "dog"], "must_not_include": "seems", "start_with": "a", "max_words": "7"}
    [line] = lines(await send(client, list(PNGS.items())[:1], logprobs="true", **fields, **words))
    [request] = engine.requests
    assert request.sampling == SamplingParams(max_tokens=9, temperature=0.5, stop=("x", "y"), logprobs=0)
    assert request.cache_salt == "s" == prompts.salts[0]
    assert prompts.built[0][0].role == "system"
    assert vars_of(request.constraint) == (("cat", "dog"), ("seems",), "a", 7)
    assert line["constraint"]["valid"] is True
    assert len(line["logprobs"]["content"]) == 2


def vars_of(words: Any) -> tuple[Any, ...]:
    return words.must_include, words.must_not_include, words.start_with, words.max_words


async def test_a_schema_makes_json(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say('{"a":', "1}", request=request)
    [line] = lines(await send(client, list(PNGS.items())[:1], schema='{"type": "object"}', strict="true"))
    assert line["parsed"] == {"a": 1}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"question": "?"}, "question"),
        ({"stream": "true"}, "stream"),
        ({"prompt": "  "}, "prompt"),
        ({"max_words": "many"}, "max_words"),
        ({"temperature": "-1"}, "temperature"),
        ({"strict": "true"}, "strict"),
        ({"prompt": ["a", "b"]}, "prompt"),
    ],
)
async def test_fields_that_cannot_be_meant_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    error_of(await send(client, PNGS, **fields), 400, "invalid_field", param)
    assert not engine.requests


async def test_two_constraints_are_refused(client: httpx.AsyncClient) -> None:
    error_of(await send(client, PNGS, schema="{}", max_words="3"), 400, "invalid_constraint", "max_words")


async def test_limits(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    error_of(await send(client, [(f"{i}.png", png(i + 1)) for i in range(41)]), 400, "too_many_images", "image")
    error_of(await client.post("/v1/captions", data={"prompt": "x"}, files=[("prompt", (None, "x"))]), 400,
             "invalid_field", "prompt")  # fmt: skip
    error_of(await client.post("/v1/captions", files=[("prompt", (None, "x"))]), 400, "invalid_field", "image")
    error_of(await send(client, PNGS, model="other"), 404, "model_not_found", "model")
    assert not engine.requests
    engine.ready = False
    error_of(await send(client, PNGS), 503, "engine_unavailable", None)


async def test_it_is_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schema = document["paths"]["/v1/captions"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {"image", *CaptionFields.names()}
    assert schema["required"] == ["image"]


@pytest.mark.parametrize("script", [silence, forever])
def test_leaving_before_the_first_line_ends_all(live: str, engine: FakeEngine, script: Any) -> None:
    engine.script = script
    files = [("image", (name, data)) for name, data in list(PNGS.items())]
    with httpx.Client(base_url=live, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/captions", files=files)
    eventually(lambda: bool(engine.requests) and not engine.running)
    assert len(engine.aborted) == len(engine.requests) == 6


def test_leaving_midway_ends_the_rest(live: str, engine: FakeEngine) -> None:
    engine.script = lambda request: say("x", request=request) if request.id.endswith("-0") else forever(request)
    files = [("image", (name, data)) for name, data in PNGS.items()]
    with httpx.Client(base_url=live) as client, client.stream("POST", "/v1/captions", files=files) as response:
        received = response.iter_lines()
        assert json.loads(next(received))["index"] == 0
        assert len(engine.running) == 5
    eventually(lambda: not engine.running)
    assert len(engine.aborted) == 5


def test_bytes_of_a_picture_that_is_done_are_let_go(service: Service, engine: FakeEngine) -> None:
    """What is held is what is in flight and what waits, not what is done."""
    from web.routes.captions import _Batch, _Job, _Run

    fields = CaptionFields.from_form({})
    batch = _Batch("cap-1", "m", fields, SamplingParams(max_tokens=4), None, ["a", "b"])
    pictures = {0: PNGS["red.png"], 1: PNGS["blue.png"]}
    engine.script = lambda request: say("x", request=request)

    async def go() -> list[bytes]:
        run = _Run(service, batch, pictures)
        return [line async for line in run.lines([_Job(0, (), "?"), _Job(1, (), "?")], [])]

    assert len(asyncio.run(go())) == 2
    assert pictures == {}
