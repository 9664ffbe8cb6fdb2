"""The unified step in float64 against a slow twin: one text a forward, losses as their formulas are written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gritkit.batch import pack
from gritkit.data import EmbeddingRecord, GenerativeRecord, Lengths, MixedBatch, Mixer, load, pack_batch, tokenise
from gritkit.errors import InputError
from gritkit.losses import InfoNCE, NextToken
from gritkit.model import GritModel
from gritkit.train import Objective, unified_step
from tests.models import grit_model

RECORDS = [
    EmbeddingRecord.of(["Find", "first question " * 3], ["its answer"], ["no answer", "none " * 9]),
    EmbeddingRecord.of("second", ["another answer of some more words", "a"], ["its answer"]),
    EmbeddingRecord.of("third question", ["x y z " * 5]),
    EmbeddingRecord.of(["Read", "4"], [["Read", "four"]], ["five", "six"]),
]
CHATS = [
    GenerativeRecord.of(["hi", "hello there", "how are you", "well"]),
    GenerativeRecord.of("a raw text that goes on for a while"),
    GenerativeRecord.of(["count", "one two three four five"]),
]
OBJECTIVE = Objective(
    contrastive=InfoNCE(temperature=0.05), next_token=NextToken(), embedding_weight=0.7, generative_weight=1.3
)


def exact(model: GritModel) -> GritModel:
    """Norms in the model's own float64; transformers takes them in float32, whose rounding hides what is measured
    here."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, norm=module: (  # type: ignore[assignment]
                norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
            )
    return model


def mixed(model: GritModel, records: Sequence[EmbeddingRecord | GenerativeRecord]) -> MixedBatch:
    data = tokenise(load(records), model.tokens, Lengths(query=64, passage=64, generative=64))
    return Mixer(data, embedding_batch_size=4, generative_batch_size=3, num_hard_negatives=2).draw()


def slow_twin(model: GritModel, batch: MixedBatch) -> Tensor:
    """The same total from single texts."""
    total = torch.zeros((), dtype=torch.float64)
    if batch.generative:
        sums = [model("next_token", pack([text])) for text in batch.generative]
        targets = sum(int(text.loss_mask.sum()) for text in batch.generative)
        total = total + 1.3 * torch.stack(sums).sum() / targets
    half = batch.contrastive
    if half is not None:
        queries = [model("embed", pack([text]))[0] for text in half.queries]
        passages = [model("embed", pack([text]))[0] for text in half.passages]
        losses = []
        for i, query in enumerate(queries):
            kept = [j for j in range(len(passages)) if j == i or half.passage_words[j] != half.passage_words[i]]
            scores = torch.stack([query @ passages[j] for j in kept]) / 0.05
            losses.append(torch.logsumexp(scores, 0) - query @ passages[i] / 0.05)
        total = total + 0.7 * torch.stack(losses).mean()
    return total


def gradients(model: GritModel) -> Tensor:
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    model.zero_grad()
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("records", [RECORDS + CHATS, RECORDS, CHATS], ids=["both", "embedding", "generation"])
@pytest.mark.parametrize("name", ["mistral_window", "qwen3"])
def test_gradients_equal_the_slow_twin(name: str, records: list[EmbeddingRecord | GenerativeRecord]) -> None:
    model = exact(grit_model(name, dtype=torch.float64, prompt_format="grit")).train()
    batch = mixed(model, records)
    expected = slow_twin(model, batch)
    expected.backward()
    wanted = gradients(model)
    for budget in (1, 48, 10_000):
        packed = pack_batch(batch, budget)
        losses = unified_step(model, packed, OBJECTIVE, lambda loss: loss.backward())
        found = gradients(model)
        assert not losses.total.requires_grad
        torch.testing.assert_close(losses.total, expected.detach(), rtol=1e-12, atol=0)
        assert (found - wanted).norm() / wanted.norm() < 1e-12
        assert (losses.contrastive is None) == (batch.contrastive is None)
        assert (losses.next_token is None) == (not batch.generative)
    whole = unified_step(model, packed, OBJECTIVE)  # one graph, one backward
    whole.total.backward()
    assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-12


def test_checkpointing_changes_no_gradient() -> None:
    model = exact(grit_model("mistral_window", dtype=torch.float64, prompt_format="grit")).train()
    packed = pack_batch(mixed(model, RECORDS + CHATS), 64)
    unified_step(model, packed, OBJECTIVE, lambda loss: loss.backward())
    wanted = gradients(model)
    model.activation_checkpointing_enable()
    unified_step(model, packed, OBJECTIVE, lambda loss: loss.backward())
    assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-12


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InputError, match="empty batch"):
        unified_step(grit_model(), pack_batch(MixedBatch(None, []), 64), OBJECTIVE)
