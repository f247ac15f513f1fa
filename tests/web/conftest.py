from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from mmserve.config import Limits
from tests.web.fakes import FakeEngine, FakePrompts, serve
from web.app import create_app
from web.service import ServedModel, Service


@pytest.fixture
def service(engine: FakeEngine, prompts: FakePrompts) -> Service:
    model = ServedModel("pocket-vl", description="A small model.", card="# Can\n- count", created=1700000000)
    limits = Limits(max_picture_bytes=600_000, max_pictures=3, max_body_bytes=2_000_000)
    return Service(
        model, prompts, engine, max_model_len=512, limits=limits, upload_idle_seconds=0.2, judge=lambda *_: True
    )


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


@pytest.fixture
def live(service: Service) -> Iterator[str]:
    """The base URL of a real server over the fakes."""
    with serve(service) as url:
        yield url
