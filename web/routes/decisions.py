"""``POST /v1/decisions``: the probability of every allowed answer, read from the model instead of generated."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Tag, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import EngineUnavailable
from web.decisions.answers import openai_answers, openai_usage, sglang_answers, sglang_usage
from web.decisions.continuation import ContinuationBody
from web.decisions.questions import DecisionBody, Question
from web.decisions.scoring import Row, rows_of, score
from web.errors import explain
from web.middleware import request_id
from web.schemas import request_schema
from web.service import Service
from web.sse import until_disconnect
from web.uploads import read_body
from web.visit import visit


def decisions_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["mmserve"])

    @router.post("/v1/decisions", openapi_extra=_description(), response_model=None)
    async def decisions(request: Request) -> Response:
        """Answers choice, score and yes-or-no questions about one input with probabilities."""
        if not service.engine.ready:
            raise EngineUnavailable("the model is not ready; try again in a moment")
        body = await read_body(request, service.limits, service.upload_idle_seconds)
        asked, questions, rows = await visit().fetching(lambda: run_in_threadpool(_prepare, service, body))
        identity = f"decision-{request_id(request)}"
        work = score(
            service.engine, identity, rows, questions, cache_salt=asked.cache_salt, temperature=asked.temperature
        )
        scores, usage = await until_disconnect(request, work)
        envelope = {
            "id": identity,
            "object": "decision",
            "created": int(time.time()),
            "model": service.model.name,
        }
        if asked.openai:
            return JSONResponse(envelope | {"answers": openai_answers(questions, scores), "usage": openai_usage(usage)})
        return JSONResponse(envelope | {"answers": sglang_answers(questions, scores), "usage": sglang_usage(usage)})

    return router


def _kind(value: Any) -> str:
    return "continuation" if isinstance(value, ContinuationBody) or "messages" in value else "decision"


_BODY: TypeAdapter[DecisionBody | ContinuationBody] = TypeAdapter(
    Annotated[
        Annotated[DecisionBody, Tag("decision")] | Annotated[ContinuationBody, Tag("continuation")],
        Discriminator(lambda value: _kind(value) if isinstance(value, dict | BaseModel) else "decision"),
    ]
)


def _prepare(service: Service, body: bytes) -> tuple[DecisionBody | ContinuationBody, tuple[Question, ...], list[Row]]:
    """Everything that costs CPU in proportion to the body. Raises typed errors."""
    try:
        asked = _BODY.validate_json(body, strict=True)
        service.find_model(asked.model)
        questions = asked.asked()
        if isinstance(asked, ContinuationBody):
            return asked, questions, asked.rows(service.prompts, service.shelf)
        messages = asked.messages(service.shelf)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise explain([{**e, "loc": _own_path(e["loc"])} for e in found]) from None
    return asked, questions, rows_of(service.prompts, messages, questions, asked.cache_salt)


def _own_path(location: tuple[int | str, ...]) -> list[int | str]:
    """``location`` without the names that pydantic gives the members of unions."""
    steps = location[1:] if location[:1] in (("decision",), ("continuation",)) else location
    return [step for step in steps if "." not in str(step)]


def _description() -> dict[str, Any]:
    schema = {"oneOf": [request_schema(DecisionBody), request_schema(ContinuationBody)]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
