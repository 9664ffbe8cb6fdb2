"""Texts of many clients in one packed row: one pass for as many as its budget of tokens holds.

Clients take turns, a text each, so one who sends thousands does not make another wait for more than a pass or two.

This module knows nothing about threads: the engine calls it from the one that owns the device, :meth:`add` and
:meth:`wanting` under its lock.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gritkit import GritModel
from gritkit.errors import GritkitError
from gritkit.tokens import TokenSeq
from gritkit_serve.engine.delivery import Delivery, set_error, set_result

Vectors = NDArray[np.float32]


@dataclass(eq=False)
class Texts:
    """What one client wants embedded."""

    sequences: Sequence[TokenSeq]
    adapter: str | None
    vectors: Vectors
    """Float32 [n, H], filled as they come."""
    future: asyncio.Future[Vectors]
    loop: asyncio.AbstractEventLoop
    num_taken: int = 0
    num_done: int = 0
    cancelled: bool = False
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = sum(map(len, self.sequences))


class Embedding:
    """The texts that wait for their vectors."""

    name = "embedding"

    def __init__(
        self, model: GritModel, row_tokens: int, use: Callable[[str | None], None], delivery: Delivery
    ) -> None:
        self._model = model
        self._row_tokens = row_tokens
        self._use = use
        self._delivery = delivery
        self._arrived: deque[Texts] = deque()
        self._jobs: deque[Texts] = deque()
        self._running: list[tuple[Texts, int]] = []
        self.counts: Counter[str] = Counter(texts=0, tokens=0, rows=0)
        """Since the start: texts, tokens and rows embedded."""

    @property
    def num_tokens(self) -> int:
        """Of all texts that wait."""
        return sum(job.num_tokens for job in (*self._arrived, *self._jobs))

    def add(self, job: Texts) -> None:
        self._arrived.append(job)

    def wanting(self) -> bool:
        """Whether a pass would do anything."""
        return bool(self._arrived or self._jobs)

    def run(self) -> None:
        """One row: the next text of each client in turn, until the budget is full."""
        while self._arrived:
            self._jobs.append(self._arrived.popleft())
        self._running = self._take()
        if not self._running:
            return
        self._use(self._running[0][0].adapter)
        sequences = [job.sequences[index] for job, index in self._running]
        vectors = self._model.embed_tokens(sequences)
        for (job, index), vector in zip(self._running, vectors, strict=True):
            job.vectors[index] = vector
            job.num_done += 1
            if job.num_done == len(job.sequences):
                self._delivery.add(job.loop, set_result, job.future, job.vectors)
        self.counts.update({"texts": len(sequences), "tokens": sum(map(len, sequences)), "rows": 1})
        self._running = []

    def fail(self, error: GritkitError) -> None:
        """End those who had a text in the row that failed; the others go on waiting."""
        for job in {job for job, _ in self._running}:
            job.cancelled = True
            self._delivery.add(job.loop, set_error, job.future, error)
        self._running = []

    def refuse_waiting(self, error: GritkitError) -> None:
        """End everything that waits."""
        for queue in (self._arrived, self._jobs):
            while queue:
                job = queue.popleft()
                self._delivery.add(job.loop, set_error, job.future, error)

    def _take(self) -> list[tuple[Texts, int]]:
        taken: list[tuple[Texts, int]] = []
        room, passed_over = self._row_tokens, 0
        while self._jobs and passed_over < len(self._jobs):
            job = self._jobs[0]
            if job.cancelled:
                self._jobs.popleft()
                continue
            size = len(job.sequences[job.num_taken])
            if taken and (size > room or job.adapter != taken[0][0].adapter):
                self._jobs.rotate(-1)
                passed_over += 1
                continue
            taken.append((job, job.num_taken))
            job.num_taken += 1
            job.num_tokens -= size
            room -= size
            passed_over = 0
            self._jobs.rotate(-1)
            if job.num_taken == len(job.sequences):
                self._jobs.pop()
        return taken
