"""The application: routes, and around them the layers that every request passes.

    observing    an id, a line in the log, metrics, and an end for what nothing else has caught
    (routes)     FastAPI

This module knows nothing about sockets, processes or models.
"""

from __future__ import annotations

from fastapi import FastAPI

from gritkit import __version__
from gritkit_serve import errors
from gritkit_serve.observing import Observing
from gritkit_serve.routes import health
from gritkit_serve.service import Service

ROUTERS = (
    health.router,
)  # fmt: skip


def create_app(service: Service) -> FastAPI:
    """All routes of a service, behind all layers."""
    app = FastAPI(
        title="gritkit", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        description="Chat, embeddings, reranking and question answering over documents, from one model.",
    )  # fmt: skip
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    # From the innermost to the outermost.
    app.add_middleware(Observing, metrics=service.metrics, log_prompts=service.settings.log_prompts)
    return app
