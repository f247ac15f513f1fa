"""Whether the server can answer, and what it is doing."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from web.service import Service
from web.visit import visit


def health_router(service: Service, version: str) -> APIRouter:
    router = APIRouter(tags=["mmserve"])

    @router.head("/health", include_in_schema=False, response_model=None)
    @router.get("/health", response_model=None)
    async def health() -> Response:
        """200 when questions can be answered; 503 while the model loads, in a drain, and when the engine has ended."""
        if service.engine.ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": "5"})

    @router.head("/live", include_in_schema=False, response_model=None)
    @router.get("/live", response_model=None)
    async def live() -> Response:
        """200 as long as the process answers at all, while the model loads too: restart it where this fails."""
        return JSONResponse({"status": "ok"})

    @router.get("/get_server_info", include_in_schema=False)
    @router.get("/server_info")
    async def server_info() -> dict[str, Any]:
        """Version, model, limits, and the engine's counters and gauges, which only admins see where there are keys:
        they tell what others do."""
        return {
            "version": version,
            "model": service.model.name,
            "max_model_len": service.max_model_len,
            "ready": service.engine.ready,
            "limits": dataclasses.asdict(service.limits),
            "stats": dict(service.engine.stats()) if visit().admin else {},
        }

    @router.get("/flush_cache", include_in_schema=False)
    @router.post("/flush_cache")
    async def flush_cache() -> dict[str, int]:
        """Empties the caches of what no request is using; says how many tokens were dropped. For admins."""
        return {"flushed_tokens": await service.engine.flush()}

    return router
