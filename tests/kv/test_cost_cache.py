from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gritkit.kv.cost_cache import CostCache, Ranking


class PlainCache:
    """GreedyDual-Size by the book: the whole list is searched for the lowest, the oldest of equals."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.clock = 0.0
        self.entries: dict[str, tuple[float, object, int, float]] = {}  # in the order of last use

    def get(self, key: str) -> object:
        if key not in self.entries:
            return None
        _, value, size, cost = self.entries.pop(key)
        self.entries[key] = (self.clock + cost / max(size, 1), value, size, cost)
        return value

    def put(self, key: str, value: object, size: int, cost: float) -> bool:
        self.entries.pop(key, None)
        if size > self.max_bytes:
            return False
        while self.num_bytes + size > self.max_bytes:
            victim = min(self.entries, key=lambda key: self.entries[key][0])
            self.clock = max(self.clock, self.entries.pop(victim)[0])
        self.entries[key] = (self.clock + cost / max(size, 1), value, size, cost)
        return True

    @property
    def num_bytes(self) -> int:
        return sum(size for _, _, size, _ in self.entries.values())


KEYS = st.sampled_from("abcdefgh")
STEPS = st.one_of(
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("put"), KEYS, st.integers(0, 30), st.integers(0, 5)),
    st.tuples(st.just("pop"), KEYS),
)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 60), st.lists(STEPS, max_size=200))
def test_it_does_what_the_plain_one_does(max_bytes: int, steps: list[tuple[object, ...]]) -> None:
    cache, plain = CostCache[object](max_bytes), PlainCache(max_bytes)
    for number, (what, key, *rest) in enumerate(steps):
        assert isinstance(key, str)
        if what == "get":
            assert cache.get(key) == plain.get(key)
        elif what == "pop":
            assert cache.pop(key) == plain.entries.pop(key, (0, None))[1]
        else:
            size, cost = rest
            assert isinstance(size, int)
            assert isinstance(cost, int)
            assert cache.put(key, number, size=size, cost=cost) == plain.put(key, number, size, cost)
        assert cache.num_bytes == plain.num_bytes <= max_bytes
        assert len(cache) == len(plain.entries)
        assert all(key in cache for key in plain.entries)


def test_what_is_dear_for_its_size_outlives_what_is_not_but_not_for_ever() -> None:
    cache = CostCache[int](30)
    cache.put("dear", 0, size=10, cost=35)
    for number in range(1, 13):
        cache.put(f"cheap {number}", number, size=10, cost=10)
        assert ("dear" in cache) == (number <= 8)


def test_of_equals_the_least_recently_used_goes() -> None:
    cache = CostCache[str](30)
    for key in "abc":
        cache.put(key, key, size=10)
    assert cache.get("a") == "a"
    cache.put("d", "d", size=10)
    assert "b" not in cache
    assert cache.counts == {"hit": 1, "evicted": 1}


def test_what_does_not_fit_is_not_kept_and_replaces_what_it_should_have_replaced() -> None:
    cache = CostCache[str](10)
    assert cache.put("a", "old", size=10)
    assert not cache.put("a", "new", size=11)
    assert cache.get("a") is None
    assert cache.num_bytes == 0


def test_clear_forgets_everything() -> None:
    cache = CostCache[str](10)
    cache.put("a", "a", size=10)
    cache.clear()
    assert (len(cache), cache.num_bytes, cache.pop("a")) == (0, 0, None)
    assert cache.put("b", "b", size=10)


def test_impossible_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        CostCache[str](-1)
    for size, cost in ((-1, 1.0), (1, -1.0), (1, float("nan")), (1, float("inf"))):
        with pytest.raises(ValueError, match="not negative"):
            Ranking().put("a", size=size, cost=cost)


def test_the_ranking_spares_and_keeps_what_was_spared() -> None:
    ranking = Ranking()
    for number, key in enumerate("abc"):
        ranking.put(key, size=1, cost=number)
    assert ranking.pop_lowest(spare={"a"}) == "b"
    assert ranking.pop_lowest(spare={"a", "c"}) is None
    assert (len(ranking), ranking.num_bytes) == (2, 2)
    assert [ranking.pop_lowest(), ranking.pop_lowest(), ranking.pop_lowest()] == ["a", "c", None]


def test_many_uses_do_not_make_it_grow() -> None:
    ranking = Ranking()
    for key in "abc":
        ranking.put(key, size=1, cost=1)
    for _ in range(10_000):
        ranking.touch("a")
    assert len(ranking._heap) < 200
    assert ranking.pop_lowest() == "b"


def test_threads_do_not_break_the_budget() -> None:
    cache = CostCache[int](1000)

    def work(seed: int) -> None:
        for number in range(2000):
            key = str((number * 7 + seed) % 50)
            if cache.get(key) is None:
                cache.put(key, number, size=seed + number % 60)
            if number % 11 == 0:
                cache.pop(key)
            assert cache.num_bytes <= 1000

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = cache.num_bytes
    for key in range(50):
        cache.pop(str(key))
    assert 0 < sizes <= 1000
    assert cache.num_bytes == len(cache) == 0
    assert cache.counts["hit"] + cache.counts["missing"] == 4 * 2000


def test_another_budget_leaves_what_is_worth_most() -> None:
    cache = CostCache[str](100)
    for key, cost in (("a", 3.0), ("b", 1.0), ("c", 2.0), ("d", 0.0)):
        cache.put(key, key, size=20, cost=cost)
    cache.resize(50)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.get("d")) == ("a", None, "c", None)
    assert (cache.num_bytes, cache.max_bytes, cache.counts["evicted"]) == (40, 50, 2)
    assert not cache.put("e", "e", size=60)
    cache.resize(100)
    assert cache.put("e", "e", size=60)
    assert len(cache) == 3
    cache.resize(0)
    assert (len(cache), cache.num_bytes) == (0, 0)
    with pytest.raises(ValueError, match="-1"):
        cache.resize(-1)
