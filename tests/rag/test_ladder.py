from __future__ import annotations

from typing import Any

import pytest

from gritkit.errors import InputError
from gritkit.rag.ladder import LINK_TOKENS, Facts, check_reuse, choose, join_of
from gritkit.rag.verdicts import Verdict

FACTS: dict[str, Any] = {
    "movable": True,
    "exact_alone": False,
    "has_prefix": False,
    "load_s": None,
    "prefill_s": None,
}


def verdict(link_tokens: int = 0, *, allowed: bool = True, codec: str = "int8", join: Any = "no-bos") -> Verdict:
    return Verdict(
        reuse="linked" if link_tokens else "cached",
        codec=codec,
        join=join,
        link_tokens=link_tokens,
        allowed=allowed,
        reason=f"{link_tokens} {allowed}",
    )


NO = {"allowed": False}


@pytest.mark.parametrize(
    ("facts", "verdicts", "way", "says"),
    [
        ({}, [], ("cached", 0), "no gate"),
        ({"movable": False, "has_prefix": True}, [verdict()], ("off", 0), "cannot be moved"),
        ({"has_prefix": True}, [verdict(**NO)], ("prefix", 0), "read in this order before"),
        ({"has_prefix": True, "load_s": 9.0, "prefill_s": 1.0}, [], ("prefix", 0), "in this order"),
        ({"exact_alone": True}, [verdict(**NO)], ("prefix", 0), "causal"),
        ({"load_s": 2.0, "prefill_s": 1.0}, [verdict()], ("off", 0), "loading would take 2000 ms and reading 1000 ms"),
        ({"load_s": 1.0, "prefill_s": 1.0}, [], ("cached", 0), "no gate"),
        ({"load_s": 0.0, "prefill_s": 1.0}, [], ("cached", 0), "no gate"),
        ({"load_s": 2.0, "prefill_s": None}, [], ("cached", 0), "no gate"),
        ({"load_s": None, "prefill_s": 1.0}, [], ("cached", 0), "no gate"),
        ({}, [verdict()], ("cached", 0), "the gate allows it: 0 True"),
        ({}, [verdict(8), verdict(4)], ("linked", 4), "the gate allows it: 4 True"),
        ({}, [verdict(**NO), verdict(8), verdict(32)], ("linked", 8), "8 True"),
        ({}, [verdict(**NO), verdict(4, **NO), verdict(8)], ("linked", 8), "8 True"),
        ({}, [verdict(8, **NO), verdict(**NO)], ("off", 0), "allows nothing else: 0 False"),
        ({}, [verdict(codec="int4", **NO)], ("cached", 0), "no gate"),
        ({}, [verdict(join="text", **NO)], ("cached", 0), "no gate"),
    ],
)
def test_auto(facts: dict[str, Any], verdicts: list[Verdict], way: tuple[str, int], says: str) -> None:
    for order in (verdicts, verdicts[::-1]):
        found = choose("auto", Facts(**FACTS | facts), order, codec="int8", join="no-bos", link_tokens=None)
        assert (found.reuse, found.link_tokens) == way
        assert says in found.reason


@pytest.mark.parametrize("asked", ["prefix", "cached", "linked", "off", "query", "query_doc", "doc_query"])
def test_what_is_asked_for_is_taken_whatever_the_gate_says(asked: str) -> None:
    check_reuse(asked)
    facts = Facts(**FACTS | {"load_s": 9.0, "prefill_s": 1.0})
    found = choose(asked, facts, [verdict(**NO)], codec="int8", join="text", link_tokens=None)
    assert (found.reuse, found.reason, found.join) == (asked, "asked for", "text")
    assert found.link_tokens == (LINK_TOKENS if asked == "linked" else 0)


@pytest.mark.parametrize(
    ("asked", "verdicts", "expected"),
    [
        (None, [], LINK_TOKENS),
        (5, [verdict(8)], 5),
        (None, [verdict(8), verdict(4), verdict()], 4),
        (None, [verdict(4, **NO), verdict(8)], 8),
        (None, [verdict(4, **NO)], 4),
        (None, [verdict(4, codec="exact"), verdict(4, join="whole")], LINK_TOKENS),
    ],
)
def test_link_tokens_are_those_asked_for_or_the_gates(
    asked: int | None, verdicts: list[Verdict], expected: int
) -> None:
    found = choose("linked", Facts(**FACTS), verdicts, codec="int8", join="no-bos", link_tokens=asked)
    assert found.link_tokens == expected


def test_the_join_is_the_one_asked_for_or_the_gates() -> None:
    assert join_of(None, [], "int8") == "no-bos"
    assert join_of("whole", [verdict(join="text")], "int8") == "whole"
    assert join_of(None, [verdict(8, join="whole"), verdict(join="text")], "int8") == "text"
    assert join_of(None, [verdict(join="text", **NO), verdict(8, join="whole")], "int8") == "whole"
    assert join_of(None, [verdict(join="text")], "int4") == "no-bos"
    assert join_of(None, [verdict(join="text", **NO)], "int8") == "no-bos"


def test_a_way_that_there_is_not_is_refused_with_those_there_are() -> None:
    check_reuse("auto")
    with pytest.raises(InputError, match="reuse='on' is not one of 'auto', 'prefix', 'cached', 'linked', 'off'"):
        check_reuse("on")
