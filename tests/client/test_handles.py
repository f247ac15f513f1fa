"""``Client.image``: a picture is sent once, whatever asks about it, and again only where the server has lost it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmserve import AsyncClient, Client
from mmserve.client import PictureFile, PictureHandle
from mmserve.client.kept import Kept
from mmserve.config import Limits
from mmserve.errors import CorruptPicture, EngineUnavailable, PictureNotKept, UnsupportedPicture
from mmserve.types import ImagePart, Message, TextPart
from tests.client.harness import CHAT, ENDING, VQA, event_stream, fields, form_parts, sse
from tests.web.fakes import FakeEngine, FakePrompts, png, serve
from web.service import ServedModel, Service

PNG = png(8, 6)
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def session(kind: str, handler: Handler, *steps: tuple[Any, ...], picture: Any = PNG) -> list[Any]:
    """Makes a handle and calls ``(method, *arguments)`` in turn; a ``"*"`` among the arguments is the handle."""
    transport = httpx.MockTransport(handler)

    def filled(arguments: tuple[Any, ...], handle: PictureHandle) -> list[Any]:
        return [fill(argument, handle) for argument in arguments]

    def fill(value: Any, handle: PictureHandle) -> Any:
        if isinstance(value, list):
            return [fill(each, handle) for each in value]
        if isinstance(value, dict):
            return {name: fill(each, handle) for name, each in value.items()}
        return handle if isinstance(value, str) and value == "*" else value

    if kind == "sync":
        with Client(transport=transport, retries=0) as client:
            handle = client.image(picture)
            found = []
            for method, *arguments in steps:
                result = getattr(client, method)(*filled(tuple(arguments), handle))
                found.append("".join(result) if method.startswith("stream") else result)
            return found

    async def run() -> list[Any]:
        async with AsyncClient(transport=transport, retries=0) as client:
            handle = await client.image(picture)
            found = []
            for method, *arguments in steps:
                result = getattr(client, method)(*filled(tuple(arguments), handle))
                streamed = method.startswith("stream")
                found.append("".join([piece async for piece in result]) if streamed else await result)
            return found

    return asyncio.run(run())


class Keeper:
    """A server that keeps pictures, and forgets them after ``lives`` uses each."""

    def __init__(self, lives: int = 10**9) -> None:
        self.uploads: list[bytes] = []
        self.named: list[str] = []
        self._lives = lives
        self._left: dict[str, int] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/pictures":
            [part] = form_parts(request)
            self.uploads.append(part.value)
            identity = f"pic-{len(self.uploads)}"
            self._left[identity] = self._lives
            return httpx.Response(200, json={"object": "list", "data": [{"id": identity}]})
        named = self._name(request)
        self.named.append(named)
        if self._left.get(named, 0) == 0:
            return httpx.Response(404, json={"error": PictureNotKept("gone").to_wire()})
        self._left[named] -= 1
        if request.url.path == "/v1/chat/completions":
            return httpx.Response(200, json=CHAT)
        if request.url.path == "/v1/decisions":
            answer = {"answer": "yes", "probabilities": {"yes": 0.9, "no": 0.1}, "logprobs": {}, "label_mass": 1.0}
            body = {"answers": {"answer": answer}, "usage": VQA["usage"], "model": "m"}
            return httpx.Response(200, json=body)
        if fields(request).get("stream"):
            return event_stream([sse({"delta": "A cat."}, {"delta": "", **ENDING}, "[DONE]")])
        return httpx.Response(200, json=VQA)

    def _name(self, request: httpx.Request) -> str:
        if request.url.path == "/v1/vqa":
            return fields(request)["image"][0]
        text = request.read().decode()
        return text[text.index("pic-") :].split('"')[0]


def test_sent_once_and_named_by_whatever_asks(kind: str) -> None:
    server = Keeper()
    message = {"role": "user", "content": ["*", "What?"]}
    said = session(
        kind,
        server,
        ("ask", "*", "What?"),
        ("ask", ["*"], "What?"),
        ("caption", "*"),
        ("chat", [message]),
        ("stream", "*", "What?"),
    )
    assert [str(answer) for answer in said] == ["A cat."] * 5
    assert server.uploads == [PNG]
    assert server.named == ["pic-1"] * 5


def test_sent_again_where_the_server_has_lost_it(kind: str) -> None:
    server = Keeper(lives=2)
    session(kind, server, *[("ask", "*", "What?")] * 5)
    assert server.uploads == [PNG] * 3
    assert server.named == ["pic-1"] * 3 + ["pic-2"] * 3 + ["pic-3"]


def test_a_server_that_loses_it_at_once_is_an_error(kind: str) -> None:
    server = Keeper(lives=0)
    with pytest.raises(PictureNotKept):
        session(kind, server, ("ask", "*", "What?"))
    assert len(server.uploads) == 2


@pytest.mark.parametrize("refusal", [404, 405, 413, 500, "odd"])
def test_a_server_that_keeps_nothing_gets_the_bytes(kind: str, refusal: Any) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        if request.url.path == "/v1/pictures":
            return httpx.Response(200, json={"data": [{}]}) if refusal == "odd" else httpx.Response(refusal)
        assert next(part.value for part in form_parts(request) if part.name == "image") == PNG
        return httpx.Response(200, json=VQA)

    session(kind, handler, ("ask", "*", "What?"), ("ask", "*", "And?"))
    assert seen == ["/v1/pictures", "/v1/vqa", "/v1/vqa"]


def test_a_server_that_is_gone_is_said_at_once(kind: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(EngineUnavailable, match="cannot connect"):
        session(kind, handler, ("ask", "*", "What?"))


def test_other_errors_are_not_tried_again(kind: str) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        if request.url.path == "/v1/pictures":
            return httpx.Response(200, json={"data": [{"id": "pic-1"}]})
        return httpx.Response(400, json={"error": CorruptPicture("damaged").to_wire()})

    with pytest.raises(CorruptPicture):
        session(kind, handler, ("ask", "*", "What?"))
    assert seen == ["/v1/pictures", "/v1/vqa"]


def test_a_handle_of_a_handle_is_the_same_and_files_are_read_when_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with Client(transport=httpx.MockTransport(Keeper())) as client:
        handle = client.image(path)
        path.unlink()
        assert (handle.name, handle.data) == ("a.png", PNG)
        assert client.image(handle) is handle
        with pytest.raises(FileNotFoundError):
            client.image(path)


def test_what_is_kept_is_known_by_the_handle_and_forgotten_with_it() -> None:
    kept = Kept()
    one, equal, other = PictureHandle("a", b"same"), PictureHandle("a", b"same"), PictureHandle("a", b"other")
    kept.note(one, "pic-1")
    assert kept.unknown([one, other, equal, other]) == [other]
    known = [kept.reference(each) for each in (one, equal, other, PictureFile("a", b"same"))]
    assert known == ["pic-1", "pic-1", None, None]
    kept.note(other, None)
    assert kept.unknown([one, other]) == []
    kept.forget([equal])
    assert kept.unknown([one, other]) == [one]
    del other
    gc.collect()
    assert len(kept._ids) == 0


# -- with the server itself -------------------------------------------------------------------------------------


class World:
    def __init__(self, **limits: Any) -> None:
        self.engine = FakeEngine()
        self.prompts = FakePrompts()
        self.service = Service(ServedModel("pocket-vl"), self.prompts, self.engine, 512, limits=Limits(**limits))


@pytest.fixture
def world() -> World:
    return World()


def test_against_the_server(world: World) -> None:
    with serve(world.service) as url, Client(url) as client:
        picture = client.image(PNG)
        client.ask(picture, "What?")
        client.chat([{"role": "user", "content": [picture, "What?"]}])
        "".join(client.stream([picture, PNG], "Same?"))
        [name] = world.service.shelf._kept
        world.service.shelf.drop(name)
        client.ask(picture, "What?")
    asked = [message.parts for built in world.prompts.built for message in built if isinstance(message, Message)]
    alone = (ImagePart(PNG), TextPart("What?"))
    assert asked == [alone, alone, (ImagePart(PNG), ImagePart(PNG), TextPart("Same?")), alone]
    assert len(world.service.shelf._kept) == 1


def test_a_server_without_a_shelf_and_a_file_that_is_no_picture() -> None:
    world = World(max_kept_bytes=0)
    with serve(world.service) as url, Client(url) as client:
        assert client.ask(client.image(PNG), "What?").text == "It is a cat."
        with pytest.raises(UnsupportedPicture):
            client.ask(client.image(b"no picture"), "What?")
    assert world.service.shelf.size == 0
