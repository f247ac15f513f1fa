"""What travels between the front, which takes HTTP, and the replicas, which answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.types import Message, Scope

_OF_SCOPE = ("http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "client", "server")


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request whose body is read, and where it belongs: ``key`` is ``routing``'s, and replicas in ``avoid``
    are asked only where there is no other. ``scope`` is what ASGI says of it, in plain values."""

    scope: Mapping[str, Any]
    body: bytes = field(repr=False)
    key: bytes = b""
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of an answer's ASGI messages, in order, and who sent them."""

    replica: str
    messages: tuple[Message, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is complete."""

    replica: str
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = field(repr=False)


class Replicas(Protocol):
    """The engines, wherever they run; which of them answers a call is the router's choice.

    Both raise ``EngineUnavailable`` where the replica is lost or there is none, ``QueueFull`` where all are full.
    """

    def answer(self, call: Call, /) -> AsyncGenerator[Piece, None]:
        """One replica's answer as it comes. Closing the generator ends the request there."""

    async def ask_all(self, call: Call, /) -> list[Whole]:
        """Every replica's answer."""


def portable(scope: Scope, request_id: str) -> dict[str, Any]:
    """``scope`` as values that can be sent to another process; the request is called ``request_id`` there too."""
    kept = {name: scope[name] for name in _OF_SCOPE if name in scope}
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"] if name != b"x-request-id"]
    return {"type": "http", **kept, "headers": [*headers, (b"x-request-id", request_id.encode("latin-1"))]}
