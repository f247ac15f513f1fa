"""The page, its static files, and the example pictures."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from web.service import Service

_STATIC = Path(__file__).parent.parent / "static"


class FreshFiles(StaticFiles):
    """Static files that a browser asks about each time, so that an upgraded server is never met by an old script."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def add_page(app: FastAPI, service: Service) -> None:
    """``GET /``, ``/static/...`` and ``/examples/...`` on ``app``."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False, response_model=None)
    async def page() -> Response:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", FreshFiles(directory=_STATIC))
    if service.examples is not None and (service.examples / "examples.json").is_file():
        app.mount("/examples", FreshFiles(directory=service.examples))
        return

    @app.get("/examples/examples.json", include_in_schema=False, response_model=None)
    async def no_examples() -> Response:
        return JSONResponse([])
