"""Engine: what a server holds. Its thread owns the device; requests come from event loops, passes from worker threads.

    generate   a request -> a Generation, whose events come while it decodes with everybody else's
    embed      token sequences -> vectors, packed with everybody else's
    call       library code in a worker thread, whose forward passes are interleaved with the rest

A request that fails does not end the engine. When a pass fails for a reason that is not the request's own, the engine
is "failed", takes nothing more, and comes back as soon as a pass over a few tokens succeeds.

This module knows nothing about HTTP or knowledge bases.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from gritkit import GritModel
from gritkit.errors import GritkitError, InputError
from gritkit.generation.decoder import Request
from gritkit.tokens import TokenSeq, sequence
from gritkit_serve.engine.adapters import Adapters
from gritkit_serve.engine.constraint import JsonConstraint, JsonGrammars
from gritkit_serve.engine.delivery import Delivery
from gritkit_serve.engine.embedding import Embedding, Texts
from gritkit_serve.engine.errors import Abandoned, EngineFailed, NotServing, Overloaded
from gritkit_serve.engine.fairness import FairShare
from gritkit_serve.engine.generating import Generating
from gritkit_serve.engine.generation import Generation
from gritkit_serve.engine.limits import EngineLimits
from gritkit_serve.engine.passes import Pass, Passes
from gritkit_serve.engine.workers import Caller, Kind, Workers, current_caller, use_cores

T = TypeVar("T")
State = Literal["starting", "ready", "failed", "draining", "stopped"]
_LOG = logging.getLogger("gritkit.serve")
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class Load:
    """What the engine has to do and what it has done."""

    state: State
    running: int
    """Generations that have a slot."""
    waiting: int
    """Generations that wait for one."""
    waiting_tokens: int
    """Of texts that wait to be embedded."""
    calls: int
    """Library calls that run or wait for a thread."""
    failures: int
    """Times that a pass failed for no request's own reason."""
    counts: Mapping[str, int]
    """Since the start: ``finished``, ``failed``, ``cancelled``, ``prompt_tokens``, ``cached_tokens``,
    ``completion_tokens`` of generations; ``texts``, ``tokens``, ``rows`` of embedding."""
    seconds: Mapping[str, float]
    """Device time of each kind of work."""


class Engine:
    """One model's. Made, started once and stopped once. Raises CheckpointError for an adapter that does not fit."""

    def __init__(
        self, model: GritModel, *, limits: EngineLimits | None = None, adapters: Mapping[str, Path] | None = None
    ) -> None:
        self.model = model
        self.limits = limits or EngineLimits()
        self.state: State = "starting"
        self._adapters = Adapters(model, adapters or {})
        self._wake = threading.Condition()
        self._delivery = Delivery()
        use = self._adapters.use
        self._generating = Generating(model, self.limits, use, self._delivery)
        self._embedding = Embedding(model, self.limits.row_tokens, use, self._delivery)
        self._passes = Passes(use)
        self._kinds: dict[str, Generating | Embedding | Passes] = {
            kind.name: kind for kind in (self._generating, self._embedding, self._passes)
        }
        self._share = FairShare(tuple(self._kinds))
        self._workers = Workers(
            {"short": self.limits.workers, "bases": self.limits.base_workers, "scores": self.limits.score_workers}
        )
        self._num_cores = torch.get_num_threads()
        self._failures = 0
        self._ending = False
        self._in_turn = False
        """Whether work is under way, which may be counted nowhere until it has its place."""
        self._thread = threading.Thread(target=self._run, name="gritkit-engine", daemon=True)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters beside the plain model."""
        return self._adapters.names

    @property
    def slot_tokens(self) -> int:
        """Tokens that a prompt and its answer may have."""
        return min(self.limits.slot_tokens, self.model.context_length)

    def start(self) -> None:
        """Take the device. Ready when this returns, or it raises what the first pass raised."""
        self.model.run_passes(self._run_pass, row_tokens=self.limits.row_tokens)
        try:
            self._try_out()
        except BaseException:
            self.model.run_passes(None)
            raise
        self._become("ready", after="starting")
        self._thread.start()

    def stop(self, *, drain_s: float) -> None:
        """Take nothing more, finish what is there within ``drain_s`` seconds, end the rest, give up the device.

        A library call cannot be ended: one that is left has its next pass refused, and passes are again run by whoever
        asks for them when no such call is left.
        """
        if self.state == "stopped":
            return
        deadline = time.monotonic() + drain_s
        with self._wake:
            self.state = "draining"
            while self._busy() and (left := deadline - time.monotonic()) > 0:
                self._wake.wait(min(left, 0.05))  # calls end without waking anybody
            self._ending = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._workers.shutdown()
        with self._wake:
            self.state = "stopped"
            self._give_up_passes()

    def _give_up_passes(self) -> None:
        """Under the lock: once it has stopped and no call is left, which would run its passes beside other work."""
        if self.state == "stopped" and not self._workers.num_unfinished:
            self.model.run_passes(None)

    # -- what clients ask for ------------------------------------------------------------------------------------

    def generate(self, request: Request, *, adapter: str | None = None, salt: str = "") -> Generation:
        """Queue a request, from a coroutine. ``salt``: who may share the key-values of its prompt's beginning.

        Raises:
            InputError: for a prompt that does not fit, or an adapter that there is not.
            Overloaded, NotServing: when it was not taken.
        """
        self._adapters.check(adapter)
        taken = request.num_laid + len(request.prompt_ids)
        if not request.prompt_ids or taken >= self.slot_tokens:
            raise InputError(
                f"the prompt has {taken} tokens and this server takes 1 to {self.slot_tokens} with the answer"
            )
        if salt:
            request = dataclasses.replace(request, salt=salt)
        generation = Generation(request, adapter, self._notify)
        with self._wake:
            self._check_serving()
            if self._generating.num_waiting >= self.limits.waiting_generations:
                raise Overloaded(f"{self._generating.num_waiting} generations are waiting", self._retry_after_s())
            self._generating.add(generation)
            self._wake.notify_all()
        return generation

    async def embed(
        self, sequences: Sequence[TokenSeq], *, dim: int | None = None, adapter: str | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors, float32 [n, dim or H]. Cancelled, what was not yet embedded is dropped.

        Raises:
            InputError: for a dimension or an adapter that there is not.
            Overloaded, NotServing: when they were not taken. EngineFailed: when their pass failed.
        """
        self._adapters.check(adapter)
        if dim is not None and not 1 <= dim <= self.model.dim:
            raise InputError(f"dim={dim} must be between 1 and {self.model.dim}")
        loop = asyncio.get_running_loop()
        vectors = np.empty((len(sequences), self.model.dim), dtype=np.float32)
        if not sequences:
            return vectors[:, :dim]
        job = Texts(sequences, adapter, vectors, loop.create_future(), loop)
        with self._wake:
            self._check_serving()
            waiting = self._embedding.num_tokens
            if waiting and waiting + job.num_tokens > self.limits.waiting_tokens:
                raise Overloaded(f"texts of {waiting} tokens are waiting", self._retry_after_s())
            self._embedding.add(job)
            self._wake.notify_all()
        try:
            vectors = (await job.future)[:, :dim]
        except asyncio.CancelledError:
            job.cancelled = True
            raise
        return vectors if dim is None else vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    async def call(self, function: Callable[[], T], *, kind: Kind = "short", adapter: str | None = None) -> T:
        """Run library code in a worker thread; its forward passes are the engine's. Returns and raises as it does.

        Cancelled, it runs on to its next pass, which is refused.

        Raises:
            Overloaded, NotServing: when it was not taken.
        """
        self._adapters.check(adapter)
        caller = Caller(adapter)
        with self._wake:
            self._check_serving()
            if (waiting := self._workers.unfinished(kind)) >= self.limits.waiting_calls:
                raise Overloaded(f"{waiting} calls are waiting for a thread", self._retry_after_s())
            future = self._workers.submit(kind, caller, function)  # before stop() can take the threads away
        future.add_done_callback(lambda _: self._call_done(kind))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            caller.abandoned = True
            raise

    def json_constraint(self, schema: dict[str, Any] | None = None) -> JsonConstraint:
        """For one request whose answer is to be JSON: any object, or what the schema allows.

        Compiling takes a while: to be called in a worker thread. Raises InputError for a schema that cannot be used.
        """
        return self._grammars.constraint(schema)

    @cached_property
    def _grammars(self) -> JsonGrammars:
        return JsonGrammars(self.model.tokens, int(self.model.config.get_text_config().vocab_size), self.model.eos_ids)

    def load(self) -> Load:
        """For metrics and scheduling; may be a step behind."""
        return Load(
            state=self.state,
            running=self._generating.num_running,
            waiting=self._generating.num_waiting,
            waiting_tokens=self._embedding.num_tokens,
            calls=self._workers.num_unfinished,
            failures=self._failures,
            counts={**self._generating.counts, **self._embedding.counts},
            seconds=dict(self._share.seconds),
        )

    def _check_serving(self) -> None:
        if self.state != "ready":
            raise NotServing(f"the server is {self.state}")

    def _retry_after_s(self) -> float:
        """About how long what waits now will take, by what has been done so far; between 1 and 60 s."""
        done = self._generating.counts["finished"]
        each = self._share.seconds["generation"] / done if done else 1.0
        tokens = self._embedding.counts["tokens"]
        per_token = self._share.seconds["embedding"] / tokens if tokens else 1e-4
        seconds = each * self._generating.num_waiting + per_token * self._embedding.num_tokens
        return float(min(60, max(1, math.ceil(seconds))))

    def _call_done(self, kind: Kind) -> None:
        with self._wake:
            self._workers.done(kind)
            self._give_up_passes()
            self._wake.notify_all()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _busy(self) -> bool:
        return self._in_turn or self._workers.num_unfinished > 0 or self._wanting()

    def _wanting(self) -> bool:
        return any(kind.wanting() for kind in self._kinds.values())

    # -- the thread that owns the device -------------------------------------------------------------------------

    def _run_pass(self, forward: Callable[[], Any]) -> Any:
        """What :meth:`gritkit.GritModel.run_passes` is given."""
        if threading.current_thread() is self._thread or self.state == "starting":
            return forward()
        if current_caller().abandoned:
            raise Abandoned("nobody waits for this any more")
        one = Pass(forward)
        with self._wake:
            if self._ending:
                raise NotServing("the server has stopped")
            self._passes.add(one)
            self._wake.notify_all()
        return one.result.result()

    @torch.inference_mode()
    def _run(self) -> None:
        use_cores(self._num_cores)  # a worker has one
        while True:
            with self._wake:
                self._in_turn = False
                while not self._ending and not self._wanting():
                    self._wake.wait()
                if self._ending:
                    break
                turn = self._share.next([name for name, kind in self._kinds.items() if kind.wanting()])
                self._in_turn = True
            assert turn is not None
            self._take_turn(turn)
        self._end(NotServing("the server stopped before this was done"))

    def _take_turn(self, turn: str) -> None:
        kind = self._kinds[turn]
        since = time.perf_counter()
        try:
            kind.run()
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)  # or the time would be the next turn's
        except GritkitError as error:  # the request's own
            kind.fail(error)
        except Exception as error:
            _LOG.exception("a pass of %s failed", turn)
            kind.fail(EngineFailed(f"a forward pass failed: {type(error).__name__}"))
            self._delivery.send()
            self._recover()
        finally:
            self._share.spent(turn, time.perf_counter() - since)
            self._delivery.send()

    def _recover(self) -> None:
        """Until a small pass succeeds, or the server is to stop; nothing is taken meanwhile."""
        with self._wake:
            self._in_turn = False  # what failed has ended: stop() need not wait for this
        self._failures += 1
        self._become("failed", after="ready")
        pause = 0.05
        while not self._ending:
            try:
                self._adapters.use(None)
                self._try_out()
            except Exception:
                _LOG.exception("the model still fails; trying again in %.2f s", pause)
                with self._wake:
                    self._wake.wait_for(lambda: self._ending, pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                break
        self._become("ready", after="failed")

    def _become(self, state: State, *, after: State) -> None:
        """Unless it has become something else: an engine that is to stop takes nothing again."""
        with self._wake:
            if self.state == after:
                self.state = state

    def _try_out(self) -> None:
        """A few tokens in both modes."""
        tokens = sequence([*self.model.tokens.bos_ids, *self.model.tokens.encode("a")], pool=True)
        self.model.embed_tokens([tokens])
        if self.model.writes:
            self.model.complete("a", max_new_tokens=1)

    def _end(self, error: NotServing) -> None:
        for kind in self._kinds.values():
            kind.refuse_waiting(error)
            kind.fail(error)
        self._delivery.send()
