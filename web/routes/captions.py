"""``POST /v1/captions``: many pictures as a form, a line of JSON for each as soon as it has its caption."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from mmserve.errors import EngineUnavailable, InvalidField, MMServeError, PictureError, PromptTooLong
from mmserve.sampling import SamplingParams
from mmserve.template import DEFAULT_CAPTION_PROMPT, Template, file_values
from mmserve.types import ImagePart, Message, Prompt, TextPart
from web.constraints import Wanted, constraint_of, from_form, naming, verdict_on, vqa_answer
from web.errors import error_body, explain, internal_error
from web.generation import Stopwatch, Tally, collect, image_json, logprobs_json, make_requests, offload, usage_json
from web.middleware import request_id
from web.parts import DetailFields, form_field
from web.schemas import SamplingFields, WordFields, request_schema
from web.service import Service
from web.sse import start_stream
from web.uploads import Form, FormRules, read_form

logger = logging.getLogger(__name__)

IN_FLIGHT = 32
"""Pictures of one request that are prompts or in the engine at a time; the others are bytes as they came."""

_REPEATED = ("stop", "stop_token_ids", "must_include", "must_not_include")
_PLACES = ("name", "directory", "folder")


class CaptionFields(SamplingFields, WordFields, DetailFields):
    """The text fields of ``POST /v1/captions``. A schema and words exclude one another."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(
        DEFAULT_CAPTION_PROMPT,
        description="What is asked of each picture; {name} and {directory} stand for those of its file name.",
    )
    system: str | None = Field(None, description="A system prompt that comes before each picture.")
    model: str | None = None
    cache_salt: str = Field("", description="Requests with another salt share no cached work.")
    schema_: str | None = Field(None, alias="schema", description="A JSON Schema that each caption keeps, as text.")
    strict: bool | None = Field(None, description="Refuse a schema that cannot be enforced exactly.")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields as they are called in a form."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def from_form(cls, fields: Mapping[str, tuple[str, ...]]) -> CaptionFields:
        """Raises ``InvalidField``."""
        values = {name: texts if name in _REPEATED else texts[0] for name, texts in fields.items()}
        try:
            parsed = cls.model_validate(values)
        except ValidationError as error:
            raise explain(error.errors()) from None
        if not parsed.prompt.strip():
            raise InvalidField("prompt is empty; ask something about the pictures, or leave it out", param="prompt")
        parsed.looking()  # refuses at once what makes no sense for any picture
        return parsed

    def wanted(self) -> Wanted | None:
        """What each caption must look like. Raises a ``ConstraintError`` or ``InvalidField``."""
        return from_form(self.model_dump(by_alias=True))


@dataclass(frozen=True, slots=True)
class _Batch:
    """What holds for every picture of a request, and their names."""

    identity: str
    model: str
    fields: CaptionFields
    sampling: SamplingParams
    wanted: Wanted | None
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Job:
    """One thing to ask: the first picture with these bytes and this prompt, and the others."""

    index: int
    copies: tuple[int, ...]
    prompt: str


def captions_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["mmserve"])
    limit = service.limits.max_captions
    rules = FormRules("image", CaptionFields.names(), _REPEATED, max_files=limit, each_alone=True)

    @router.post("/v1/captions", openapi_extra=_description(), response_model=None)
    async def captions(request: Request) -> Response:
        """Captions many pictures; the answer has a line of JSON for each, in the order in which they are ready."""
        if not service.engine.ready:
            raise EngineUnavailable("the model is not ready; try again in a moment")
        form = await read_form(request, rules, service.shelf, service.upload_idle_seconds)
        response = await start_stream(request, await _lines_of(service, form, f"cap-{request_id(request)}"))
        response.headers["Content-Type"] = "application/x-ndjson"
        return response

    return router


async def _lines_of(service: Service, form: Form, identity: str) -> AsyncGenerator[bytes, None]:
    """The lines, not begun. Raises what is wrong with the request as a whole, as far as the form shows it."""
    if not form.files:
        raise InvalidField("no picture came to be captioned; add file parts named image", param="image")
    fields = CaptionFields.from_form(form.fields)
    template = Template(fields.prompt, _PLACES)
    batch = _Batch(
        identity,
        service.find_model(fields.model).name,
        fields,
        fields.sampling(service.sampling),
        await offload(form.text_size, fields.wanted),
        form.names,
    )
    jobs = await offload(form.size, lambda: _jobs(form, template))
    pictures = {job.index: form.files[job.index] for job in jobs}
    refused = [_error_line(batch, index, error) for index, error in form.refused.items()]
    return _Run(service, batch, pictures).lines(jobs, refused)


def _jobs(form: Form, template: Template) -> list[_Job]:
    """Each picture once, in the order of the form."""
    alike: dict[tuple[bytes, str], list[int]] = {}
    for index, (data, name) in enumerate(zip(form.files, form.names, strict=True)):
        if index not in form.refused:
            alike.setdefault((hashlib.sha256(data).digest(), template.render(file_values(name))), []).append(index)
    return [_Job(first, tuple(others), prompt) for (_, prompt), (first, *others) in alike.items()]


class _Run:
    """Captions the jobs of one request, ``IN_FLIGHT`` at a time. Owns the pictures' bytes, each until it is done."""

    def __init__(self, service: Service, batch: _Batch, pictures: dict[int, bytes]) -> None:
        self._service = service
        self._batch = batch
        self._pictures = pictures

    async def lines(self, jobs: Sequence[_Job], ready: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        """``ready``, and the lines of ``jobs``. Closing this ends what is still running.

        What is wrong with a picture is its line, which waits for the first caption: an error that would meet every
        picture is raised if it comes before that. Once a line is out, nothing is raised any more.
        """
        todo, arrivals = iter(jobs), asyncio.Queue[tuple[_Job, list[bytes] | Exception]]()
        workers = [asyncio.create_task(self._work(todo, arrivals)) for _ in range(min(IN_FLIGHT, len(jobs)))]
        held, started = list(ready), False
        try:
            for _ in jobs:
                job, arrival = await arrivals.get()
                if isinstance(arrival, Exception):
                    if not started and not isinstance(arrival, PictureError | PromptTooLong):
                        raise arrival
                    held += self._error_lines(job, arrival)
                else:
                    started = True
                    held += arrival
                while started and held:
                    yield held.pop(0)
            for line in held:
                yield line
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, todo: Iterator[_Job], arrivals: asyncio.Queue[tuple[_Job, list[bytes] | Exception]]) -> None:
        for job in todo:
            try:
                arrivals.put_nowait((job, await self._caption(job)))
            except Exception as error:
                arrivals.put_nowait((job, error))

    async def _caption(self, job: _Job) -> list[bytes]:
        batch, watch = self._batch, Stopwatch()
        constraint = constraint_of(batch.wanted)
        data = self._pictures.pop(job.index)
        prompt = await offload(len(data), lambda: self._prompt(job, data))
        [asked] = make_requests(
            f"{batch.identity}-{job.index}", prompt, batch.sampling, batch.fields.cache_salt, constraint=constraint
        )
        with naming(batch.wanted):
            [tally] = await collect(self._service.engine, [asked], watch)
        verdict = await verdict_on(self._service.judge, constraint, tally)
        kept = vqa_answer(verdict, constraint, tally.text)
        line = self._answer(job, prompt, tally) | {"timing": watch.timing()} | kept
        again = {"usage": None, "copy_of": job.index}
        return [_line(line)] + [_line(line | {"index": i, "name": batch.names[i]} | again) for i in job.copies]

    def _prompt(self, job: _Job, data: bytes) -> Prompt:
        fields = self._batch.fields
        system = [Message("system", (TextPart(fields.system),))] if fields.system else []
        messages = [*system, Message("user", (ImagePart(data, fields.looking()), TextPart(job.prompt)))]
        try:
            return self._service.prompts.build(messages, cache_salt=fields.cache_salt)
        except InvalidField as error:
            raise InvalidField(error.message, param=form_field(error) or error.param) from error

    def _answer(self, job: _Job, prompt: Prompt, tally: Tally) -> dict[str, Any]:
        [picture] = prompt.pictures
        line = {
            "index": job.index,
            "name": self._batch.names[job.index],
            "caption": tally.text.strip(),
            "finish_reason": tally.finish_reason,
            "model": self._batch.model,
            "image": image_json(picture),
            "usage": usage_json([tally.usage]),
            "copy_of": None,
        }
        if self._batch.sampling.logprobs is not None:
            line["logprobs"] = logprobs_json(tally.logprobs)
        return line

    def _error_lines(self, job: _Job, error: Exception) -> list[bytes]:
        if not isinstance(error, MMServeError):
            logger.error("picture %d of %s failed", job.index, self._batch.identity, exc_info=error)
            error = internal_error(self._batch.identity.removeprefix("cap-"))
        return [_error_line(self._batch, index, error) for index in (job.index, *job.copies)]


def _error_line(batch: _Batch, index: int, error: MMServeError) -> bytes:
    wire = error_body(error)["error"]
    if isinstance(error, PictureError):
        wire = {**wire, "param": "image"}
    return _line({"index": index, "name": batch.names[index], "error": wire})


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def _description() -> dict[str, Any]:
    schema = request_schema(CaptionFields)
    picture = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "One part a picture."}
    schema["properties"] = {"image": picture, **schema["properties"]}
    schema["required"] = ["image"]
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}},
        "responses": {"200": {"description": "A line of JSON a picture.", "content": {"application/x-ndjson": {}}}},
    }
