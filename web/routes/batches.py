"""OpenAI's batches: ``/v1/batches``."""

from __future__ import annotations

import json
import logging
import re
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.requests import Request

from mmserve.errors import InvalidField
from web.batches.batchrows import BatchRecord, new_batch_id
from web.batches.expiry import ExpiresAfter
from web.batches.filerows import new_file_id
from web.batches.service import BatchService
from web.errors import explain
from web.routes.files import page_json
from web.schemas import IgnoredFields, request_schema
from web.service import Service
from web.uploads import read_body
from web.visit import visit

logger = logging.getLogger(__name__)

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_LONGEST = 7 * 86_400


class BatchRequest(BaseModel):
    """The body of ``POST /v1/batches``."""

    model_config = ConfigDict(extra="allow")

    input_file_id: str = Field(description='A file of the purpose "batch".')
    endpoint: str = Field(description=f"One of {', '.join(ENDPOINTS)}.")
    completion_window: str = Field(description='"24h", or another number of m, h or d, up to seven days.')
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Given back with the batch.")
    output_expires_after: ExpiresAfter | None = None

    @field_validator("metadata")
    @classmethod
    def _short(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        for key, value in (metadata or {}).items():
            if len(key) > 64 or len(value) > 512:
                raise ValueError("keys may have at most 64 characters, and values 512")
        return metadata

    def seconds(self) -> int:
        """Of the completion window. Raises ``InvalidField``."""
        match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", self.completion_window)
        seconds = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 0 < seconds <= _LONGEST:
            raise InvalidField(
                'completion_window is "24h", or another number of m, h or d, up to 7d', param="completion_window"
            )
        return seconds


def batches_router(service: Service, batch_service: BatchService) -> APIRouter:
    """A batch belongs to the key that made it; to others it is as none."""
    router = APIRouter(tags=["OpenAI"])
    ignored = IgnoredFields()

    @router.post("/v1/batches", openapi_extra=_description(), response_model=None)
    async def create_batch(request: Request) -> dict[str, Any]:
        """Takes on the requests in a file. Fields without a meaning here are ignored, and logged once each."""
        asked = _parse(await read_body(request, service.limits, service.upload_idle_seconds))
        for name in ignored.new(list(asked.model_extra or {})):
            logger.info("the field %r of a batch has no meaning here and is ignored", name)
        batch = _record(asked, service.model.name, int(batch_service.clock()), batch_service.limits.kept_seconds)
        file = await batch_service.files.find(batch.owner, batch.input_id, "input_file_id")
        if file.purpose != "batch":
            raise InvalidField(
                f'the file {file.id} has the purpose "{file.purpose}"; upload it with the purpose "batch"',
                param="input_file_id",
            )
        return (await batch_service.create(batch)).to_json()

    @router.get("/v1/batches", response_model=None)
    async def list_batches(after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> dict[str, Any]:
        """The caller's batches, the newest first."""
        batches, more = await batch_service.page(visit().owner, after=after, limit=limit)
        return page_json([batch.to_json() for batch in batches], more)

    @router.get("/v1/batches/{identity}", response_model=None)
    async def one_batch(identity: str) -> dict[str, Any]:
        """Where a batch stands."""
        return (await batch_service.get(visit().owner, identity)).to_json()

    @router.post("/v1/batches/{identity}/cancel", response_model=None)
    async def cancel_batch(identity: str) -> dict[str, Any]:
        """Ends a batch. What it has answered is in its files; what runs is given up."""
        return (await batch_service.cancel(visit().owner, identity)).to_json()

    return router


def _parse(body: bytes) -> BatchRequest:
    try:
        asked = BatchRequest.model_validate_json(body)
    except ValidationError as error:
        raise explain(error.errors()) from None
    if asked.endpoint not in ENDPOINTS:
        raise InvalidField(f"endpoint must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    return asked


def _record(asked: BatchRequest, model: str, now: int, kept_seconds: int) -> BatchRecord:
    expiry = asked.output_expires_after
    return BatchRecord(
        id=new_batch_id(),
        owner=visit().owner,
        endpoint=asked.endpoint,
        input_id=asked.input_file_id,
        completion_window=asked.completion_window,
        metadata=None if asked.metadata is None else json.dumps(asked.metadata),
        output_seconds=kept_seconds if expiry is None else expiry.seconds,
        model=model,
        created_at=now,
        expires_at=now + asked.seconds(),
        output_id=new_file_id(),
        error_id=new_file_id(),
    )


def _description() -> dict[str, Any]:
    schema = request_schema(BatchRequest)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
