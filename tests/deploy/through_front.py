"""A plugin for pytest (``-p tests.deploy.through_front``): every test of the HTTP API then meets its application behind
the front, as on a cluster: requests and answers are pickled on their way, one replica answers."""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

import web.app
from mmserve.deploy.calls import Call, Piece, Whole
from mmserve.deploy.front import create_front
from mmserve.deploy.replica import Answering
from web.batches.service import BatchService
from web.service import Service


class OneReplica:
    def __init__(self, app: FastAPI) -> None:
        self._answering = Answering(app, "only")

    async def answer(self, call: Call, /) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._answering.answer(pickle.loads(pickle.dumps(call)))) as pieces:
            async for piece in pieces:
                yield pickle.loads(pickle.dumps(piece))

    async def ask_all(self, call: Call, /) -> list[Whole]:
        return [await self._answering.whole(call)]


def _behind(app: Any) -> Any:
    service: Service | None = getattr(getattr(app, "state", None), "service", None)
    if service is None:
        return app
    return create_front(OneReplica(app), service.limits, idle_seconds=service.upload_idle_seconds)


def pytest_configure() -> None:
    """Before any test is imported, so that all of them get these."""
    create_app, transport, config = web.app.create_app, httpx.ASGITransport.__init__, uvicorn.Config.__init__

    def create(service: Service, batch_service: BatchService | None = None) -> FastAPI:
        app = create_app(service, batch_service)
        app.state.service = service
        return app

    def new_transport(self: httpx.ASGITransport, app: Any, *args: Any, **kwargs: Any) -> None:
        transport(self, _behind(app), *args, **kwargs)

    def new_config(self: uvicorn.Config, app: Any, *args: Any, **kwargs: Any) -> None:
        config(self, _behind(app), *args, **kwargs)

    web.app.create_app = create
    httpx.ASGITransport.__init__ = new_transport  # type: ignore[method-assign]
    uvicorn.Config.__init__ = new_config  # type: ignore[method-assign]
