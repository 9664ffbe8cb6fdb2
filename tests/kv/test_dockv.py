from __future__ import annotations

import pytest
import torch

from gritkit.kv.dockv import DocKV


def document(num_tokens: int = 4, num_bos: int = 1) -> DocKV:
    keys, values = (tuple(torch.randn(2, num_tokens, 8) for _ in range(3)) for _ in range(2))
    return DocKV(tuple(range(num_tokens)), num_bos, keys, values)


def test_it_counts_tokens_and_bytes() -> None:
    assert len(document()) == 4
    assert document().num_bytes == 6 * 2 * 4 * 8 * 4


def test_following_another_it_loses_its_own_beginning() -> None:
    first = document()
    follows = first.after_first()
    assert (follows.ids, follows.num_bos, len(follows)) == ((1, 2, 3), 0, 3)
    for whole, part in zip((*first.keys, *first.values), (*follows.keys, *follows.values), strict=True):
        assert torch.equal(part, whole[:, 1:])
    assert follows.after_first() is follows
    assert document(num_bos=0).after_first().ids == (0, 1, 2, 3)


def test_moving_to_where_it_is_costs_nothing() -> None:
    here = document()
    assert here.to(torch.device("cpu")) is here
    there = here.to(torch.device("meta"))
    assert {x.device.type for x in (*there.keys, *there.values)} == {"meta"}
    assert (there.ids, there.num_bos) == (here.ids, here.num_bos)


def test_key_values_that_do_not_fit_are_refused() -> None:
    whole = document()
    with pytest.raises(ValueError, match="do not fit 3 tokens"):
        DocKV((0, 1, 2), 1, whole.keys, whole.values)
    with pytest.raises(ValueError, match="got 3 and 2"):
        DocKV(whole.ids, 1, whole.keys, whole.values[:2])
    with pytest.raises(ValueError, match="every layer"):
        DocKV(whole.ids, 1, (), ())
