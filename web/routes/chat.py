"""``POST /v1/chat/completions`` in OpenAI's shape, pictures as data URIs."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import EngineUnavailable
from mmserve.types import Prompt, SamplingParams, TokenEvent
from mmserve.types import Request as EngineRequest
from web.constraints import Verdict, Wanted, chat_choice, chat_extra, constraint_of, naming, verdict_on
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
from web.matched import matched_stop
from web.middleware import request_id
from web.openai.reply import delta_of, finish_of, message_json, reader_of, reply_of
from web.openai.tools import Toolbox
from web.openai.turns import turns_of
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
        asked, job = await offload(len(body), lambda: _prepare(service, body))
        for name in ignored.new(asked.unknown_fields()):
            logger.info("the field %r of a chat request has no meaning here and is ignored", name)
        identity = f"chatcmpl-{request_id(request)}"
        requests = job.requests(identity, asked.cache_salt or "", asked.n or 1)
        envelope = {
            "id": identity,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": service.model.name,
        }
        with naming(job.wanted):
            if asked.stream:
                with_usage = bool(asked.stream_options is not None and asked.stream_options.include_usage)
                return await start_stream(request, _Stream(service, job, envelope, with_usage).frames(requests))
            tallies = await until_disconnect(request, collect(service.engine, requests, watch))
        verdicts = [await verdict_on(service.judge, constraint_of(job.wanted), tally) for tally in tallies]
        choices = [
            _choice(service, job, i, tally, verdict)
            for i, (tally, verdict) in enumerate(zip(tallies, verdicts, strict=True))
        ]
        usage = usage_json(tally.usage for tally in tallies)
        rest = {"usage": usage, "images": images_json(job.prompt)}
        return JSONResponse(envelope | {"choices": choices} | rest | chat_extra(verdicts))

    return router


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What a body comes to: ``wanted`` is of the whole answer, calls included."""

    prompt: Prompt
    sampling: SamplingParams
    wanted: Wanted | None
    toolbox: Toolbox | None

    def requests(self, identity: str, cache_salt: str, count: int) -> tuple[EngineRequest, ...]:
        return make_requests(identity, self.prompt, self.sampling, cache_salt, count, constraint_of(self.wanted))


def _prepare(service: Service, body: bytes) -> tuple[ChatRequest, _Job]:
    """Everything that costs CPU in proportion to the body. Raises typed errors."""
    try:
        asked = ChatRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise explain(error.errors(include_url=False, include_context=False, include_input=False)) from None
    asked.refuse_unsupported()
    service.find_model(asked.model)
    wanted, toolbox = asked.wanted(), asked.toolbox()
    sampling = asked.sampling(service.sampling)
    service.check_bias(sampling)
    turns = turns_of(chat_messages(asked, service.shelf), toolbox)
    messages, text = turns.messages, ""
    if asked.continue_final_message:
        messages, text = open_turn(messages)
    with turns.named():
        prompt = service.prompts.build(messages, cache_salt=asked.cache_salt or "")
    if text:
        prompt = service.prompts.append_text(prompt, text)
    return asked, _Job(prompt, sampling, toolbox.wanted(wanted) if toolbox is not None else wanted, toolbox)


def _choice(service: Service, job: _Job, index: int, tally: Tally, verdict: Verdict | None) -> dict[str, Any]:
    logprobs = None
    if job.sampling.logprobs is not None:
        logprobs = logprobs_json(tally.logprobs, service.prompts.token_bytes) | {"refusal": None}
    reply = reply_of(tally.text, job.toolbox, constraint_of(job.wanted))
    return {
        "index": index,
        "message": message_json(reply, job.toolbox),
        "logprobs": logprobs,
        "finish_reason": finish_of(tally, bool(reply.calls), job.toolbox, verdict),
        "matched_stop": matched_stop(tally, job.sampling, service.prompts),
        **chat_choice(verdict),
    }


class _Stream:
    """The chunks of an answer."""

    def __init__(self, service: Service, job: _Job, envelope: dict[str, Any], with_usage: bool) -> None:
        self._service = service
        self._job = job
        self._chunk = envelope | {"object": "chat.completion.chunk"}
        self._with_usage = with_usage

    async def frames(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[bytes, None]:
        choices = [_Choice(self._service, self._job, i) for i in range(len(requests))]
        async with aclosing(generate(self._service.engine, requests)) as events:
            async for index, event in events:
                for entry in choices[index].add(event):
                    yield self._frame([entry])
                if event.last:
                    verdict, end = await choices[index].end()
                    yield self._frame([end], chat_extra([verdict]))
        if self._with_usage:
            usage = usage_json(choice.tally.usage for choice in choices)
            yield frame(self._chunk | {"choices": [], "usage": usage, "images": images_json(self._job.prompt)})
        yield DONE

    def _frame(self, choices: list[dict[str, Any]], extra: dict[str, Any] | None = None) -> bytes:
        # OpenAI: when usage is asked for, every chunk has the field, and only the last has a value in it.
        usage: dict[str, Any] = {"usage": None} if self._with_usage else {}
        return frame(self._chunk | {"choices": choices} | usage | (extra or {}))


class _Choice:
    """One choice of a stream, as its events come."""

    def __init__(self, service: Service, job: _Job, index: int) -> None:
        self.tally = Tally()
        self._service = service
        self._job = job
        self._index = index
        self._reader = reader_of(job.toolbox, constraint_of(job.wanted))
        self._begun = self._called = False

    def add(self, event: TokenEvent) -> list[dict[str, Any]]:
        """The chunks' ``choices`` entries that one event makes before its end: role, text, calls."""
        self.tally.add(event)
        made = []
        if not self._begun:
            made.append(self._entry({"role": "assistant", "content": "" if self._job.toolbox is None else None}))
            self._begun = True
        pieces = self._reader.push(event.text) + (self._reader.flush() if event.last else [])
        deltas = [delta for piece in pieces if (delta := delta_of(piece)) is not None]
        self._called = self._called or any("tool_calls" in delta for delta in deltas)
        entries = None
        if self._job.sampling.logprobs is not None and event.logprobs:
            entries = logprobs_json(event.logprobs, self._service.prompts.token_bytes) | {"refusal": None}
            deltas = deltas or [{"content": ""}]
        for delta in deltas:
            made.append(self._entry(delta, logprobs=entries))
            entries = None
        return made

    async def end(self) -> tuple[Verdict | None, dict[str, Any]]:
        verdict = await verdict_on(self._service.judge, constraint_of(self._job.wanted), self.tally)
        finish = finish_of(self.tally, self._called, self._job.toolbox, verdict)
        matched = {"matched_stop": matched_stop(self.tally, self._job.sampling, self._service.prompts)}
        return verdict, self._entry({}, finish) | matched | chat_choice(verdict)

    def _entry(self, delta: dict[str, Any], finish: str | None = None, logprobs: object = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _description() -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(ChatRequest)}}}}
