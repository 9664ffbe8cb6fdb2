from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from gritkit.errors import InputError
from gritkit.losses import Asked, InfoNCE, Offered

Q, P, H = 5, 12, 7


def vectors(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [normalize(torch.randn(n, H, generator=generator, dtype=torch.float64), dim=-1) for n in (Q, P)]
    queries, passages = (x.to(dtype).requires_grad_() for x in made)
    return queries, passages


OWNER = [0, 1, 2, 3, 4, 0, 0, 1, 2, 2, 3, 4]
QUERY_WORDS = [10, 11, 10, 13, 14]  # queries 0 and 2 read alike
# 1 = 3; 7 = positive of 0; 8 = query 3 itself; 9 = positive of its own 2
PASSAGE_WORDS = [20, 21, 22, 21, 24, 25, 26, 20, 13, 22, 30, 31]


def told(alone: list[bool]) -> tuple[Asked, Offered]:
    asked = Asked(
        positive_Q=torch.arange(Q),
        number_Q=torch.arange(Q),
        words_Q=torch.tensor(QUERY_WORDS),
        alone_Q=torch.tensor(alone),
    )
    asked_words = torch.tensor(QUERY_WORDS + [-1] * (P - Q))
    offered = Offered(owner_P=torch.tensor(OWNER), words_P=torch.tensor(PASSAGE_WORDS), asked_words_P=asked_words)
    return asked, offered


def slow_twin(queries: Tensor, passages: Tensor, loss: InfoNCE, alone: list[bool]) -> Tensor:
    """One query at a time, one passage at a time, as the formula is written."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(queries)):
        terms = []
        for j in range(len(passages)):
            own = OWNER[j] == i
            same_text = PASSAGE_WORDS[j] == PASSAGE_WORDS[i]
            other_answer = j < len(queries) and QUERY_WORDS[OWNER[j]] == QUERY_WORDS[i]
            itself = PASSAGE_WORDS[j] == QUERY_WORDS[i]
            alike = same_text or other_answer or itself
            if j != i and ((alone[i] and not own) or (loss.mask_same_text and alike)):
                continue
            terms.append(((queries[i] * passages[j]).sum() / loss.temperature).exp())
        total = total - (((queries[i] * passages[i]).sum() / loss.temperature).exp() / torch.stack(terms).sum()).log()
    return total


@pytest.mark.parametrize("alone", [[False] * Q, [True] * Q, [True, False, False, True, False]])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("block", [1, 2, Q])
def test_values_and_gradients_equal_the_slow_twin(
    alone: list[bool], mask: bool, temperature: float, block: int
) -> None:
    loss = InfoNCE(temperature=temperature, mask_same_text=mask)
    fast, slow = vectors(), vectors()
    asked, offered = told(alone)
    parts = []
    for start in range(0, Q, block):
        some = asked.block(start, start + block)
        excluded = loss.excluded(some, offered)
        parts.append(loss(fast[0][start : start + block], fast[1], some.positive_Q, excluded))
    value = torch.stack(parts).sum()
    expected = slow_twin(*slow, loss, alone)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    value.backward()
    expected.backward()
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-13)


def test_closed_forms() -> None:
    queries, passages = vectors()
    first = torch.arange(Q)
    plain = InfoNCE(temperature=0.1)(queries, passages, first)
    torch.testing.assert_close(plain, cross_entropy(queries @ passages.T / 0.1, first, reduction="sum"))
    same = torch.ones(4, 1, dtype=torch.float64)
    assert InfoNCE()(same, same.repeat(3, 1), torch.arange(4)).item() == pytest.approx(4 * math.log(12))
    apart = torch.eye(3, dtype=torch.float64) * 500
    assert InfoNCE(temperature=1.0)(apart, apart, torch.arange(3)).item() == pytest.approx(0.0, abs=1e-12)
    only_positives = ~torch.eye(Q, dtype=torch.bool)
    assert InfoNCE()(queries, passages[:Q], first, only_positives).item() == 0.0
    elsewhere = InfoNCE()(queries, passages.flip(0), P - 1 - first)  # positives need not stand first
    torch.testing.assert_close(elsewhere, InfoNCE()(queries, passages, first))


def test_it_is_computed_in_fp32_under_autocast_and_from_bf16() -> None:
    queries, passages = vectors(torch.float32)
    first = torch.arange(Q)
    exact = InfoNCE()(queries, passages, first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = InfoNCE()(queries, passages, first)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, exact)
    assert InfoNCE()(queries.bfloat16(), passages.bfloat16(), first).dtype == torch.float32


def test_it_is_sentence_transformers_multiple_negatives_ranking_loss() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    theirs = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)  # type: ignore[arg-type]
    queries, passages = (x.detach() for x in vectors(torch.float32))
    expected = theirs.compute_loss_from_embeddings([queries, passages[:Q], passages[Q : 2 * Q]], None)  # type: ignore[arg-type]
    found = InfoNCE(temperature=0.05)(queries, passages[: 2 * Q], torch.arange(Q)) / Q
    torch.testing.assert_close(found, expected)


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="temperature=0"):
        InfoNCE(temperature=0)
