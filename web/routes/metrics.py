"""``GET /metrics`` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from web.operations.exposition import CONTENT_TYPE
from web.service import Service


def metrics_router(service: Service, version: str) -> APIRouter:
    router = APIRouter(tags=["mmserve"])

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Counters, gauges and histograms in Prometheus' text format (docs/service.md lists them)."""
        engine = service.engine
        text = service.metrics.text(engine.stats(), model=service.model.name, version=version, ready=engine.ready)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    return router
