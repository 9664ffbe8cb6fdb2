"""Batches made ready ahead of their use, in threads, in the order in which they are drawn.

Draws happen one at a time and only making ready is parallel, so the sequence is the same for any number of threads.
Tokenizers and numpy let other threads run while they work; that is why threads suffice.

This module knows nothing about what is drawn or what making ready means.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, TypeVar

from gritkit.errors import InputError

D = TypeVar("D")
P = TypeVar("P")
S = TypeVar("S")


class Prefetched(Generic[D, P, S]):
    """An iterator of (what is made ready of a draw, the state after that draw); close it when it is no longer used.

    ``draw() -> (drawn, state)`` is called by one thread at a time. At most ``depth`` draws wait for their use. With
    ``workers`` 0 everything happens when it is asked for. What ``draw`` or ``prepare`` raises is raised where its
    batch would have been, and ends the iterator.

    Raises:
        InputError: for fewer than 0 workers or a depth below 1.
    """

    def __init__(
        self, draw: Callable[[], tuple[D, S]], prepare: Callable[[D], P], *, workers: int = 1, depth: int = 2
    ) -> None:
        for name, value, least in (("workers", workers, 0), ("depth", depth, 1)):
            if value < least:
                raise InputError(f"{name}={value} must be at least {least}")
        self._draw, self._prepare = draw, prepare
        self._closed = False
        self._ended = False
        """Nothing is drawn any more: it was closed, or something was raised."""
        self._drawing = threading.Lock()
        self._room = threading.Semaphore(depth)
        self._made: queue.SimpleQueue[Future[tuple[P, S]]] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"prefetch-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Prefetched[D, P, S]:
        return self

    def __next__(self) -> tuple[P, S]:
        if self._closed:
            raise StopIteration
        try:
            if not self._threads:
                drawn, state = self._draw()
                return self._prepare(drawn), state
            result = self._made.get().result()
        except BaseException:
            self.close()
            raise
        self._room.release()
        return result

    def close(self) -> None:
        """End the threads, after what they are doing now. What was drawn ahead is lost."""
        self._closed = self._ended = True
        for _ in self._threads:
            self._room.release()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Prefetched[D, P, S]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while not self._ended:
            self._room.acquire()
            future: Future[tuple[P, S]] = Future()
            try:
                with self._drawing:
                    if self._ended:
                        return
                    self._made.put(future)  # in the order of draws
                    try:
                        drawn, state = self._draw()
                    except BaseException:
                        self._ended = True  # before another thread draws again
                        raise
                future.set_result((self._prepare(drawn), state))
            except BaseException as error:  # it belongs to who waits for the batch
                self._ended = True
                future.set_exception(error)
