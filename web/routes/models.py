"""``GET /v1/models`` in OpenAI's shape, with what people want to know beside it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from web.service import Service


def models_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [_model_json(service)]}

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """One model, by its name or an alias, with its card."""
        return _model_json(service) | {"card": service.find_model(name).card}

    return router


def _model_json(service: Service) -> dict[str, Any]:
    return {
        "id": service.model.name,
        "object": "model",
        "created": service.model.created,
        "owned_by": "mmserve",
        "max_model_len": service.max_model_len,
        "description": service.model.description,
        "media": list(service.model.media),
    }
