from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gritkit.batch import pack, rows_of, token_budget
from gritkit.errors import InputError
from gritkit.tokens import sequence


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_rows_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = rows_of(lengths, budget)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= budget or len(row) == 1
        assert [lengths[i] for i in row] == sorted((lengths[i] for i in row), reverse=True)
    # no row stands empty while the next one's first would have fitted
    for row, following in pairwise(rows):
        assert sum(lengths[i] for i in row) + lengths[following[0]] > budget


def test_packing_keeps_the_order_and_restarts_positions() -> None:
    first = sequence([5, 6, 7], pool=[False, True, True], loss=[False, True, False])
    second = sequence([8, 9], pool=True)
    batch = pack([first, second])
    assert batch.ids_T.tolist() == [5, 6, 7, 8, 9]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.lengths_S.tolist() == [3, 2]
    assert batch.pool_mask_T.tolist() == [False, True, True, True, True]
    assert batch.loss_mask_T.tolist() == [False, True, False, False, False]
    batch.ids_T[0] = 1  # a row has its own memory
    assert first.ids[0] == 5


def test_a_target_with_nothing_before_it_is_refused() -> None:
    """In a packed row the token before it is another text's."""
    with pytest.raises(InputError, match="first token"):
        pack([sequence([5, 6]), sequence([7, 8], loss=True)])


def test_lengths_stay_on_the_cpu() -> None:
    batch = pack([sequence([1, 2])]).to(torch.device("meta"))
    assert batch.ids_T.device.type == "meta"
    assert batch.lengths_S.device.type == "cpu"
    assert isinstance(batch.lengths_S.numpy(), np.ndarray)


def test_every_device_has_a_budget() -> None:
    assert token_budget(torch.device("cpu")) <= token_budget(torch.device("mps")) < token_budget(torch.device("cuda:1"))
    assert token_budget(torch.device("xpu")) > 0
