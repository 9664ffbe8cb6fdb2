"""Rows of many clients that decode together: who waits for a slot, who has one, and a step of all of them.

Each adapter has slots of its own, since one pass runs under one adapter; adapters with rows take turns.

This module knows nothing about threads: the engine calls it from the one that owns the device, :meth:`add` and
:meth:`wanting` under its lock.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable

from gritkit import GritModel
from gritkit.errors import GenerationError, GritkitError, InputError
from gritkit.generation.decoder import Decoder
from gritkit.generation.params import Failed, Finished
from gritkit_serve.engine.delivery import Delivery
from gritkit_serve.engine.errors import EngineFailed
from gritkit_serve.engine.generation import Generation
from gritkit_serve.engine.limits import EngineLimits

_LOG = logging.getLogger("gritkit.serve")
_COUNTED = ("finished", "failed", "cancelled", "prompt_tokens", "cached_tokens", "completion_tokens")


class Generating:
    """The generations of one engine."""

    name = "generation"

    def __init__(
        self, model: GritModel, limits: EngineLimits, use: Callable[[str | None], None], delivery: Delivery
    ) -> None:
        self._model = model
        self._limits = limits
        self._use = use
        self._delivery = delivery
        self._arrived: deque[Generation] = deque()
        self._waiting: deque[Generation] = deque()
        self._decoders: dict[str | None, Decoder] = {}
        self._rows: dict[str | None, dict[int, Generation]] = {}
        self._turn: deque[str | None] = deque()
        self.counts: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))
        """Since the start: generations finished, failed and cancelled, tokens of prompts, cached and generated ones."""

    @property
    def num_waiting(self) -> int:
        return len(self._arrived) + len(self._waiting)

    @property
    def num_running(self) -> int:
        return sum(len(rows) for rows in list(self._rows.values()))

    def add(self, generation: Generation) -> None:
        self._arrived.append(generation)

    def wanting(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.num_waiting or self.num_running)

    def run(self) -> None:
        """Let those who left go, those who wait join, and the next adapter's rows take a step."""
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        self._release_cancelled()
        self._join()
        busy = [adapter for adapter in self._turn if self._rows[adapter]]
        if not busy:
            return
        adapter = busy[0]
        self._turn.remove(adapter)
        self._turn.append(adapter)
        self._use(adapter)
        decoder, rows = self._decoders[adapter], self._rows[adapter]
        for event in decoder.step():
            generation = rows[event.row]
            if isinstance(event, Failed):
                del rows[event.row]
                self._fail_alone(generation, event.error)
                continue
            if isinstance(event, Finished):
                del rows[event.row]
                self._count(event)
            self._delivery.add(generation.loop, generation.deliver, event)

    def _fail_alone(self, generation: Generation, error: GritkitError) -> None:
        if not isinstance(error, InputError):  # what the client has sent is no matter of the operator's
            what = error if isinstance(error, GenerationError) else type(error).__name__
            _LOG.error("a generation failed: %s", what, exc_info=error.__cause__ or error)
        self._end(generation, error)

    def _end(self, generation: Generation, error: GritkitError) -> None:
        """With an error; one whose client has left counts as cancelled."""
        self.counts["cancelled" if generation.cancelled else "failed"] += 1
        self._delivery.add(generation.loop, generation.deliver, error)

    def fail(self, error: GritkitError) -> None:
        """End everything that runs with this error; what waits has not been touched and goes on waiting."""
        for rows in self._rows.values():
            for generation in rows.values():
                self._end(generation, error)
        self._rows.clear()
        self._decoders.clear()
        self._turn.clear()

    def refuse_waiting(self, error: GritkitError) -> None:
        """End everything that waits."""
        for queue in (self._arrived, self._waiting):
            while queue:
                self._end(queue.popleft(), error)

    def _release_cancelled(self) -> None:
        for adapter, rows in self._rows.items():
            for row, generation in list(rows.items()):
                if generation.cancelled:
                    del rows[row]
                    self._count(Finished(row, self._decoders[adapter].leave(row)))
        gone = [generation for generation in self._waiting if generation.cancelled]
        for generation in gone:
            self._waiting.remove(generation)
        self.counts["cancelled"] += len(gone)

    def _join(self) -> None:
        """In the order of their coming, as far as there are slots."""
        still = deque[Generation]()
        try:
            while self._waiting:
                generation = self._waiting.popleft()
                if not self._join_one(generation):
                    still.append(generation)
        finally:
            self._waiting = still + self._waiting

    def _join_one(self, generation: Generation) -> bool:
        """Whether it need not wait any longer. What it raises has ended the generation as well."""
        try:
            decoder = self._decoder(generation.adapter)
            if not decoder.num_free:
                return False
            row = decoder.join(generation.request)
        except GritkitError as error:
            self._end(generation, error)
        except Exception as error:  # it may be the device's, which brought documents to the slot
            self._end(generation, EngineFailed(f"a forward pass failed: {type(error).__name__}"))
            raise
        else:
            self._rows[generation.adapter][row] = generation
        return True

    def _decoder(self, adapter: str | None) -> Decoder:
        if adapter not in self._decoders:
            self._decoders[adapter] = self._model.decoder(
                num_slots=self._limits.slots,
                max_length=self._limits.slot_tokens,
                prefill_chunk=self._limits.prefill_chunk,
                share_prefixes=True,
            )
            self._rows[adapter] = {}
            self._turn.append(adapter)
        return self._decoders[adapter]

    def _count(self, event: Finished) -> None:
        usage = event.completion.usage
        cancelled = event.completion.finish_reason == "cancelled"
        self.counts.update(
            {
                "cancelled" if cancelled else "finished": 1,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
            }
        )
