from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gritkit.batch import Reading, pack, pack_readings, rows_of, token_budget
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


def test_an_answer_reads_its_documents_as_serving_joins_them() -> None:
    """Later documents lose their beginning, and everything else stands one right after the other."""
    documents = [sequence([0, 5, 6], pool=[False, True, True]), sequence([0, 7, 8, 9], pool=True)]
    answer = sequence([10, 11, 12], loss=[False, True, True])
    batch = pack_readings([Reading(documents, answer, 0.5), Reading(documents[1:], answer, 0.25)], num_bos=1)
    assert batch.ids_T.tolist() == [0, 5, 6, 0, 7, 8, 9, 10, 11, 12, 0, 7, 8, 9, 10, 11, 12]
    assert batch.positions_T.tolist() == [0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6]
    assert batch.reads_S == ((), (), ((0, 3), (4, 7)), (), ((10, 14),))
    assert batch.share_S.tolist() == [0, 0, 0.5, 0, 0.25]
    assert batch.loss_mask_T.nonzero()[:, 0].tolist() == [8, 9, 15, 16]
    assert len(Reading(documents, answer)) == 10
    with pytest.raises(InputError, match="at least one document"):
        pack_readings([Reading([], answer)], 1)
    with pytest.raises(InputError, match="first token cannot be"):
        pack_readings([Reading(documents, sequence([10], loss=True))], 1)


def test_lengths_stay_on_the_cpu() -> None:
    batch = pack([sequence([1, 2])]).to(torch.device("meta"))
    assert batch.ids_T.device.type == "meta"
    assert batch.lengths_S.device.type == "cpu"
    assert isinstance(batch.lengths_S.numpy(), np.ndarray)


def test_every_device_has_a_budget() -> None:
    assert token_budget(torch.device("cpu")) <= token_budget(torch.device("mps")) < token_budget(torch.device("cuda:1"))
    assert token_budget(torch.device("xpu")) > 0
