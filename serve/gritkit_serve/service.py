"""What every route holds: the engine, its model, the knowledge bases, the settings; and who is asking.

    from gritkit_serve.service import CallDep, ServiceDep

    @router.post("/v1/things")
    async def things(body: Things, service: ServiceDep, call: CallDep) -> ...:
        generation = service.engine.generate(request, salt=call.salt)

When the client goes away, or the request's time is over, the route is cancelled (asyncio.CancelledError): a generation
that it awaits or iterates over frees its slot by that; what else must be undone stands in a ``finally``.

This module knows nothing about HTTP messages or about what routes do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Depends, Request

from gritkit_serve.admission import Gate
from gritkit_serve.calls import Call
from gritkit_serve.errors import HttpError
from gritkit_serve.json_schemas import JsonSchemas
from gritkit_serve.metrics import Metrics, of_load, of_reads
from gritkit_serve.settings import Settings
from gritkit_serve.uploads import FileReader

if TYPE_CHECKING:
    from gritkit.model import GritModel
    from gritkit_serve.bases import Bases
    from gritkit_serve.engine import Engine

State = Literal["loading", "starting", "ready", "failed", "draining", "stopped"]
LOADING_RETRY_S = 2.0


@dataclass
class Service:
    """One model and what stands around it. The port is bound before the model is loaded; until then a route that needs
    it answers 503."""

    model_name: str
    settings: Settings = field(default_factory=Settings)
    metrics: Metrics = field(default_factory=Metrics)
    bases: Bases | None = None
    """None where the server was started without --kb."""
    started: float = field(default_factory=time.time)
    """Unix time."""
    gate: Gate = field(init=False, repr=False)
    """What every request passes."""
    files: FileReader = field(init=False, repr=False)
    """What files of clients are read by."""
    json_schemas: JsonSchemas = field(init=False, repr=False)
    """What clients' schemas are tried by before they are compiled."""
    _engine: Engine | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.gate = Gate(self.settings.max_requests)
        self.files = FileReader(self.settings)
        self.json_schemas = JsonSchemas()

    def attach(self, engine: Engine) -> None:
        """The model is loaded."""
        self._engine = engine
        self.metrics.watch(lambda: of_load(engine.load()))
        self.metrics.watch(lambda: of_reads(self.bases.counts()) if self.bases is not None else ())

    @property
    def engine(self) -> Engine:
        """Raises HttpError (503) until the model is loaded."""
        if self._engine is None:
            raise HttpError(
                f"the model {self.model_name} is being loaded: GET /ready tells when it is there",
                status=503, code="loading", retry_after_s=LOADING_RETRY_S,
            )  # fmt: skip
        return self._engine

    @property
    def model(self) -> GritModel:
        """Its passes run on the engine's thread. Raises HttpError (503) until it is loaded."""
        return self.engine.model

    @property
    def state(self) -> State:
        if self.gate.closed:
            return "draining"
        return "loading" if self._engine is None else self._engine.state

    def stop(self, drain_s: float) -> None:
        """End the engine's work within the time, then let go of the knowledge bases. Blocks; call it in a thread."""
        if self._engine is not None:
            self._engine.stop(drain_s=drain_s)
        if self.bases is not None:
            self.bases.close()


async def current_service(request: Request) -> Service:
    """The dependency behind ``ServiceDep``; were it no coroutine, each request would wait for a thread."""
    service: Service = request.app.state.service
    return service


async def current_call(request: Request) -> Call:
    """The dependency behind ``CallDep``, a coroutine too."""
    call: Call = request.scope["state"]["call"]
    return call


ServiceDep = Annotated[Service, Depends(current_service)]
CallDep = Annotated[Call, Depends(current_call)]
