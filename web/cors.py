"""Pages of other origins, where they are allowed."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware


def add_cors(app: FastAPI, origins: Sequence[str]) -> None:
    """Answer browsers that ask whether a page of ``origins`` may use the API. A page sends its key itself; cookies,
    which a browser would send by itself, are not allowed."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-API-Key"],
        expose_headers=["Retry-After", "X-Request-Id"],
        allow_credentials=False,
    )
