"""``POST /v1/chat/completions`` in OpenAI's shape, pictures as data URIs."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import EngineUnavailable
from mmserve.types import Prompt, SamplingParams, TokenEvent
from mmserve.types import Request as EngineRequest
from web.constraints import Wanted, chat_choice, chat_extra, constraint_of, naming, verdict_on
from web.errors import explain
from web.generation import (
    Stopwatch,
    Tally,
    collect,
    generate,
    images_json,
    logprobs_json,
    make_requests,
    offload,
    usage_json,
)
from web.middleware import request_id
from web.schemas import ChatRequest, IgnoredFields, chat_messages, open_turn, request_schema
from web.service import Service
from web.sse import DONE, frame, start_stream, until_disconnect
from web.uploads import read_body

logger = logging.getLogger(__name__)


def chat_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"])
    ignored = IgnoredFields()

    @router.post("/v1/chat/completions", openapi_extra=_description(), response_model=None)
    async def chat(request: Request) -> Response:
        """OpenAI's chat completions. Fields without a meaning here are ignored, and logged once each."""
        if not service.engine.ready:
            raise EngineUnavailable("the model is not ready; try again in a moment")
        body = await read_body(request, service.limits, service.upload_idle_seconds)
        watch = Stopwatch()
        asked, sampling, prompt, wanted = await offload(len(body), lambda: _prepare(service, body))
        for name in ignored.new(asked.unknown_fields()):
            logger.info("the field %r of a chat request has no meaning here and is ignored", name)
        identity = f"chatcmpl-{request_id(request)}"
        constraint = constraint_of(wanted)
        requests = make_requests(identity, prompt, sampling, asked.cache_salt or "", asked.n or 1, constraint)
        envelope = {
            "id": identity,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": service.model.name,
        }
        with naming(wanted):
            if asked.stream:
                with_usage = asked.stream_options is not None and asked.stream_options.include_usage
                return await start_stream(request, _frames(service, envelope, requests, with_usage))
            tallies = await until_disconnect(request, collect(service.engine, requests, watch))
        verdicts = [await verdict_on(service.judge, constraint, tally) for tally in tallies]
        choices = [
            _choice(i, tally, sampling.logprobs is not None) | chat_choice(verdict)
            for i, (tally, verdict) in enumerate(zip(tallies, verdicts, strict=True))
        ]
        usage = usage_json(tally.usage for tally in tallies)
        rest = {"usage": usage, "images": images_json(prompt)}
        return JSONResponse(envelope | {"choices": choices} | rest | chat_extra(verdicts))

    return router


def _prepare(service: Service, body: bytes) -> tuple[ChatRequest, SamplingParams, Prompt, Wanted | None]:
    """Everything that costs CPU in proportion to the body. Raises typed errors."""
    try:
        asked = ChatRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise explain(error.errors(include_url=False, include_context=False, include_input=False)) from None
    asked.refuse_unsupported()
    service.find_model(asked.model)
    wanted = asked.wanted()
    sampling = asked.sampling(service.sampling)
    messages = chat_messages(asked, service.shelf)
    text = ""
    if asked.continue_final_message:
        messages, text = open_turn(messages)
    prompt = service.prompts.build(messages, cache_salt=asked.cache_salt or "")
    if text:
        prompt = service.prompts.append_text(prompt, text)
    return asked, sampling, prompt, wanted


def _choice(index: int, tally: Tally, with_logprobs: bool) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": tally.text, "refusal": None},
        "logprobs": logprobs_json(tally.logprobs) | {"refusal": None} if with_logprobs else None,
        "finish_reason": tally.finish_reason,
    }


async def _frames(
    service: Service, envelope: dict[str, Any], requests: Sequence[EngineRequest], with_usage: bool
) -> AsyncGenerator[bytes, None]:
    chunk = envelope | {"object": "chat.completion.chunk"}
    # OpenAI: when usage is asked for, every chunk has the field, and only the last has a value in it.
    rest: dict[str, Any] = {"usage": None} if with_usage else {}
    tallies = [Tally() for _ in requests]
    started = [False] * len(requests)
    async with aclosing(generate(service.engine, requests)) as events:
        async for index, event in events:
            tallies[index].add(event)
            for choice in _deltas(index, event, not started[index], requests[index].sampling.logprobs is not None):
                yield frame(chunk | {"choices": [choice]} | rest)
            started[index] = True
            if event.last:
                verdict = await verdict_on(service.judge, requests[index].constraint, tallies[index])
                end = _delta_choice(index, {}, event.finish_reason) | chat_choice(verdict)
                yield frame(chunk | {"choices": [end]} | rest | chat_extra([verdict]))
    if with_usage:
        last = {"usage": usage_json(tally.usage for tally in tallies), "images": images_json(requests[0].prompt)}
        yield frame(chunk | {"choices": []} | last)
    yield DONE


def _deltas(index: int, event: TokenEvent, first: bool, with_logprobs: bool) -> list[dict[str, Any]]:
    """The chunks' ``choices`` entries that one event makes before its end: role, text."""
    made = [_delta_choice(index, {"role": "assistant", "content": ""})] if first else []
    if event.text or (with_logprobs and event.logprobs):
        entries = logprobs_json(event.logprobs) | {"refusal": None} if with_logprobs else None
        made.append(_delta_choice(index, {"content": event.text}, logprobs=entries))
    return made


def _delta_choice(
    index: int, delta: dict[str, str], finish: str | None = None, logprobs: object = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _description() -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(ChatRequest)}}}}
