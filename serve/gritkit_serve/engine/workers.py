"""Threads for library code, and what its forward passes know of who asked for it.

    short    tokenising, grammars: no passes, or next to none
    bases    knowledge bases, read and changed
    scores   documents scored for a query, which may take a minute

Each kind has threads of its own: a flood of long work must not stand before what everybody needs. All of them compute
on one core. OpenMP gives every thread that asks for more a team of its own, and where the teams have more threads than
there are cores they sleep between two operations instead of waiting for the next: on two cores a small one took 50 us
alone and 330 us beside another team.

This module knows nothing about models or what the code does.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

T = TypeVar("T")
Kind = Literal["short", "bases", "scores"]


@dataclass(eq=False)
class Caller:
    """Who asked for the work that a thread does."""

    adapter: str | None = None
    abandoned: bool = False
    """Nobody waits for it any more."""


_CALLER: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


def current_caller() -> Caller:
    """Of the work that this thread does; nobody in particular in a thread that is no worker's."""
    return _CALLER.get(None) or Caller()


class Workers:
    """``threads`` of each kind. All but :meth:`shutdown` is called under one lock."""

    def __init__(self, threads: Mapping[Kind, int]) -> None:
        self._pools = {
            kind: ThreadPoolExecutor(number, thread_name_prefix=f"gritkit-{kind}", initializer=use_cores, initargs=(1,))
            for kind, number in threads.items()
        }
        self._unfinished: Counter[Kind] = Counter()

    def unfinished(self, kind: Kind) -> int:
        """Calls of a kind that run or wait for a thread."""
        return self._unfinished[kind]

    @property
    def num_unfinished(self) -> int:
        """Of all kinds."""
        return self._unfinished.total()

    def submit(self, kind: Kind, caller: Caller, function: Callable[[], T]) -> Future[T]:
        """What becomes of it; :meth:`done` is to be called then."""
        context = contextvars.copy_context()
        context.run(_CALLER.set, caller)
        future = self._pools[kind].submit(context.run, function)
        self._unfinished[kind] += 1
        return future

    def done(self, kind: Kind) -> None:
        """One of a kind has ended."""
        self._unfinished[kind] -= 1

    def shutdown(self) -> None:
        """Begin nothing more, and wait for nobody."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def use_cores(number: int) -> None:
    """For torch in this thread; threads that ask it for the first time after this have as many."""
    torch.get_num_threads()  # which sets a thread up when it is first asked, with what another one set last
    torch.set_num_threads(number)
