from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gritkit.data.sampling import Lottery, Turns, generator, probabilities
from gritkit.errors import InputError


@given(sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=6), alpha=st.floats(0, 2))
def test_chances_are_sizes_to_the_power(sizes: list[int], alpha: float) -> None:
    names = [f"s{i}" for i in range(len(sizes))]
    chances = probabilities(alpha, names, sizes)
    expected = [size**alpha / sum(other**alpha for other in sizes) for size in sizes]
    np.testing.assert_allclose(chances, expected, rtol=1e-12)


def test_weights_are_by_name_and_the_full_name_goes_over_the_bare() -> None:
    names = ["a.jsonl", "a.parquet", "b.jsonl.gz"]
    np.testing.assert_allclose(probabilities({"a.parquet": 4, "a": 1, "b": 3}, names, [1, 1, 1]), [1 / 8, 4 / 8, 3 / 8])
    with pytest.raises(InputError, match=r"no weight for a\.jsonl: add one"):
        probabilities({"a.parquet": 1, "b": 1}, names, [1, 1, 1])
    with pytest.raises(InputError, match="weight of 'a' is inf"):
        probabilities({"a": float("inf"), "b": 1}, names, [1, 1, 1])


def test_streams_of_chance_differ_by_purpose_and_place() -> None:
    points = [
        generator(seed, purpose, *numbers).random()
        for seed in (0, 1)
        for purpose in ("a", "b")
        for numbers in ((1,), (2,), (1, 2))
    ]
    assert len(set(points)) == len(points)
    assert points[0] == generator(0, "a", 1).random()


def test_turns_go_through_blocks_and_cycles_and_hold_one_block() -> None:
    asked = []

    def read(cycle: int, block: int) -> Sequence[str]:
        asked.append((cycle, block))
        return [f"{cycle}{block}{place}" for place in range((2, 3, 0)[block])]

    turns = Turns(read)
    assert [turns.draw() for _ in range(7)] == ["000", "001", "010", "011", "012", "100", "101"]
    assert turns.state() == [1, 0, 2]
    assert asked == [(0, 0), (0, 1), (0, 2), (1, 0)]
    other = Turns(read)
    asked.clear()
    other.load_state([0, 1, 1])
    assert [other.draw() for _ in range(3)] == ["011", "012", "100"]
    assert asked == [(0, 1), (0, 2), (1, 0)]


def test_a_lottery_picks_by_chance_whatever_was_drawn_before_and_resumes() -> None:
    def made(seed: int) -> Lottery[str]:
        turns = [Turns(lambda cycle, block, name=name: [] if block else [name] * 3) for name in "abc"]
        return Lottery(turns, [0.2, 0.0, 0.8], seed, "source")

    lottery = made(1)
    drawn = [lottery.draw() for _ in range(2000)]
    counts = Counter(drawn)
    assert set(counts) == {"a", "c"}
    assert abs(counts["a"] / 2000 - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5
    first = made(1)
    assert [first.draw() for _ in range(5)] == drawn[:5]
    state = first.state_dict()
    resumed = made(1)
    resumed.load_state_dict(state)
    assert [resumed.draw() for _ in range(20)] == drawn[5:25]
    another = made(2)
    assert [another.draw() for _ in range(100)] != drawn[:100]
    assert bool(lottery)
    assert not Lottery([], [], 0, "source")
