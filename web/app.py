"""The HTTP application, composed from a :class:`~web.service.Service`."""

from __future__ import annotations

from fastapi import FastAPI

from mmserve import __version__
from web.access.gate import Gate
from web.access.owned import owned
from web.batches.service import BatchService
from web.cors import add_cors
from web.description import describe
from web.errors import install_error_handlers
from web.middleware import Guard
from web.operations.access import Access
from web.routes.batches import batches_router
from web.routes.captions import captions_router
from web.routes.chat import chat_router
from web.routes.completions import completions_router
from web.routes.decisions import decisions_router
from web.routes.files import files_router
from web.routes.health import health_router
from web.routes.metrics import metrics_router
from web.routes.models import models_router
from web.routes.native import native_router
from web.routes.page import add_page
from web.routes.pictures import pictures_router
from web.routes.responses import responses_router
from web.routes.vqa import vqa_router
from web.service import Service
from web.unread import Unread


def create_app(service: Service, batch_service: BatchService | None = None) -> FastAPI:
    """The application. Its state is in ``service`` and ``batch_service``, but for the unknown fields it has logged.

    Without a ``batch_service`` there are no files and batches. The caller starts and closes it.

    FastAPI's documentation pages load their scripts from elsewhere, so they are off; ``/openapi.json`` is on.
    """
    app = FastAPI(title="mmserve", version=__version__, docs_url=None, redoc_url=None)
    safety = service.safety
    if safety.keys is not None:
        service = owned(service)
    # The last that is added is the first to see a request.
    app.add_middleware(Gate, keys=safety.keys, remote=safety.remote, origins=safety.origins)
    if safety.origins:
        add_cors(app, safety.origins)
    app.add_middleware(Access, metrics=service.metrics, tracing=service.tracing)
    app.add_middleware(Guard)
    app.add_middleware(Unread)
    install_error_handlers(app)
    app.include_router(vqa_router(service))
    app.include_router(captions_router(service))
    app.include_router(pictures_router(service))
    app.include_router(chat_router(service))
    app.include_router(completions_router(service))
    app.include_router(responses_router(service))
    if batch_service is not None:
        app.include_router(files_router(service, batch_service))
        app.include_router(batches_router(service, batch_service))
    app.include_router(decisions_router(service))
    app.include_router(native_router(service))
    app.include_router(models_router(service))
    app.include_router(health_router(service, __version__))
    app.include_router(metrics_router(service, __version__))
    add_page(app, service)
    describe(app)
    return app
