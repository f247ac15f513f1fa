"""Web sites on the loopback, and a network in which they have names and addresses."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mmserve.config import Limits
from web.remote import RemotePictures, RemoteRules
from web.remote.addresses import Address, is_public

Answer = bytes | Callable[[asyncio.StreamWriter], object]


@dataclass
class Site:
    """Answers by path; remembers what was asked. ``address`` is the loopback address it listens on."""

    answers: Mapping[str, Answer]
    address: str = "127.0.0.1"
    port: int = 0
    asked: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ")[1]
            self.asked.append(path)
            self.heads.append(head)
            answer = self.answers.get(path, response(b"", 404))
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                result = answer(writer)
                if asyncio.iscoroutine(result):
                    await result
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(*sites: Site) -> AsyncIterator[None]:
    servers = []
    try:
        for site in sites:
            server = await asyncio.start_server(site.serve, site.address, site.port)
            site.port = server.sockets[0].getsockname()[1]
            servers.append(server)
        yield
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()


def response(body: bytes, status: int = 200, **headers: str) -> bytes:
    lines = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


def redirect(to: str, status: int = 302) -> bytes:
    return response(b"", status, Location=to)


@dataclass
class Network:
    """Names and their addresses; several answers are given one after the other. ``127.0.0.1`` counts as public here."""

    names: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> list[str]:
        assert port
        self.asked.append(host)
        found = self.names.get(host.rstrip("."))
        if not found:
            raise OSError(-2, "Name or service not known")
        return found.pop(0) if len(found) > 1 else found[0]

    def public(self, address: Address) -> bool:
        return address == ipaddress.ip_address("127.0.0.1") or is_public(address)


def remote(
    network: Network, site: Site, *more: Site, limits: Limits | None = None, domains: Sequence[str] = (), **rules: float
) -> RemotePictures:
    """Remote pictures of ``network``, from the ports of the sites."""
    ports = frozenset({site.port, *(each.port for each in more)})
    made = RemoteRules(
        tuple(domains),
        ports,
        seconds=rules.get("seconds", 5.0),
        redirects=int(rules.get("redirects", 3)),
        at_once=int(rules.get("at_once", 16)),
    )
    return RemotePictures(made, limits or Limits(), resolver=network.resolve, public=network.public)
