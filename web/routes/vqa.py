"""``POST /v1/vqa``: pictures and a question as a form, the answer as JSON or as a stream."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import EngineUnavailable, InvalidField, MediaError, RequestError, TooManyMedia, TooManyPictures
from mmserve.types import Request as EngineRequest
from mmserve.types import TokenEvent
from web.constraints import constraint_of, naming, verdict_on, vqa_answer
from web.errors import explain
from web.generation import (
    INLINE_BYTES,
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
from web.media import MEDIA, media_json
from web.middleware import request_id
from web.parts import form_field
from web.schemas import VQA_REPEATED, VqaFields, request_schema
from web.service import Service
from web.sse import DONE, frame, start_stream, until_disconnect
from web.uploads import Form, FormRules, read_form

_RULES = FormRules(
    file="image", fields=VqaFields.names(), repeated=VQA_REPEATED, others={"video": "video", "audio": "audio"}
)


def vqa_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["mmserve"])

    @router.post("/v1/vqa", openapi_extra=_description(), response_model=None)
    async def vqa(request: Request) -> Response:
        """Answers a question about one or several pictures, videos or sounds."""
        if not service.engine.ready:
            raise EngineUnavailable("the model is not ready; try again in a moment")
        form = await read_form(request, _RULES, service.shelf, service.upload_idle_seconds)
        with _fields_of_the_form(form):
            return await _answer(service, request, form)

    return router


async def _answer(service: Service, request: Request, form: Form) -> Response:
    watch = Stopwatch()
    fields = _parse(form)
    model = service.find_model(fields.model).name
    sampling = fields.sampling(service.sampling)
    messages = fields.messages(zip(form.kinds, form.files, strict=True))
    wanted = await offload(form.text_size, fields.wanted)
    constraint = constraint_of(wanted)
    # The length of a video or sound may be known only when it is decoded, however few its bytes are.
    size = form.size if all(kind == "image" for kind in form.kinds) else INLINE_BYTES + form.size
    prompt = await offload(size, lambda: service.prompts.build(messages, cache_salt=fields.cache_salt))
    identity = f"vqa-{request_id(request)}"
    [asked] = make_requests(identity, prompt, sampling, fields.cache_salt, constraint=constraint)
    with naming(wanted):
        if fields.stream:
            return await start_stream(request, _frames(service, model, asked, watch))
        [tally] = await until_disconnect(request, collect(service.engine, [asked], watch))
    verdict = await verdict_on(service.judge, constraint, tally)
    answer = {
        "id": identity,
        "object": "vqa.answer",
        "created": int(time.time()),
        "model": model,
        "answer": tally.text,
        "finish_reason": tally.finish_reason,
        "usage": usage_json([tally.usage]),
        "timing": watch.timing(),
        "images": images_json(prompt),
        **media_json(prompt),
        **vqa_answer(verdict, constraint, tally.text),
    }
    if sampling.logprobs is not None:
        answer["logprobs"] = logprobs_json(tally.logprobs)
    return JSONResponse(answer)


def _parse(form: Form) -> VqaFields:
    if not form.files:
        raise InvalidField(
            "no picture came with the question; add a file part named image, video or audio",
            param="image",
        )
    try:
        return VqaFields.from_form(form.fields)
    except ValidationError as error:
        raise explain(error.errors()) from None


@contextmanager
def _fields_of_the_form(form: Form) -> Iterator[None]:
    """An error that points at a place in the messages, or at a file, names the form's field instead."""
    try:
        yield
    except RequestError as error:
        about_file = isinstance(error, MediaError | TooManyPictures | TooManyMedia)
        if error.param is None and not about_file:
            raise
        if error.param is not None and not error.param.startswith("messages"):
            raise
        if (field := form_field(error)) is not None:
            raise type(error)(error.message, param=field) from error
        raise type(error)(error.message, param=_file_field(error, form) if about_file else "question") from error


def _file_field(error: RequestError, form: Form) -> str:
    """The field of the file that an error is about: the user's message has the files first, in the form's order."""
    place = re.search(r"content\[(\d+)\]", error.param or "")
    index = int(place[1]) if place else 0
    return MEDIA[form.kinds[index]].field if index < len(form.kinds) else "image"


async def _frames(
    service: Service, model: str, request: EngineRequest, watch: Stopwatch
) -> AsyncGenerator[bytes, None]:
    envelope = {"id": request.id, "object": "vqa.chunk", "created": int(time.time()), "model": model}
    async with aclosing(generate(service.engine, [request])) as events:
        started = False
        tally = Tally()
        async for _, event in events:
            watch.note(event)
            tally.add(event)
            if event.last:
                verdict = await verdict_on(service.judge, request.constraint, tally)
                kept = vqa_answer(verdict, request.constraint, tally.text)
                yield frame(envelope | _delta(request, event) | _ending(request, event, watch) | kept)
            elif event.text or event.logprobs or not started:
                yield frame(envelope | _delta(request, event))
            started = True
    yield DONE


def _delta(request: EngineRequest, event: TokenEvent) -> dict[str, Any]:
    if request.sampling.logprobs is None:
        return {"delta": event.text}
    return {"delta": event.text, "logprobs": logprobs_json(event.logprobs)}


def _ending(request: EngineRequest, event: TokenEvent, watch: Stopwatch) -> dict[str, Any]:
    return {
        "finish_reason": event.finish_reason,
        "usage": usage_json([event.usage]),
        "timing": watch.timing(),
        "images": images_json(request.prompt),
        **media_json(request.prompt),
    }


def _description() -> dict[str, Any]:
    schema = request_schema(VqaFields)
    picture = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "One part a picture."}
    video = {**picture, "description": "One part a video, for a model that takes them."}
    sound = {**picture, "description": "One part a sound, for a model that hears."}
    schema["properties"] = {"image": picture, "video": video, "audio": sound, **schema["properties"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
