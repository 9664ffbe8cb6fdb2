from __future__ import annotations

import pytest
import torch

from gritkit.errors import InputError
from gritkit.kv.dockv import DocKV, check_join, joined_ids, left_out


def document(num_tokens: int = 4, num_bos: int = 1, num_prompt: int = 2, first: int = 0) -> DocKV:
    keys, values = (tuple(torch.randn(2, num_tokens, 8) for _ in range(3)) for _ in range(2))
    return DocKV(tuple(range(first, first + num_tokens)), num_bos, num_prompt, keys, values)


def test_it_counts_tokens_layers_and_bytes() -> None:
    assert len(document()) == 4
    assert document().num_layers == 3
    assert document().num_bytes == 6 * 2 * 4 * 8 * 4


def test_a_layer_is_its_keys_and_values() -> None:
    one = document()
    for index in range(3):
        keys, values = one.layer(index, torch.device("cpu"))
        assert torch.equal(keys, one.keys[index])
        assert torch.equal(values, one.values[index])


def test_what_follows_another_leaves_out_what_the_join_says() -> None:
    documents = [document(), document(5, 1, 3, first=10), document(3, 0, 0, first=20)]
    assert joined_ids(documents, "whole") == [0, 1, 2, 3, 10, 11, 12, 13, 14, 20, 21, 22]
    assert joined_ids(documents, "no-bos") == [0, 1, 2, 3, 11, 12, 13, 14, 20, 21, 22]
    assert joined_ids(documents, "text") == [0, 1, 2, 3, 13, 14, 20, 21, 22]
    assert joined_ids(documents[:1], "text") == [0, 1, 2, 3]
    assert joined_ids([], "whole") == []
    assert [left_out(documents[1], join) for join in ("no-bos", "text", "whole")] == [1, 3, 0]


def test_an_unknown_join_is_named_with_the_known_ones() -> None:
    assert check_join("text") == "text"
    with pytest.raises(InputError, match=r"join='bos' is not one of 'no-bos', 'text', 'whole'"):
        check_join("bos")


def test_moving_to_where_it_is_costs_nothing() -> None:
    here = document()
    assert here.to(torch.device("cpu")) is here
    there = here.to(torch.device("meta"))
    assert {x.device.type for x in (*there.keys, *there.values)} == {"meta"}
    assert (there.ids, there.num_bos, there.num_prompt) == (here.ids, here.num_bos, here.num_prompt)


def test_a_layer_may_keep_the_last_tokens_alone() -> None:
    keys, values = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    assert len(DocKV((0, 1, 2, 3), 0, 0, (keys,), (values,))) == 4
    empty = torch.empty(2, 0, 8)
    assert DocKV((0, 1), 1, 1, (empty,), (empty,)).num_bytes == 0


def test_key_values_that_do_not_fit_are_refused() -> None:
    whole = document()
    with pytest.raises(ValueError, match="do not fit 3 tokens"):
        DocKV((0, 1, 2), 1, 2, whole.keys, whole.values)
    with pytest.raises(ValueError, match="got 3 and 2"):
        DocKV(whole.ids, 1, 2, whole.keys, whole.values[:2])
    with pytest.raises(ValueError, match="every layer"):
        DocKV(whole.ids, 1, 2, (), ())
    with pytest.raises(ValueError, match="do not fit"):
        DocKV(whole.ids, 1, 2, whole.keys, tuple(x[:, :2] for x in whole.values))
    with pytest.raises(ValueError, match="do not fit"):
        DocKV(whole.ids, 1, 2, tuple(x[0] for x in whole.keys), tuple(x[0] for x in whole.values))


@pytest.mark.parametrize(("num_bos", "num_prompt"), [(2, 1), (-1, 0), (1, 5), (0, -1)])
def test_beginnings_that_are_none_are_refused(num_bos: int, num_prompt: int) -> None:
    whole = document()
    with pytest.raises(ValueError, match="no beginnings of 4 tokens"):
        DocKV(whole.ids, num_bos, num_prompt, whole.keys, whole.values)
