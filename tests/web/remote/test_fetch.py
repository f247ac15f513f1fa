"""Fetching a picture: the connection goes where the check went, and everything is bounded. On the loopback only."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mmserve.config import Limits
from mmserve.errors import CorruptPicture, PictureError, PictureNotFetched, PictureTooLarge, UnsupportedPicture
from tests.web.fakes import png
from tests.web.remote.site import Network, Site, listening, redirect, remote, response
from web.remote import RemotePictures, RemoteRules
from web.remote.fetch import resolve

pytestmark = pytest.mark.anyio

RED = png(8, 6, "red")
INSIDE = "127.0.0.2"
"""An address that leads inside: a site listens there, and must never be asked."""


@pytest.fixture
async def secret() -> Site:
    """What must not be reached, on the port of :func:`site`."""
    return Site({"/a.png": response(RED)}, INSIDE)


@pytest.fixture
async def site(secret: Site) -> AsyncIterator[Site]:
    made = Site({"/a.png": response(RED)})
    async with listening(made):
        secret.port = made.port
        async with listening(secret):
            yield made
        assert secret.connections == 0


@pytest.fixture
def network() -> Network:
    return Network(
        {
            "pictures.example": [["127.0.0.1"]],
            "inside.example": [[INSIDE]],
            "both.example": [["127.0.0.1", INSIDE]],
            "localhost": [["127.0.0.2", "::1"]],
            "mapped.example": [["::ffff:127.0.0.2"]],
            "nat64.example": [["64:ff9b::7f00:2"]],
            "6to4.example": [["2002:7f00:2::1"]],
            "zone.example": [["fe80::1%lo"]],
            "any.example": [["0.0.0.0"], ["::"]],
            "metadata.google.internal": [["169.254.169.254"]],
            "odd.example": [["0177.0.0.2"]],
        }
    )


async def refused(pictures: RemotePictures, address: str, error: type[PictureError] = PictureNotFetched) -> str:
    with pytest.raises(error) as caught:
        await pictures.fetch(address, "messages[0].content[0]")
    assert type(caught.value) is error
    assert caught.value.param == "messages[0].content[0]"
    return caught.value.message


async def test_a_picture_is_fetched_by_its_bytes_alone(network: Network, site: Site) -> None:
    site.answers = {"/x?y=%20z": response(RED, Content_Type="text/html", Content_Disposition="attachment")}
    address = f"http://pictures.example:{site.port}/x?y=%20z#fragment"
    assert await remote(network, site).fetch(address, "where") == RED
    assert site.asked == ["/x?y=%20z"]
    [head] = site.heads
    assert f"Host: pictures.example:{site.port}\r\n" in head
    assert not {"cookie", "authorization", "referer"} & {line.split(":")[0].lower() for line in head.splitlines()}
    assert "Accept-Encoding: identity" in head


async def test_a_body_in_chunks_is_a_body(network: Network, site: Site) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(RED[i : i + 7]), RED[i : i + 7]) for i in range(0, len(RED), 7))
    site.answers = {"/a": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"}
    assert await remote(network, site).fetch(f"http://pictures.example:{site.port}/a", "where") == RED


# -- where it leads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("inside.example", "inside.example.", "INSIDE.example", "localhost", "localhost.", "metadata.google.internal"),
        *("mapped.example", "nat64.example", "6to4.example", "zone.example", "any.example", "odd.example"),
        *(INSIDE, "[::ffff:127.0.0.2]", "[::ffff:7f00:2]", "[64:ff9b::7f00:2]", "[2002:7f00:2::1]", "0"),
        *("ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "ｌｏｃａｌｈｏｓｔ", "127。0。0。2", "inside。example"),
    ],
)
async def test_addresses_inside_are_never_asked(network: Network, site: Site, secret: Site, host: str) -> None:
    await refused(remote(network, site), f"http://{host}:{site.port}/a.png")
    assert secret.connections == site.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1"),
        *("0.0.0.0", "0.0.0.0.", "[::]", "127.1", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[fd00:ec2::254]"),
        *("user@127.0.0.1", "example.org@localhost", "example.org%20@localhost", "localhost%0d%0aX:%20y"),
    ],
)
async def test_with_the_real_rules_nothing_on_this_machine_is_asked(site: Site, host: str) -> None:
    pictures = RemotePictures(RemoteRules(ports=frozenset({site.port})), Limits())
    await refused(pictures, f"http://{host}:{site.port}/a.png")
    assert site.connections == 0


async def test_a_name_with_any_address_inside_is_refused(network: Network, site: Site) -> None:
    await refused(remote(network, site), f"http://both.example:{site.port}/a.png")
    assert site.connections == 0


async def test_names_that_do_not_exist_and_names_of_inside_are_refused_alike(network: Network, site: Site) -> None:
    pictures = remote(network, site)
    nowhere = await refused(pictures, f"http://nowhere.example:{site.port}/a.png")
    assert nowhere == await refused(pictures, f"http://inside.example:{site.port}/a.png")


async def test_a_name_that_changes_is_resolved_once_and_connected_to_as_it_was(network: Network, site: Site) -> None:
    """DNS rebinding: a public address for the check, one inside for the connection."""
    network.names["changing.example"] = [["127.0.0.1"], [INSIDE]]
    assert await remote(network, site).fetch(f"http://changing.example:{site.port}/a.png", "where") == RED
    assert network.asked == ["changing.example"]
    assert site.connections == 1


async def test_a_name_that_has_changed_is_judged_anew(network: Network, site: Site) -> None:
    network.names["changing.example"] = [["127.0.0.1"], [INSIDE]]
    pictures = remote(network, site)
    await pictures.fetch(f"http://changing.example:{site.port}/a.png", "where")
    await refused(pictures, f"http://changing.example:{site.port}/a.png")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target",
    [
        "http://inside.example:{port}/a.png",
        "http://127.0.0.2:{port}/a.png",
        "//127.0.0.2:{port}/a.png",
        "http://[::ffff:127.0.0.2]:{port}/a.png",
        "http://2130706434:{port}/a.png",
        "http://0x7f000002:{port}/a.png",
        "http://0177.0.0.2:{port}/a.png",
        "http://169.254.169.254:{port}/latest/meta-data/",
        "http://user@127.0.0.2:{port}/a.png",
        "http://pictures.example:{port}@127.0.0.2:{port}/a.png",
        "http://pictures.example:{port}\\@127.0.0.2:{port}/a.png",
        "http://pictures.example:22/",
        "http://nat64.example:{port}/a.png",
        "http://localhost.:{port}/a.png",
        "http://[::]:{port}/a.png",
        "//user:pass@pictures.example:{port}/a.png",
        "/a.png\tb",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "",
    ],
)
async def test_each_redirect_is_judged_like_the_first_address(
    network: Network, site: Site, target: str, status: int
) -> None:
    site.answers = {"/start": redirect(target.format(port=site.port), status)}
    await refused(remote(network, site), f"http://pictures.example:{site.port}/start")
    assert set(site.asked) == {"/start"}


async def test_redirects_to_where_may_be_asked_are_followed_and_few(network: Network, site: Site) -> None:
    host = f"http://pictures.example:{site.port}"
    network.names["other.example"] = [["127.0.0.1"]]
    site.answers = {
        "/3": redirect(f"http://other.example:{site.port}/2"),
        "/2": redirect("/1", 307),
        "/1": redirect("x/../a.png", 308),
        "/a.png": response(RED),
        "/loop": redirect("/loop"),
    }
    assert await remote(network, site).fetch(f"{host}/3", "where") == RED
    assert network.asked == ["pictures.example", "other.example", "other.example", "other.example"]
    assert "more than 2 times" in await refused(remote(network, site, redirects=2), f"{host}/3")
    site.asked.clear()
    await refused(remote(network, site), f"{host}/loop")
    assert site.asked == ["/loop"] * 4
    site.asked.clear()
    await refused(remote(network, site, redirects=0), f"{host}/loop")
    assert site.asked == ["/loop"]


async def test_the_domain_list_holds_for_redirects_too(network: Network, site: Site) -> None:
    network.names["other.example"] = [["127.0.0.1"]]
    site.answers = {"/go": redirect(f"http://other.example:{site.port}/a.png"), "/a.png": response(RED)}
    only = remote(network, site, domains=["pictures.example"])
    assert await only.fetch(f"http://pictures.example:{site.port}/a.png", "where") == RED
    assert "not allowed" in await refused(only, f"http://pictures.example:{site.port}/go")
    assert "not allowed" in await refused(only, f"http://other.example:{site.port}/a.png")
    assert site.asked == ["/a.png", "/go"]


async def test_no_proxy_and_no_credentials_of_this_machine(
    network: Network, site: Site, secret: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{secret.port}")
    (tmp_path / "netrc").write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert await remote(network, site).fetch(f"http://pictures.example:{site.port}/a.png", "where") == RED
    assert "authorization" not in site.heads[0].lower()
    assert secret.connections == 0


async def test_cookies_of_one_answer_are_not_sent_with_the_next(network: Network, site: Site) -> None:
    site.answers = {"/a.png": response(RED, Set_Cookie="a=b; Path=/")}
    pictures = remote(network, site)
    for _ in range(2):
        await pictures.fetch(f"http://pictures.example:{site.port}/a.png", "where")
    assert "a=b" not in site.heads[1]
    assert site.connections == 2  # no connection is used twice: it would be known by its address alone


async def test_the_certificate_is_checked_against_the_name(network: Network) -> None:
    """TLS is asked for the host's name (SNI), though the connection goes to the address."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_servername_callback(lambda _socket, name, _context: names.append(name))

    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0, ssl=context)
    site = Site({}, port=server.sockets[0].getsockname()[1])
    try:
        message = await refused(remote(network, site), f"https://pictures.example:{site.port}/a.png")
    finally:
        server.close()
        await server.wait_closed()
    assert "could not be asked" in message
    assert names == ["pictures.example"]


# -- how much and how long -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
async def test_more_bytes_than_a_picture_may_have(network: Network, site: Site, declared: bool) -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 999999999\r\n" if declared else b"") + b"\r\n")
        for _ in range(10_000):
            writer.write(b"x" * 10_000)
            await writer.drain()
            sent += 10_000

    site.answers = {"/a": endless}
    pictures = remote(network, site, limits=Limits(max_picture_bytes=50_000))
    assert "50000" in await refused(pictures, f"http://pictures.example:{site.port}/a", PictureTooLarge)
    assert sent < 20_000_000


async def test_exactly_as_many_bytes_as_a_picture_may_have(network: Network, site: Site) -> None:
    address = f"http://pictures.example:{site.port}/a.png"
    assert await remote(network, site, limits=Limits(max_picture_bytes=len(RED))).fetch(address, "where") == RED
    await refused(remote(network, site, limits=Limits(max_picture_bytes=len(RED) - 1)), address, PictureTooLarge)


@pytest.mark.parametrize("pace", ["silent", "header by header", "byte by byte"])
async def test_the_time_is_for_all_of_it(network: Network, site: Site, pace: str) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        if pace == "byte by byte":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for i in range(10_000):
            if pace != "silent":
                writer.write(b"x" if pace == "byte by byte" else (b"HTTP/1.1 200 OK\r\n" if i == 0 else b"X: y\r\n"))
                await writer.drain()
            await asyncio.sleep(0.01)

    site.answers = {"/a": slow}
    assert "0.2 seconds" in await refused(remote(network, site, seconds=0.2), f"http://pictures.example:{site.port}/a")


async def test_a_resolver_that_does_not_answer_is_within_the_time(network: Network, site: Site) -> None:
    async def never(_host: str, _port: int) -> list[str]:
        await asyncio.sleep(3600)
        return []

    rules = RemoteRules(ports=frozenset({site.port}), seconds=0.1)
    pictures = RemotePictures(rules, Limits(), resolver=never, public=network.public)
    assert "0.1 seconds" in await refused(pictures, f"http://pictures.example:{site.port}/a")


async def test_so_many_at_once_and_no_more(network: Network, site: Site) -> None:
    running, most = 0, 0

    async def counted(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        writer.write(response(RED))
        await writer.drain()

    site.answers = {"/a": counted}
    pictures = remote(network, site, at_once=3)
    address = f"http://pictures.example:{site.port}/a"
    assert await asyncio.gather(*(pictures.fetch(address, "where") for _ in range(12))) == [RED] * 12
    assert most <= 3


async def test_endless_headers_are_cut(network: Network, site: Site) -> None:
    site.answers = {"/a": b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"y" * 5_000_000}
    await refused(remote(network, site), f"http://pictures.example:{site.port}/a")


# -- what comes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", UnsupportedPicture),
        (b"<html>", UnsupportedPicture),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', UnsupportedPicture),
        (b"%PDF-1.7", UnsupportedPicture),
        (b"root:x:0:0:root:/root:/bin/bash\n", UnsupportedPicture),
        (b"\x89PNG\r\n\x1a\nxxxxxxxxxxxxxxxxxxxxxxxx", CorruptPicture),
        (png(1, 1)[:16] + b"\xff" * 8 + png(1, 1)[24:], PictureTooLarge),
    ],
)
async def test_what_is_no_picture_by_its_bytes(
    network: Network, site: Site, body: bytes, error: type[PictureError]
) -> None:
    site.answers = {"/a.png": response(body, Content_Type="image/png")}
    message = await refused(remote(network, site), f"http://pictures.example:{site.port}/a.png", error)
    assert "root" not in message  # nothing of what was there is told


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x"])
async def test_a_compressed_answer_is_refused_unopened(network: Network, site: Site, encoding: str) -> None:
    site.answers = {"/a": response(gzip.compress(RED), Content_Encoding=encoding)}
    assert "compressed" in await refused(remote(network, site), f"http://pictures.example:{site.port}/a")


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 404, 500])
async def test_other_statuses_are_named(network: Network, site: Site, status: int) -> None:
    site.answers = {"/a": response(b"" if status in (204, 304) else RED, status)}
    assert str(status) in await refused(remote(network, site), f"http://pictures.example:{site.port}/a")


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx"])
async def test_what_is_no_http_is_a_typed_error(network: Network, site: Site, answer: bytes) -> None:
    site.answers = {"/a": answer}
    assert "SSH" not in await refused(remote(network, site), f"http://pictures.example:{site.port}/a")


async def test_nobody_there_is_a_typed_error(network: Network, site: Site) -> None:
    closed = Site({}, port=1)
    assert "ConnectError" in await refused(remote(network, closed), "http://pictures.example:1/a")
    assert site.connections == 0


async def test_the_systems_resolver_gives_addresses() -> None:
    found = await resolve("localhost", 80)
    assert found
    assert set(found) <= {"127.0.0.1", "::1"}
