"""Whether the process lives (/health), whether it can be sent work (/ready), and its figures (/metrics).

This module knows nothing about what the work is.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from gritkit_serve.errors import HttpError
from gritkit_serve.metrics import CONTENT_TYPE
from gritkit_serve.service import ServiceDep, State

router = APIRouter(tags=["operation"])
PATIENCE: dict[State, float] = {"loading": 2.0, "starting": 2.0, "failed": 5.0, "draining": 30.0, "stopped": 30.0}
"""Retry-After of a server that is not ready, in seconds."""


@router.get("/health")
@router.head("/health", include_in_schema=False)
async def health(service: ServiceDep) -> dict[str, str]:
    """200 as long as the process answers, whatever its state: a supervisor restarts it only when it does not."""
    return {"status": "ok", "state": service.state}


@router.get("/ready")
@router.head("/ready", include_in_schema=False)
async def ready(service: ServiceDep) -> dict[str, str]:
    """200 when requests are taken; 503 while the model is loaded, the engine restarts, or the server drains."""
    state = service.state
    if state != "ready":
        raise HttpError(f"not ready: {state}", status=503, code=state, retry_after_s=PATIENCE[state])
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    """Prometheus' text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)
