"""``POST /v1/pictures``: pictures that are sent once and named in the requests that follow."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import InvalidField, PictureError, PictureNotKept
from vision.header import probe
from web.generation import offload
from web.service import Service
from web.uploads import FormRules, read_form

_RULES = FormRules("image", ())


def pictures_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["mmserve"])
    shelf = service.shelf

    @router.post("/v1/pictures", openapi_extra=_description(), response_model=None)
    async def keep(request: Request) -> Response:
        """Keeps pictures for a while. Wherever a picture is sent, its id may be sent instead: as the text of a form's
        ``image``, or as an ``image_url``."""
        form = await read_form(request, _RULES, shelf, service.upload_idle_seconds)
        if not form.files:
            raise InvalidField("no picture came to be kept; add a file part named image", param="image")
        files = list(zip(form.files, form.names, strict=True))
        kept = await offload(form.size, lambda: [_keep(service, data, name) for data, name in files])
        return JSONResponse({"object": "list", "data": kept})

    @router.delete("/v1/pictures/{identity}", response_model=None)
    async def drop(identity: str) -> Response:
        """Forgets a picture."""
        if not shelf.drop(identity):
            raise PictureNotKept(f"no picture called {identity[:64]!r} is kept here", param="identity")
        return JSONResponse({"id": identity, "object": "picture", "deleted": True})

    return router


def _keep(service: Service, data: bytes, name: str) -> dict[str, Any]:
    """Raises a ``PictureError`` for what could not be asked about."""
    try:
        header = probe(data, service.limits)
    except PictureError as error:
        raise type(error)(error.message, param="image") from error
    return {
        "id": service.shelf.put(data),
        "object": "picture",
        "name": name,
        "bytes": len(data),
        "width": header.width,
        "height": header.height,
        "expires_after": service.limits.kept_seconds,
    }


def _description() -> dict[str, Any]:
    picture = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "One part a picture."}
    schema = {"type": "object", "properties": {"image": picture}, "required": ["image"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
