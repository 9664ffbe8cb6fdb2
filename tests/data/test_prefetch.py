from __future__ import annotations

import itertools
import threading

import pytest

from gritkit.data.prefetch import Prefetched
from gritkit.errors import InputError


class Counting:
    """Draws 0, 1, 2, ... and notices when two threads draw at once."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.drawn = 0
        self.fails_at = fails_at
        self.failed = 0
        self._one = threading.Lock()

    def __call__(self) -> tuple[int, str]:
        assert self._one.acquire(blocking=False), "two threads draw at once"
        try:
            number = self.drawn
            if number == self.fails_at:
                self.failed += 1
                raise ValueError(f"no draw {number}")
            self.drawn += 1
            return number, f"after {number}"
        finally:
            self._one.release()


def threads() -> int:
    return sum(thread.name.startswith("prefetch-") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("depth", [1, 3, 50])
def test_the_sequence_is_that_of_the_draws_for_any_number_of_threads(workers: int, depth: int) -> None:
    draw = Counting()
    with Prefetched(draw, lambda number: number * number, workers=workers, depth=depth) as batches:
        assert threads() == workers
        got = list(itertools.islice(batches, 200))
        assert draw.drawn <= 200 + depth
    assert got == [(i * i, f"after {i}") for i in range(200)]
    assert threads() == 0


def test_slow_batches_keep_their_place() -> None:
    late = threading.Event()

    def prepare(number: int) -> int:
        if number == 0:
            assert late.wait(30)
        if number == 2:
            late.set()  # the first batch is ready only after the third
        return number

    with Prefetched(Counting(), prepare, workers=3, depth=3) as batches:
        assert [number for number, _ in itertools.islice(batches, 5)] == [0, 1, 2, 3, 4]


def test_no_more_than_the_depth_is_drawn_ahead() -> None:
    reached = threading.Event()
    draw = Counting()

    def prepare(number: int) -> int:
        if number == 4:
            reached.set()
        return number

    with Prefetched(draw, prepare, workers=2, depth=5) as batches:
        assert reached.wait(30)
        assert draw.drawn == 5
        next(batches)
    assert draw.drawn <= 6


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_is_raised_travels_to_its_place_and_ends_the_iterator(workers: int) -> None:
    def refuse_seven(number: int) -> int:
        if number == 7:
            raise KeyError(number)
        return number

    for draw, error, good in ((Counting(fails_at=5), ValueError, 5), (Counting(), KeyError, 7)):
        batches = Prefetched(draw, refuse_seven, workers=workers, depth=4)
        assert [next(batches)[0] for _ in range(good)] == list(range(good))
        with pytest.raises(error):
            next(batches)
        assert threads() == 0
        assert list(batches) == []
        assert draw.failed == (error is ValueError)  # and was not asked again


def test_closing_twice_or_without_use_is_fine() -> None:
    batches = Prefetched(Counting(), int, workers=2, depth=2)
    batches.close()
    batches.close()
    assert threads() == 0
    assert list(batches) == []


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="workers=-1 must be at least 0"):
        Prefetched(Counting(), int, workers=-1)
    with pytest.raises(InputError, match="depth=0 must be at least 1"):
        Prefetched(Counting(), int, depth=0)
