from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from gritkit.errors import InputError
from gritkit.losses import InfoNCE

Q, P, H = 5, 12, 7


def vectors(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [normalize(torch.randn(n, H, generator=generator, dtype=torch.float64), dim=-1) for n in (Q, P)]
    queries, passages = (x.to(dtype).requires_grad_() for x in made)
    return queries, passages


def slow_twin(
    queries: Tensor, passages: Tensor, loss: InfoNCE, owner: list[int], query_words: list[int], passage_words: list[int]
) -> Tensor:
    """One query at a time, one passage at a time, as the formula is written."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(queries)):
        terms = []
        for j in range(len(passages)):
            own = owner[j] == i
            same_text = passage_words[j] == passage_words[i]
            other_answer = j < len(queries) and query_words[owner[j]] == query_words[i]
            if j != i and (
                (not loss.in_batch_negatives and not own) or (loss.mask_same_text and (same_text or other_answer))
            ):
                continue
            terms.append(((queries[i] * passages[j]).sum() / loss.temperature).exp())
        total = total - (((queries[i] * passages[i]).sum() / loss.temperature).exp() / torch.stack(terms).sum()).log()
    return total


OWNER = [0, 1, 2, 3, 4, 0, 0, 1, 2, 2, 3, 4]
QUERY_WORDS = [10, 11, 10, 13, 14]  # queries 0 and 2 read alike
PASSAGE_WORDS = [20, 21, 22, 21, 24, 25, 26, 20, 28, 22, 30, 31]  # 1 = 3; 7 = positive of 0; 9 = positive of its own 2


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_values_and_gradients_equal_the_slow_twin(in_batch: bool, mask: bool, temperature: float) -> None:
    loss = InfoNCE(temperature=temperature, in_batch_negatives=in_batch, mask_same_text=mask)
    fast, slow = vectors(), vectors()
    value = loss(
        *fast,
        owner_P=torch.tensor(OWNER),
        query_words_Q=torch.tensor(QUERY_WORDS),
        passage_words_P=torch.tensor(PASSAGE_WORDS),
    )
    expected = slow_twin(*slow, loss, OWNER, QUERY_WORDS, PASSAGE_WORDS)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    value.backward()
    expected.backward()
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-13)


def test_closed_forms() -> None:
    queries, passages = vectors()
    plain = InfoNCE(temperature=0.1)(queries, passages)
    torch.testing.assert_close(plain, cross_entropy(queries @ passages.T / 0.1, torch.arange(Q), reduction="sum"))
    same = torch.ones(4, 1, dtype=torch.float64)
    assert InfoNCE()(same, same.repeat(3, 1)).item() == pytest.approx(4 * math.log(12))
    far = InfoNCE(temperature=1.0)(torch.eye(3, dtype=torch.float64) * 500, torch.eye(3, dtype=torch.float64))
    assert far.item() == pytest.approx(0.0, abs=1e-12)
    alone = InfoNCE(in_batch_negatives=False)(queries, passages[:Q], owner_P=torch.arange(Q))
    assert alone.item() == 0.0


def test_it_is_computed_in_fp32_under_autocast_and_from_bf16() -> None:
    queries, passages = vectors(torch.float32)
    exact = InfoNCE()(queries, passages)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = InfoNCE()(queries, passages)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, exact)
    assert InfoNCE()(queries.bfloat16(), passages.bfloat16()).dtype == torch.float32


def test_it_is_sentence_transformers_multiple_negatives_ranking_loss() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    theirs = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)  # type: ignore[arg-type]
    queries, passages = (x.detach() for x in vectors(torch.float32))
    expected = theirs.compute_loss_from_embeddings([queries, passages[:Q], passages[Q : 2 * Q]], None)  # type: ignore[arg-type]
    torch.testing.assert_close(InfoNCE(temperature=0.05)(queries, passages[: 2 * Q]) / Q, expected)


def test_nonsense_is_refused() -> None:
    queries, passages = vectors()
    with pytest.raises(InputError, match="temperature=0"):
        InfoNCE(temperature=0)
    with pytest.raises(InputError, match="need as many positives"):
        InfoNCE()(queries, passages[:2])
    with pytest.raises(InputError, match="needs owner_P"):
        InfoNCE(in_batch_negatives=False)(queries, passages)
