from __future__ import annotations

from itertools import pairwise
from statistics import mean
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from gritkit.batch import pack
from gritkit.errors import InputError
from gritkit.losses import NextToken
from tests.models import TEXTS, grit_model, language_model

EXAMPLES = st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=5), min_size=1, max_size=12)
"""Losses of every target token of every example of a batch."""


def test_shares_of_rows_add_up_to_the_mean_over_all_targets() -> None:
    model = grit_model("mistral", prompt_format="grit")
    plain = language_model("mistral")
    examples = [model.tokens.text_example(text) for text in TEXTS]
    examples.append(
        model.tokens.chat_example([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a b"}])
    )
    _, count = NextToken().shares([int(example.loss_mask.sum()) for example in examples])
    rows = [pack(examples[:1]), pack(examples[1:4]), pack(examples[4:])]
    loss = NextToken()
    with torch.no_grad():
        total = sum(loss(model("next_token", row), count) for row in rows)
        logits, targets = [], []
        for example in examples:
            ids = torch.from_numpy(example.ids)
            labels = torch.where(torch.from_numpy(example.loss_mask), ids, -100)
            logits.append(plain(ids[None]).logits[0, :-1])
            targets.append(labels[1:])
        expected = cross_entropy(torch.cat(logits), torch.cat(targets))
    torch.testing.assert_close(total, expected)


def by_the_book(loss: NextToken, examples: list[list[float]]) -> float:
    """As the words say it, with means."""
    if loss.reduction == "token":
        return mean(token for example in examples for token in example)
    if loss.reduction == "sample":
        return mean(mean(example) for example in examples)
    groups = [examples[i : i + loss.group] for i in range(0, len(examples), loss.group)]
    return mean(mean(token for example in group for token in example) for group in groups)


def settled(loss: NextToken, examples: list[list[float]], cuts: list[int]) -> float:
    """Shares asked once for the whole batch, which is then cut into rows at the given places."""
    shares, count = loss.shares([len(example) for example in examples])
    weighted = [share * sum(example) for share, example in zip(shares, examples, strict=True)]
    edges = [0, *sorted(cuts), len(weighted)]
    rows = [sum(weighted[a:b]) for a, b in pairwise(edges)]
    return sum(loss(torch.tensor(row, dtype=torch.float64), count).item() for row in rows)


@given(
    examples=EXAMPLES,
    reduction=st.sampled_from(["token", "sample", "mixed"]),
    group=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 12), max_size=3),
)
def test_every_reduction_is_its_mean_however_the_batch_is_cut(
    examples: list[list[float]], reduction: Any, group: int, cuts: list[int]
) -> None:
    loss = NextToken(reduction=reduction, group=group)
    cuts = [min(cut, len(examples)) for cut in cuts]
    assert settled(loss, examples, cuts) == pytest.approx(by_the_book(loss, examples), rel=1e-12)


@given(examples=EXAMPLES, reduction=st.sampled_from(["token", "sample", "mixed"]), groups=st.integers(0, 6))
def test_devices_that_hold_whole_groups_add_up_their_counts(
    examples: list[list[float]], reduction: Any, groups: int
) -> None:
    loss = NextToken(reduction=reduction, group=2)
    counts = [len(example) for example in examples]
    cut = 2 * groups
    (first, first_count), (second, second_count) = loss.shares(counts[:cut]), loss.shares(counts[cut:])
    assert (first + second, first_count + second_count) == loss.shares(counts)


def test_the_three_differ() -> None:
    counts = [1, 3, 4]
    assert NextToken().shares(counts) == ([1.0, 1.0, 1.0], 8)
    assert NextToken(reduction="sample").shares(counts) == ([1, 1 / 3, 1 / 4], 3)
    assert NextToken(reduction="mixed", group=2).shares(counts) == ([1 / 4, 1 / 4, 1 / 4], 2)
    assert NextToken(reduction="mixed").shares(counts) == ([1 / 8, 1 / 8, 1 / 8], 1)


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="reduction='mean' is none of 'token', 'sample', 'mixed'"):
        NextToken(reduction="mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="group=0"):
        NextToken(reduction="mixed", group=0)
    for reduction in ("token", "sample", "mixed"):
        with pytest.raises(InputError, match=r"examples \[1, 3\]"):
            NextToken(reduction=reduction).shares([2, 0, 1, 0])  # type: ignore[arg-type]
