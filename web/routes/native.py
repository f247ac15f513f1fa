"""SGLang's native API: ``/generate``, ``/abort_request``, what its frontend asks at start, ``/health_generate``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import EngineUnavailable, InvalidField, MMServeError, RequestError
from mmserve.sampling import SamplingParams
from mmserve.types import Request as EngineRequest
from web.constraints import Verdict, verdict_on
from web.generation import Stopwatch, generate, offload
from web.middleware import request_id
from web.native.answers import Progress
from web.native.body import GenerateBody
from web.native.flights import Flight, Flights, Job, follow
from web.native.items import Item, items_of
from web.schemas import IgnoredFields, request_schema
from web.service import Service
from web.sse import DONE, frame, start_stream, until_disconnect
from web.uploads import read_body

logger = logging.getLogger(__name__)

_HEALTH_SECONDS = 20.0


class AbortBody(BaseModel):
    rid: str = ""
    abort_all: bool = False


def native_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["SGLang"])
    ignored = IgnoredFields()
    flights = Flights()

    @router.put("/generate", include_in_schema=False, response_model=None)
    @router.post("/generate", openapi_extra=_description(), response_model=None)
    async def generate_route(request: Request) -> Response:
        """SGLang's generation: a prompt as text or token ids, with pictures; no chat template is applied."""
        if not service.engine.ready:
            raise EngineUnavailable("the model is not ready; try again in a moment")
        data = await read_body(request, service.limits, service.upload_idle_seconds)
        identity = request_id(request)
        with _named_as_sent():
            body, items, listed = await offload(len(data), lambda: _prepare(service, data, identity))
            for name in ignored.new(body.unknown_fields()):
                logger.info("the field %r of a generate request has no meaning here and is ignored", name)
            run = _Run(service, flights, items)
            if body.stream:
                return await start_stream(request, run.frames(listed))
            answers = await until_disconnect(request, run.answers())
        return JSONResponse(answers if listed else answers[0])

    @router.post("/abort_request")
    async def abort_request(body: AbortBody) -> dict[str, int]:
        """Ends the requests of ``/generate`` with this ``rid``, or all; each answers with what it has."""
        if not body.rid and not body.abort_all:
            raise InvalidField("give the rid of a request, or abort_all: true", param="rid")
        return {"aborted": flights.abort(None if body.abort_all else body.rid)}

    @router.get("/get_model_info", include_in_schema=False)
    @router.get("/model_info")
    async def model_info() -> dict[str, Any]:
        """What SGLang's clients ask at start."""
        return _model_info(service)

    @router.get("/health_generate", response_model=None)
    async def health_generate(request: Request) -> Response:
        """200 where the engine answers: it is asked for one token."""
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await _one_token(service, request_id(request))
        except (MMServeError, TimeoutError) as error:
            logger.warning("the engine does not answer: %s", error or "it took too long")
            return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    return router


def _model_info(service: Service) -> dict[str, Any]:
    model = service.model
    # SGLang's frontend renders chat templates itself and picks one by looking for the architecture in the path, as
    # in Hugging Face's "Qwen/Qwen2-VL-2B-Instruct". So the path says the architecture as well as the name; where the
    # model lies on this server's disk is nobody's business.
    path = f"{model.family}/{model.name}" if model.family else model.name
    return {
        "model_path": path,
        "tokenizer_path": path,
        "served_model_name": model.name,
        "model_type": model.family,
        "is_generation": True,
        "has_image_understanding": True,
        "has_audio_understanding": False,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "max_model_len": service.max_model_len,
    }


async def _one_token(service: Service, identity: str) -> None:
    if not service.engine.ready:
        raise EngineUnavailable("the model is not ready")
    prompt = service.prompts.build_text("1 2 3", ())
    asked = EngineRequest(f"health-{identity}", prompt, SamplingParams(max_tokens=1))
    async with aclosing(generate(service.engine, [asked])) as events:
        async for _ in events:
            pass


def _prepare(service: Service, data: bytes, identity: str) -> tuple[GenerateBody, list[Item], bool]:
    body = GenerateBody.parse(data)
    items, listed = items_of(service, body, identity)
    return body, items, listed


@contextmanager
def _named_as_sent() -> Iterator[None]:
    """What the engine says of ``max_tokens`` is about ``max_new_tokens`` here."""
    try:
        yield
    except RequestError as error:
        if error.param != "max_tokens":
            raise
        message = error.message.replace("max_tokens", "max_new_tokens")
        raise type(error)(message, param="sampling_params.max_new_tokens") from error


class _Run:
    """The answers of one body, together on their way."""

    def __init__(self, service: Service, flights: Flights, items: Sequence[Item]) -> None:
        self._service = service
        self._flights = flights
        watch = Stopwatch()
        self._progress = [Progress(item, service.prompts, watch) for item in items]
        self._own = [Flight(item.names) for item in items]

    async def answers(self) -> list[dict[str, Any]]:
        async with aclosing(self._advances()) as advances:
            async for _ in advances:
                pass
        return [progress.answer(await self._verdict(progress)) for progress in self._progress]

    async def frames(self, listed: bool) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._advances()) as advances:
            async for index in advances:
                progress = self._progress[index]
                verdict = await self._verdict(progress) if progress.finished else None
                yield frame(progress.answer(verdict) | ({"index": index} if listed else {}))
        yield DONE

    async def _advances(self) -> AsyncGenerator[int, None]:
        """The index of each answer that has come further, each time it has."""
        jobs = [
            Job(i, request, flight, progress.item.wanted)
            for i, (progress, flight) in enumerate(zip(self._progress, self._own, strict=True))
            for request in (progress.item.score, progress.item.generate)
            if request is not None
        ]
        with self._flights.under_way(self._own):
            async with aclosing(follow(self._service.engine, jobs)) as arrivals:
                async for job, arrival in arrivals:
                    progress = self._progress[job.index]
                    progress.add(arrival, scored=job.request is progress.item.score)
                    # The answer to a stream begins with the answer's own first token, its prompt's score known or not.
                    if progress.finished or job.request is progress.item.generate:
                        yield job.index

    async def _verdict(self, progress: Progress) -> Verdict | None:
        request = progress.item.generate
        if request is None or progress.tally.finish_reason is None:
            return None
        return await verdict_on(self._service.judge, request.constraint, progress.tally)


def _description() -> dict[str, Any]:
    schema = request_schema(GenerateBody)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
