"""A picture from a remote address: resolved once, the connection made to that address, everything bounded."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import certifi
import httpx

from mmserve.config import Limits
from mmserve.errors import MediaError, PictureNotFetched
from mmserve.sounds.header import probe as probe_sound
from mmserve.types import MediaKind
from vision.header import probe as probe_picture
from web.media import MEDIA
from web.remote.addresses import Address, checked_url, is_public, literal, port_of

Resolver: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""A host name and a port -> its IP addresses, the best first. Raises ``OSError``."""

_REDIRECTS = (301, 302, 303, 307, 308)
_PROBES: Mapping[MediaKind, Callable[[bytes, Limits], object]] = {"image": probe_picture, "audio": probe_sound}


@dataclass(frozen=True, slots=True)
class RemoteRules:
    """``domains`` are host names (``*.name``: all below it); empty allows all. ``seconds`` are for one picture from
    the look-up of its name to its last byte, redirects included. ``at_once`` is for the whole server."""

    domains: tuple[str, ...] = ()
    ports: frozenset[int] = frozenset({80, 443})
    seconds: float = 10.0
    redirects: int = 3
    at_once: int = 16


async def resolve(host: str, port: int) -> list[str]:
    """By the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(address[0]) for *_, address in found]


class RemotePictures:
    """Fetches pictures. No proxy, cookie, credential or certificate of this machine takes part; nothing is kept.

    ``resolver`` and ``public`` stand for the network in tests.
    """

    def __init__(
        self,
        rules: RemoteRules,
        limits: Limits,
        *,
        resolver: Resolver = resolve,
        public: Callable[[Address], bool] = is_public,
    ) -> None:
        self._rules = rules
        self._limits = limits
        self._resolve = resolver
        self._public = public
        self._slots = asyncio.Semaphore(rules.at_once)
        self._transport = httpx.AsyncHTTPTransport(
            verify=ssl.create_default_context(cafile=certifi.where()),
            trust_env=False,
            http2=False,
            retries=0,
            # A connection that was kept would be found by its IP address, and carry another host's request.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    @property
    def max_request_bytes(self) -> int:
        """Bytes that one request may have fetched: as many as it could have sent."""
        return self._limits.max_body_bytes

    async def fetch(self, address: str, where: str, kind: MediaKind = "image") -> bytes:
        """The picture, or medium of another ``kind``, at ``address``. Raises a ``MediaError`` of that kind, with
        ``where`` as the field at fault."""
        medium = MEDIA[kind]
        try:
            async with asyncio.timeout(self._rules.seconds), self._slots:
                data = await self._follow(address, kind)
            if kind in _PROBES:  # a video is read through, which takes its time: that is for the prompt to do
                _PROBES[kind](data, self._limits)
        except PictureNotFetched as error:
            told = error.message.replace("the picture's", f"the {medium.name}'s", 1)
            raise medium.not_fetched(told, param=where) from error
        except MediaError as error:
            raise type(error)(error.message, param=where) from error
        except TimeoutError:
            raise medium.not_fetched(
                f"the {medium.name}'s address took more than {self._rules.seconds:g} seconds", param=where
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise medium.not_fetched(
                f"the {medium.name}'s address could not be asked ({type(error).__name__})", param=where
            ) from None
        return data

    async def _follow(self, address: str, kind: MediaKind) -> bytes:
        for _ in range(self._rules.redirects + 1):
            url = checked_url(address, self._rules.domains, self._rules.ports)
            response = await self._ask(url, await self._locate(url), kind)
            try:
                if response.status_code not in _REDIRECTS:
                    return await self._read(response, kind)
                address = str(url.join(response.headers.get("location", "")))
            finally:
                await response.aclose()
        raise PictureNotFetched(f"the picture's address redirects more than {self._rules.redirects} times")

    async def _locate(self, url: httpx.URL) -> Address:
        """The one IP address to connect to. All that the name has must be public, so that no choice between them
        matters. What does not resolve and what leads inside are refused alike: names of inside stay unknown."""
        host = url.raw_host.decode("ascii")
        known = literal(host)
        try:
            found = [known] if known else [*map(ipaddress.ip_address, await self._resolve(host, port_of(url)))]
        except (OSError, UnicodeError, ValueError):
            found = []
        if not found or not all(map(self._public, found)):
            raise PictureNotFetched("the picture's host has no address on the public internet")
        return found[0]

    async def _ask(self, url: httpx.URL, address: Address, kind: MediaKind) -> httpx.Response:
        host = url.raw_host.decode("ascii")
        request = httpx.Request(
            "GET",
            url.copy_with(host=str(address)),
            headers={
                "Host": url.netloc.decode("ascii"),
                "Accept": f"{MEDIA[kind].types}*",
                "Accept-Encoding": "identity",
                "User-Agent": "mmserve",
                "Connection": "close",
            },
            # The certificate is checked against the name, though the connection is made to the address.
            extensions={"sni_hostname": host.removeprefix("[").removesuffix("]")},
        )
        return await self._transport.handle_async_request(request)

    async def _read(self, response: httpx.Response, kind: MediaKind) -> bytes:
        if response.status_code != 200:
            raise PictureNotFetched(f"the picture's address answered {response.status_code} and not 200")
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise PictureNotFetched("the picture's address sent it compressed, which was not asked for")
        medium = MEDIA[kind]
        most = medium.max_bytes(self._limits)
        declared = response.headers.get("content-length", "")
        data = bytearray()
        if not (declared.isdigit() and int(declared) > most):
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > most:
                    break
            else:
                return bytes(data)
        raise medium.too_large(f"the {medium.name} has more than {most} bytes; use a smaller one")
