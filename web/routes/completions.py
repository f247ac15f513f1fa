"""``POST /v1/completions`` in OpenAI's shape: raw prompts, no chat template."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import EngineUnavailable
from mmserve.types import Usage
from web.constraints import Verdict, chat_choice, chat_extra, constraint_of, naming, verdict_on
from web.generation import Stopwatch, Tally, collect, generate, offload, usage_json
from web.matched import matched_stop
from web.middleware import request_id
from web.openai.completions import Asked, CompletionRequest, Job, job_of
from web.openai.old_logprobs import OldLogprobs
from web.schemas import IgnoredFields, request_schema
from web.service import Service
from web.sse import DONE, frame, start_stream, until_disconnect
from web.uploads import read_body

logger = logging.getLogger(__name__)


def completions_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"])
    ignored = IgnoredFields()

    @router.post("/v1/completions", openapi_extra=_description(), response_model=None)
    async def completions(request: Request) -> Response:
        """OpenAI's completions of raw text or token ids. Fields without a meaning here are ignored, and logged once."""
        if not service.engine.ready:
            raise EngineUnavailable("the model is not ready; try again in a moment")
        body = await read_body(request, service.limits, service.upload_idle_seconds)
        identity = f"cmpl-{request_id(request)}"
        asked, job = await offload(len(body), lambda: _prepare(service, body, identity))
        for name in ignored.new(asked.unknown_fields()):
            logger.info("the field %r of a completions request has no meaning here and is ignored", name)
        envelope = {
            "id": identity,
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model.name,
        }
        with naming(job.wanted):
            if asked.stream:
                with_usage = bool(asked.stream_options is not None and asked.stream_options.include_usage)
                return await start_stream(request, _frames(service, job, envelope, with_usage))
            tallies = await until_disconnect(request, collect(service.engine, job.requests, Stopwatch()))
        return JSONResponse(envelope | await _answer(service, job, tallies))

    return router


def _prepare(service: Service, body: bytes, identity: str) -> tuple[CompletionRequest, Job]:
    asked = CompletionRequest.parse(body)
    service.find_model(asked.model)
    return asked, job_of(service, asked, identity)


async def _answer(service: Service, job: Job, tallies: Sequence[Tally]) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    verdicts, usages = [], []
    left = iter(tallies)
    for asked in job.asked:
        answers = [next(left) for _ in asked.answers]
        score = next(left) if asked.score is not None else None
        mine = [await verdict_on(service.judge, constraint_of(job.wanted), tally) for tally in answers]
        verdicts += mine
        whole = answers or [Tally()] * job.n
        for tally, verdict in zip(whole, mine or [None] * job.n, strict=True):
            choices.append(_choice(service, job, asked, len(choices), tally, score, verdict))
        # A prompt of one token, and no answer, is nothing to compute.
        counted = answers or ([] if score is None else [score])
        usages.append(usage_json([tally.usage for tally in counted] or [Usage(len(asked.prompt), 0, 0, 0)]))
    return {"choices": choices, "usage": _sum(usages), **chat_extra(verdicts)}


def _choice(
    service: Service, job: Job, asked: Asked, index: int, tally: Tally, score: Tally | None, verdict: Verdict | None
) -> dict[str, Any]:
    logprobs = None
    if job.top is not None:
        old = OldLogprobs(job.top)
        if job.echo:
            old.first(service.prompts.decode([int(asked.prompt.token_ids[0])], special=True))
            old.add(score.logprobs if score is not None else ())
        old.add(tally.logprobs)
        logprobs = old.take()
    text = (asked.text if job.echo else "") + tally.text
    finish = tally.finish_reason or "length"
    ended = {"finish_reason": finish, "matched_stop": matched_stop(tally, job.sampling, service.prompts)}
    return {"index": index, "text": text, "logprobs": logprobs, **ended, **chat_choice(verdict)}


async def _frames(
    service: Service, job: Job, envelope: dict[str, Any], with_usage: bool
) -> AsyncGenerator[bytes, None]:
    # When usage is asked for, every chunk has the field, and only the last has a value in it.
    rest: dict[str, Any] = {"usage": None} if with_usage else {}
    requests = job.requests
    tallies = [Tally() for _ in requests]
    logprobs = [OldLogprobs(job.top or 0) for _ in requests]
    begun = [False] * len(requests)
    async with aclosing(generate(service.engine, requests)) as events:
        async for index, event in events:
            tallies[index].add(event)
            logprobs[index].add(event.logprobs)
            echo = job.asked[index // job.n].text if job.echo and not begun[index] else ""
            begun[index] = True
            if echo or event.text or event.logprobs:
                told = logprobs[index].take() if job.top is not None else None
                choice = {"index": index, "text": echo + event.text, "logprobs": told, "finish_reason": None}
                yield frame(envelope | {"choices": [choice]} | rest)
            if event.last:
                verdict = await verdict_on(service.judge, requests[index].constraint, tallies[index])
                matched = matched_stop(tallies[index], job.sampling, service.prompts)
                ended = {"finish_reason": event.finish_reason, "matched_stop": matched}
                choice = {"index": index, "text": "", "logprobs": None, **ended}
                yield frame(envelope | {"choices": [choice | chat_choice(verdict)]} | rest | chat_extra([verdict]))
    if with_usage:
        of_prompts = [tallies[i : i + job.n] for i in range(0, len(tallies), job.n)]
        usage = _sum([usage_json(tally.usage for tally in each) for each in of_prompts])
        yield frame(envelope | {"choices": [], "usage": usage})
    yield DONE


def _sum(usages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """OpenAI's ``usage`` of several prompts."""
    return {
        name: _sum([usage[name] for usage in usages]) if isinstance(value, dict) else sum(u[name] for u in usages)
        for name, value in usages[0].items()
    }


def _description() -> dict[str, Any]:
    schema = request_schema(CompletionRequest)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
