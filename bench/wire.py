"""HTTP/1.1 by hand: requests as bytes, each on a connection of its own, which a client may break off or feed slowly.

What httpx hides is what a measurement of a busy server needs: whether an answer came whole, where it broke off, and
that sending 256 at once costs the machine little.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

BOUNDARY = "b0undary7MA4YWxkTrZu0gW"


class Broken(Exception):
    """No whole answer came: the connection was refused, reset, or closed in the middle."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer: ``first`` and ``seconds`` are from the start of the request to the first and last byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    first: float
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[str]:
        """The data of a stream's events."""
        return [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def post(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: server\r\nConnection: close\r\nContent-Type: {content_type}\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n".encode()


def form(path: str, fields: Mapping[str, str], pictures: list[bytes]) -> bytes:
    """A POST of a multipart form whose pictures are all called ``image``."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="p.png"\r\n\r\n'.encode()
    parts += [head + data + b"\r\n" for data in pictures]
    return post(path, b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}")


async def ask(address: tuple[str, int], request: bytes, *, drip: float = 0.0, pieces: int = 1) -> Reply:
    """Send ``request`` and read the whole answer; in ``pieces``, ``drip`` seconds apart.

    Raises ``Broken``. A task that is cancelled here closes its connection at once, as a client does that goes away.
    """
    start = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError as error:
        raise Broken(f"no connection: {error.strerror or error}") from None
    whole = False
    try:
        size = -(-len(request) // pieces)
        for at in range(0, len(request), size):
            writer.write(request[at : at + size])
            await writer.drain()
            if drip:
                await asyncio.sleep(drip)
        head = await reader.readuntil(b"\r\n\r\n")
        first = time.perf_counter() - start
        rest = await reader.read()
        whole = True
    except asyncio.IncompleteReadError as error:
        raise Broken(f"closed after {len(error.partial)} bytes, before an answer") from None
    except OSError as error:
        raise Broken(f"reset: {error.strerror or error}") from None
    finally:
        if whole:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        else:
            writer.transport.abort()
    return _reply(head, rest, first, time.perf_counter() - start)


def _reply(head: bytes, rest: bytes, first: float, seconds: float) -> Reply:
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(rest)
    elif len(rest) == int(headers.get("content-length", len(rest))):
        body = rest
    else:
        raise Broken(f"{len(rest)} of {headers['content-length']} bytes came")
    return Reply(int(status.split()[1]), headers, body, first, seconds)


def _joined(chunks: bytes) -> bytes:
    body = bytearray()
    at = 0
    while True:
        end = chunks.find(b"\r\n", at)
        if end < 0:
            raise Broken(f"a stream ended after {len(body)} bytes without its last chunk")
        size = int(chunks[at:end], 16)
        if not size:
            return bytes(body)
        body += chunks[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
