"""The application: routes, and around them the layers that every request passes, the first one first.

    Observing     an id, a line in the log, metrics
    CORS          answers browsers' questions, where origins are allowed; every answer from further in passes it
    Ending        answers what those below refuse, and what nothing else has caught
    Guard         API key; without one, this machine only
    Admission     how many requests at once and for how long; nothing more once the server drains
    BodyLimits    size, time, form of the body; cancels the route when its client leaves
    (routes)

This module knows nothing about sockets, processes or models.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from gritkit import __version__
from gritkit_serve import errors
from gritkit_serve.admission import Admission
from gritkit_serve.limits import BodyLimits
from gritkit_serve.observing import Ending, Observing
from gritkit_serve.openapi import DescribedApp
from gritkit_serve.routes import (
    chat,
    completions,
    docs,
    embeddings,
    health,
    kb,
    kb_documents,
    models,
    page,
    rerank,
    tokenize,
)
from gritkit_serve.routes.query import check_query
from gritkit_serve.security import Guard
from gritkit_serve.service import Service

PAGES = (health.router, docs.router, page.router)
"""What probes and browsers ask for, with whatever behind the path."""
API = (
    chat.router,
    completions.router,
    embeddings.router,
    rerank.router,
    models.router,
    tokenize.router,
    kb.router,
    kb_documents.router,
)  # fmt: skip
PUBLIC = re.compile(r"/|/health|/ready|/static/.*", re.DOTALL)
"""What is read without a key: whether the server lives, and the page, which has no data and asks for the key."""
ALWAYS = re.compile(r"/|/health|/ready|/metrics|/static/.*", re.DOTALL)
"""What is answered however busy the server is: it costs nothing, and a page without one of its files is broken."""
TAKES_FILES = re.compile(r"/v1/kb/[^/]+/documents")


def create_app(service: Service) -> FastAPI:
    """All routes of a service, behind all layers."""
    settings = service.settings
    app = DescribedApp(
        title="gritkit", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        description="Chat, embeddings, reranking and question answering over documents, from one model.",
    )  # fmt: skip
    app.state.service = service
    for router in PAGES:
        app.include_router(router)
    for router in API:
        app.include_router(router, dependencies=[Depends(check_query)])
    errors.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimits, settings=settings, takes_files=_matching(TAKES_FILES))
    app.add_middleware(
        Admission, gate=service.gate, seconds=settings.request_seconds, always=_matching(ALWAYS)
    )  # fmt: skip
    app.add_middleware(
        Guard, api_keys=settings.api_keys, allow_origins=settings.allow_origins, public=_matching(PUBLIC)
    )  # fmt: skip
    app.add_middleware(Ending, log_prompts=settings.log_prompts)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.allow_origins, allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),  # those of OpenAI's client for JavaScript are many and change
            expose_headers=("X-Request-ID", "Retry-After"),
        )  # fmt: skip
    app.add_middleware(Observing, metrics=service.metrics)
    return app


def _matching(paths: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda path: paths.fullmatch(path) is not None
