"""OpenAI's Responses API for text and pictures: ``/v1/responses``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import EngineUnavailable, InvalidField, RequestError
from web.constraints import naming
from web.generation import offload
from web.openai.responses_body import ResponsesRequest
from web.openai.responses_run import Run, job_of
from web.openai.responses_store import ResponseStore
from web.schemas import IgnoredFields, request_schema
from web.service import Service
from web.sse import start_stream, until_disconnect
from web.uploads import read_body

logger = logging.getLogger(__name__)


def responses_router(service: Service) -> APIRouter:
    """Keeps answers within the limits that pictures sent once have, ``max_kept_bytes`` and ``kept_seconds``."""
    router = APIRouter(tags=["OpenAI"])
    ignored = IgnoredFields()
    store = ResponseStore(service.limits.max_kept_bytes, service.limits.kept_seconds)

    @router.post("/v1/responses", openapi_extra=_description(), response_model=None)
    async def respond(request: Request) -> Response:
        """OpenAI's responses. Fields without a meaning here are ignored, and logged once each."""
        if not service.engine.ready:
            raise EngineUnavailable("the model is not ready; try again in a moment")
        body = await read_body(request, service.limits, service.upload_idle_seconds)
        job = await offload(len(body), lambda: job_of(service, store, body))
        for name in ignored.new(job.asked.unknown_fields()):
            logger.info("the field %r of a responses request has no meaning here and is ignored", name)
        run = Run(service, store, job)
        with naming(job.wanted), _named_as_sent():
            if job.asked.stream:
                return await start_stream(request, run.frames())
            return JSONResponse(await until_disconnect(request, run.answer()))

    @router.get("/v1/responses/{identity}", response_model=None)
    async def kept_response(identity: str, stream: bool = False) -> Response:
        """A response that is kept."""
        if stream:
            raise InvalidField("a finished response is not streamed again; leave out stream", param="stream")
        return JSONResponse(dict(store.get(identity)))

    @router.delete("/v1/responses/{identity}")
    async def forget_response(identity: str) -> dict[str, Any]:
        """Forgets a response; what went on from it cannot be gone on from either."""
        store.drop(identity)
        return {"id": identity, "object": "response", "deleted": True}

    return router


@contextmanager
def _named_as_sent() -> Iterator[None]:
    """What the engine says of ``max_tokens`` is about ``max_output_tokens`` here."""
    try:
        yield
    except RequestError as error:
        if error.param != "max_tokens":
            raise
        message = error.message.replace("max_tokens", "max_output_tokens")
        raise type(error)(message, param="max_output_tokens") from error


def _description() -> dict[str, Any]:
    schema = request_schema(ResponsesRequest)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
