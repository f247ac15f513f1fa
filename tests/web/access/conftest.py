"""A server with three keys: two users and an admin."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

from mmserve.keys import add_key, new_key
from web.access.ring import KeyRing
from web.app import create_app
from web.safety import Safety
from web.service import Service

MakeKey: TypeAlias = Callable[..., str]
"""Name and limits -> the new key's text."""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def make_key(keys_file: Path) -> MakeKey:
    def make(name: str, **options: Any) -> str:
        key, secret = new_key(name, **options)
        add_key(keys_file, key)
        return secret

    return make


@pytest.fixture
def secrets(make_key: MakeKey) -> Mapping[str, str]:
    return {"alice": make_key("alice"), "bob": make_key("bob"), "root": make_key("root", admin=True)}


@pytest.fixture
def locked(service: Service, keys_file: Path, clock: Clock, secrets: Mapping[str, str]) -> Service:
    """The service of the other tests, behind these keys."""
    assert secrets
    return dataclasses.replace(service, safety=Safety(keys=KeyRing(keys_file, clock)))


@pytest.fixture
async def http(locked: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    transport = httpx.ASGITransport(create_app(locked), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}
