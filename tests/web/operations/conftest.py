from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.web.fakes import FakeEngine
from web.app import create_app
from web.operations.observed import ObservedEngine
from web.service import Service


@pytest.fixture
def observed(service: Service, engine: FakeEngine) -> Service:
    """The stand-ins' service with its engine observed."""
    return dataclasses.replace(service, engine=ObservedEngine(engine, service.metrics))


@pytest.fixture
async def http(observed: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(observed), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
