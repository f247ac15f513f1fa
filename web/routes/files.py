"""OpenAI's files: ``/v1/files``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from web.batches.service import BatchService
from web.batches.uploads import PURPOSES, receive_file
from web.service import Service
from web.visit import visit

MOST = 10_000


def files_router(service: Service, batch_service: BatchService) -> APIRouter:
    """A file belongs to the key that sent it; to others it is as none."""
    router = APIRouter(tags=["OpenAI"])
    store = batch_service.files

    @router.post("/v1/files", openapi_extra=_description(), response_model=None)
    async def upload_file(request: Request) -> dict[str, Any]:
        """Keeps a file; it goes to the disk as it arrives, and exists whole or not at all."""
        return (await receive_file(request, service, store, batch_service.limits)).to_json()

    @router.get("/v1/files", response_model=None)
    async def list_files(
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST)] = MOST,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """The caller's files by the time they were made."""
        newest_first = order == "desc"
        files, more = await store.page(
            visit().owner, purpose=purpose, after=after, limit=limit, newest_first=newest_first
        )
        return page_json([file.to_json() for file in files], more)

    @router.get("/v1/files/{identity}", response_model=None)
    async def one_file(identity: str) -> dict[str, Any]:
        """What is known of a file."""
        return (await store.find(visit().owner, identity)).to_json()

    @router.get("/v1/files/{identity}/content", response_model=None)
    async def file_content(identity: str) -> Response:
        """A file's bytes."""
        file = await store.find(visit().owner, identity)
        headers = {"Content-Length": str(file.bytes), "Content-Disposition": "attachment"}
        return StreamingResponse(await store.content(file), headers=headers, media_type="application/octet-stream")

    @router.delete("/v1/files/{identity}", response_model=None)
    async def delete_file(identity: str) -> dict[str, Any]:
        """Deletes a file; a batch that reads it goes on."""
        await store.delete(visit().owner, identity)
        return {"id": identity, "object": "file", "deleted": True}

    return router


def page_json(items: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """OpenAI's page of a list."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": more,
    }


def _description() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    }
    schema = {"type": "object", "required": ["file", "purpose"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
