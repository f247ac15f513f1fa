"""Pictures at an address: fetched by the program's process, within limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

import mmserve as sgl
from mmserve.errors import PictureTooLarge, UnsupportedPicture
from mmserve.lang import execution
from mmserve.lang.calls import Shown
from mmserve.lang.pictures import fetch_picture
from tests.lang.fakes import FakeBackend


async def fetch(handler: Callable[[httpx.Request], httpx.Response], **limits: float) -> bytes:
    transport = httpx.MockTransport(handler)
    return await fetch_picture("https://pictures.test/a.png", transport=transport, **limits)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_redirects_are_followed() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/a.png":
            return httpx.Response(302, headers={"location": "/b.png"})
        return httpx.Response(200, content=b"picture")

    assert await fetch(handler) == b"picture"


@pytest.mark.anyio
async def test_size_is_limited_whatever_the_server_says() -> None:
    with pytest.raises(PictureTooLarge, match="more than 10 bytes"):
        await fetch(lambda _: httpx.Response(200, content=b"x" * 11), max_bytes=10)
    assert len(await fetch(lambda _: httpx.Response(200, content=b"x" * 10), max_bytes=10)) == 10


@pytest.mark.anyio
async def test_refusals_loops_and_dead_addresses_are_told() -> None:
    with pytest.raises(UnsupportedPicture, match=r"a.png cannot be had: the server replied 404"):
        await fetch(lambda _: httpx.Response(404))
    with pytest.raises(UnsupportedPicture, match="redirect"):
        await fetch(lambda _: httpx.Response(302, headers={"location": "/a.png"}))

    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route", request=request)

    with pytest.raises(UnsupportedPicture, match="no route"):
        await fetch(dead)


@pytest.mark.anyio
async def test_time_is_limited() -> None:
    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
            await asyncio.sleep(10)
            raise AssertionError

    with pytest.raises(UnsupportedPicture, match=r"did not come within 0.05 s"):
        await fetch_picture("https://pictures.test/a.png", seconds=0.05, transport=Slow())


def test_a_program_fetches_beside_its_generations(fake: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    async def fetch(url: str) -> bytes:
        fetched.append(url)
        if "bad" in url:
            raise UnsupportedPicture(f"{url} cannot be had")
        return url.encode()

    monkeypatch.setattr(execution, "fetch_picture", fetch)

    @sgl.function
    def ask(s: sgl.ProgramState, url: str) -> None:
        s += sgl.user(sgl.image(url) + "What?")
        forks = s.fork(2)
        for i in range(2):
            forks[i] += sgl.assistant(sgl.gen(f"x{i}"))
        s += forks.join()

    state = ask.run("http://pictures.test/a")
    assert state["x0"] == "<x0/1>"
    assert fetched == ["http://pictures.test/a"]  # once for both branches
    shown = fake.calls[0].context.turns[0].parts[0]
    assert isinstance(shown, Shown)
    assert shown.data == b"http://pictures.test/a"
    with pytest.raises(UnsupportedPicture, match=r"bad cannot be had \[image in test_pictures.py"):
        ask.run("http://pictures.test/bad")["x1"]
