"""How closely to look, as clients spell it: the field in every request that carries pictures."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

import mmserve as sgl
from mmserve.checkpoint import Checkpoint
from mmserve.client import AsyncClient
from mmserve.config import Limits
from mmserve.errors import InvalidField
from mmserve.lang.state import ProgramState, data_uri
from mmserve.prompt import PromptBuilder
from mmserve.types import Detail, ImagePart
from tests.client.harness import Both
from tests.lang.fakes import FakeBackend
from tests.web.fakes import FakeEngine, FakePrompts, png
from tests.web.test_vqa import ask, error_of
from web.app import create_app
from web.service import ServedModel, Service

pytestmark = pytest.mark.anyio

PNG = png()
URI = data_uri(PNG)
SAID: dict[str, Any] = {"detail": "low", "min_pixels": 784, "max_pixels": 7840}
WISH = Detail("low", 784, 7840)
BAD = [
    ({"detail": "medium"}, "detail"),
    ({"min_pixels": 0}, "min_pixels"),
    ({"max_pixels": -5}, "max_pixels"),
    ({"min_pixels": 9, "max_pixels": 8}, "min_pixels"),
]


def built(prompts: FakePrompts) -> list[Detail]:
    return [part.detail for message in prompts.built[-1] for part in message.parts if isinstance(part, ImagePart)]


async def chat(client: httpx.AsyncClient, *parts: dict[str, Any]) -> httpx.Response:
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})


def shown(url: Any = None, **beside: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": URI} | (url or {}), **beside}


async def test_a_form_says_it_for_all_its_pictures(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    response = await ask(client, SAID, (PNG, PNG))
    assert response.status_code == 200, response.text
    assert built(prompts) == [WISH, WISH]
    await ask(client)
    assert built(prompts) == [Detail()]


async def test_a_chat_says_it_picture_by_picture(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    beside = shown({"detail": "high"}, min_pixels=784, max_pixels=7840)
    response = await chat(client, shown(SAID), shown({"detail": "auto"}), beside)
    assert response.status_code == 200, response.text
    assert built(prompts) == [WISH, Detail(), Detail("high", 784, 7840)]


async def test_captions_and_decisions_take_it_too(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    response = await client.post("/v1/captions", data=SAID, files=[("image", ("a.png", PNG, "image/png"))])
    assert response.status_code == 200, response.text
    assert built(prompts) == [WISH]
    question = {"id": "q", "type": "yes_no", "question": "Is it red?"}
    body = {"images": [{"url": URI, **SAID}, URI], "questions": [question]}
    response = await client.post("/v1/decisions", json=body)
    assert built(prompts) == [WISH, Detail()]
    pieces = [{"type": "input_image", "image_url": URI, "detail": "low"}]
    theirs = {"type": "predicate", "name": "q", "instructions": "Is it red?"}
    body = {"input": [{"type": "message", "role": "user", "content": pieces}], "questions": [theirs]}
    response = await client.post("/v1/decisions", json=body)
    assert built(prompts) == [Detail("low")], response.text


@pytest.mark.parametrize(("wrong", "field"), BAD)
async def test_what_makes_no_sense_is_a_typed_400(client: httpx.AsyncClient, wrong: dict[str, Any], field: str) -> None:
    error_of(await ask(client, wrong), 400, "invalid_field", field)
    where = f"messages[0].content[1].image_url.{field}"
    error_of(await chat(client, shown(), shown(wrong)), 400, "invalid_field", where)
    response = await client.post("/v1/captions", data=wrong, files=[("image", ("a.png", PNG, "image/png"))])
    error_of(response, 400, "invalid_field", field)
    question = {"id": "q", "type": "yes_no", "question": "Is it red?"}
    response = await client.post("/v1/decisions", json={"images": [{"url": URI, **wrong}], "questions": [question]})
    error_of(response, 400, "invalid_field", f"images[0].{field}")


async def test_what_is_no_number_is_a_typed_400(client: httpx.AsyncClient) -> None:
    error_of(await ask(client, {"max_pixels": "many"}), 400, "invalid_field", "max_pixels")


@pytest.fixture
def real(checkpoint: Checkpoint) -> Service:
    """The real prompt builder, which knows the model's limits, before an engine that says always the same."""
    prompts = PromptBuilder(checkpoint, Limits())
    return Service(ServedModel("tiny"), prompts, FakeEngine(), max_model_len=2048)


async def test_the_models_own_limits_hold_and_name_the_field(real: Service) -> None:
    transport = httpx.ASGITransport(create_app(real), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        beyond = {"max_pixels": 10**9}
        assert "between 784 and 50,176" in error_of(await ask(http, beyond), 400, "invalid_field", "max_pixels")
        where = "messages[0].content[0].max_pixels"
        error_of(await chat(http, shown(beyond)), 400, "invalid_field", where)
        response = await http.post("/v1/captions", data=beyond, files=[("image", ("a.png", PNG, "image/png"))])
        error_of(response, 400, "invalid_field", "max_pixels")


async def test_the_count_of_tokens_in_the_reply_is_that_of_the_detail(real: Service) -> None:
    transport = httpx.ASGITransport(create_app(real), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        picture = png(280, 280)
        tokens = [
            (await ask(http, {"max_pixels": 784 * k} if k else None, (picture,))).json()["images"][0]["tokens"]
            for k in (None, 50, 4, 1)
        ]
        assert tokens == [64, 49, 4, 1]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_client_says_it(kind: str) -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(400, json={"error": {"message": "no", "code": "invalid_field", "param": "x"}})

    both = Both(kind, handler)
    wish: dict[str, Any] = {"detail": "low", "max_pixels": 7840}
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("ask", (PNG, "q")),
        ("chat", ([{"role": "user", "content": [PNG, "q"]}],)),
        ("decide", (PNG, "q")),
    ]
    for name, arguments in calls:
        with pytest.raises(InvalidField):
            both.call(name, *arguments, **wish)
    form, said, decided = seen
    assert b'name="detail"\r\n\r\nlow' in form
    assert b'name="max_pixels"\r\n\r\n7840' in form
    body = json.loads(said)
    assert body["messages"][0]["content"][0]["image_url"] == {"url": URI, **wish}
    assert body.keys() == {"messages"}
    assert json.loads(decided)["images"] == [{"url": URI, **wish}]


async def test_the_client_reaches_the_prompt(service: Service, prompts: FakePrompts) -> None:
    async with AsyncClient(transport=httpx.ASGITransport(create_app(service))) as client:
        await client.ask(PNG, "q", **SAID)
        assert built(prompts) == [WISH]
        await client.caption(PNG, detail="low")
        assert built(prompts) == [Detail("low")]


def test_programs_say_it_where_a_picture_is_given() -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.user(sgl.image(PNG, detail="low", max_pixels=7840) + sgl.image(PNG) + "What are these?")
        s += sgl.assistant(sgl.gen("answer"))

    backend = FakeBackend()
    state = program.run(backend=backend)
    assert state["answer"]
    [turn] = backend.calls[0].context.turns
    assert [getattr(part, "detail", None) for part in turn.parts[:2]] == [Detail("low", None, 7840), None]
    pictures = [part["image_url"] for part in state.messages()[0]["content"] if part["type"] == "image_url"]
    assert pictures == [{"url": URI, "detail": "low", "max_pixels": 7840}, {"url": URI}]
    with pytest.raises(InvalidField, match="detail must be auto, low or high"):
        sgl.image(PNG, detail="closest")
