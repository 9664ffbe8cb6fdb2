"""The unified step in float64 against a slow twin: one text a forward, losses as their formulas are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gritkit.batch import pack
from gritkit.data import (
    EmbeddingRecord,
    GenerativeRecord,
    Lengths,
    MixedBatch,
    Mixer,
    PackedBatch,
    load,
    pack_batch,
    share_of,
    tokenise,
)
from gritkit.errors import InputError, UnsupportedModelError
from gritkit.losses import InfoNCE, NextToken
from gritkit.model import GritModel
from gritkit.plan import Plan, Segment
from gritkit.tokens import TokenSeq
from gritkit.train import Objective, unified_step
from gritkit.train import step as step_module
from tests.models import exact, gradients, grit_model

RECORDS = [
    EmbeddingRecord.of(["Find", "first question " * 3], ["its answer"], ["no answer", "none " * 9]),
    EmbeddingRecord.of("second", ["another answer of some more words", "a"], ["its answer"]),
    EmbeddingRecord.of("third question", ["x y z " * 5]),
    EmbeddingRecord.of(["Read", "4"], [["Read", "four"]], ["five", "six"]),
]
ANSWERED = [
    EmbeddingRecord.of("who jumps", ["the fox jumps over the dog"], ["nobody sleeps", "a cat " * 4], answer="the fox"),
    EmbeddingRecord.of("what is read", ["documents are read once"], ["tabs and lines"], answer="documents, once"),
]
CHATS = [
    GenerativeRecord.of(["hi", "hello there", "how are you", "well"]),
    GenerativeRecord.of("a raw text that goes on for a while"),
    GenerativeRecord.of(["count", "one two three four five"]),
]
OBJECTIVE = Objective(
    contrastive=InfoNCE(temperature=0.05), next_token=NextToken(), embedding_weight=0.7, generative_weight=1.3
)
Records = Sequence[EmbeddingRecord | GenerativeRecord]


def mixed(model: GritModel, records: Records, alone: Sequence[str] = ()) -> MixedBatch:
    data = tokenise(load(records), model.tokens, Lengths(query=64, passage=64, generative=160))
    mixer = Mixer(
        data, embedding_batch_size=6, generative_batch_size=3, num_hard_negatives=2, no_in_batch_negatives=alone
    )
    return mixer.draw()


def packed(model: GritModel, batch: MixedBatch, budget: int, objective: Objective = OBJECTIVE) -> PackedBatch:
    return pack_batch(share_of(batch, objective.next_token.shares), budget, len(model.tokens.bos_ids))


def answer_nll(model: GritModel, batch: MixedBatch, text: TokenSeq) -> Tensor:
    """The summed loss of one answer, from its passages in the order that packing gave them: run alone, by an
    explicit plan, through the model's own logits."""
    (row,) = packed(model, batch, 10_000).read_rows
    at, ends = 0, row.lengths_S.cumsum(0).tolist()
    sequences = row.ids_T.split(row.lengths_S.tolist())
    (wanted,) = (i for i, ids in enumerate(sequences) if row.reads_S[i] and ids.tolist() == text.ids.tolist())
    reads = row.reads_S[wanted]
    num_bos = len(model.tokens.bos_ids)
    parts, positions, segments, seen, place = [], [], [], [], 0
    for index, (_, end) in enumerate(reads):
        start = end - int(row.lengths_S[ends.index(end)])
        hidden = num_bos if index else 0
        parts.append(row.ids_T[start:end])
        positions.append(torch.arange(end - start) + place - hidden)
        segments.append(Segment(at, at + end - start, False))
        seen.append((at + hidden, at + end - start))
        at, place = at + end - start, place + end - start - hidden
    answer = sequences[wanted]
    loss_mask = row.loss_mask_T[ends[wanted - 1] : ends[wanted]]
    segments.append(Segment(at, at + len(answer), True, tuple(seen)))
    ids = torch.cat([*parts, answer])
    where = torch.cat([*positions, torch.arange(len(answer)) + place])
    targets = at + loss_mask.nonzero()[:, 0]
    logits = model._backbone.logits(ids, where, Plan(tuple(segments)), targets - 1)
    return -logits.log_softmax(-1)[torch.arange(len(targets)), ids[targets]].sum()


def slow_twin(model: GritModel, batch: MixedBatch, objective: Objective = OBJECTIVE) -> Tensor:
    """The same total from single texts."""
    total = torch.zeros((), dtype=torch.float64)
    half = batch.contrastive
    sums = [model("next_token", pack([text])) for text in batch.generative]
    counts = [int(text.loss_mask.sum()) for text in batch.generative]
    answers = [answer for answer in half.answers if answer is not None] if half else []
    sums += [answer_nll(model, batch, answer) for answer in answers]
    counts += [int(answer.loss_mask.sum()) for answer in answers]
    if sums:
        reduction = objective.next_token.reduction
        if reduction == "token":
            loss = torch.stack(sums).sum() / sum(counts)
        else:
            group = objective.next_token.group if reduction == "mixed" else 1
            starts = range(0, len(sums), group)
            means = [torch.stack(sums[i : i + group]).sum() / sum(counts[i : i + group]) for i in starts]
            loss = torch.stack(means).mean()
        total = total + 1.3 * loss
    if half is not None:
        queries = [model("embed", pack([text]))[0] for text in half.queries]
        passages = [model("embed", pack([text]))[0] for text in half.passages]
        losses = []
        for i, query in enumerate(queries):
            kept = [
                j
                for j in range(len(passages))
                if j == i
                or (half.passage_words[j] != half.passage_words[i] and (half.owners[j] == i or not half.alone[i]))
            ]
            scores = torch.stack([query @ passages[j] for j in kept]) / 0.05
            losses.append(torch.logsumexp(scores, 0) - query @ passages[i] / 0.05)
        total = total + 0.7 * torch.stack(losses).mean()
    return total


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "records",
    [RECORDS + CHATS, RECORDS, CHATS, RECORDS + ANSWERED + CHATS, ANSWERED],
    ids=["both", "embedding", "generation", "answers too", "answers"],
)
@pytest.mark.parametrize("name", ["mistral_window", "qwen3"])
def test_gradients_equal_the_slow_twin(name: str, records: Records) -> None:
    model = exact(grit_model(name, dtype=torch.float64, prompt_format="grit")).train()
    batch = mixed(model, records)
    expected = slow_twin(model, batch)
    expected.backward()
    wanted = gradients(model)
    for budget in (1, 48, 10_000):
        for grad_cache in (True, False):
            work = packed(model, batch, budget)
            losses = unified_step(model, work, OBJECTIVE, backward, grad_cache=grad_cache)
            found = gradients(model)
            assert not losses.total.requires_grad
            torch.testing.assert_close(losses.total, expected.detach(), rtol=1e-12, atol=0)
            assert (found - wanted).norm() / wanted.norm() < 1e-12
            assert (losses.contrastive is None) == (batch.contrastive is None)
            assert (losses.next_token is None) == (work.num_counted == 0)
            texts = len(work.embed_rows) + len(work.read_rows)
            assert len(losses.twice) == (max(0, texts - 1) if grad_cache else 0)
    whole = unified_step(model, work, OBJECTIVE)  # one graph, one backward
    backward(whole.total)
    assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-12


@pytest.mark.parametrize("next_token", [NextToken(reduction="sample"), NextToken(reduction="mixed", group=2)])
def test_every_reduction_of_the_next_token_loss(next_token: NextToken) -> None:
    model = exact(grit_model("llama", dtype=torch.float64, prompt_format="grit")).train()
    objective = dataclasses.replace(OBJECTIVE, next_token=next_token)
    batch = mixed(model, RECORDS + ANSWERED + CHATS)
    expected = slow_twin(model, batch, objective)
    expected.backward()
    wanted = gradients(model)
    for budget in (1, 10_000):
        losses = unified_step(model, packed(model, batch, budget, objective), objective, backward)
        torch.testing.assert_close(losses.total, expected.detach(), rtol=1e-12, atol=0)
        assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-12


def test_queries_that_stay_alone_meet_only_their_own_passages() -> None:
    model = exact(grit_model("llama", dtype=torch.float64, prompt_format="grit")).train()
    batch = mixed(model, RECORDS, alone=["records"])
    assert batch.contrastive is not None
    assert all(batch.contrastive.alone)
    expected = slow_twin(model, batch)
    losses = unified_step(model, packed(model, batch, 64), OBJECTIVE, backward)
    torch.testing.assert_close(losses.total, expected.detach(), rtol=1e-12, atol=0)
    assert losses.masked is not None
    assert losses.masked > 0.5


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact(grit_model("llama", dtype=torch.float64, prompt_format="grit")).train()
    work = packed(model, mixed(model, RECORDS + CHATS), 64)
    whole = unified_step(model, work, OBJECTIVE, backward)
    wanted = gradients(model)
    monkeypatch.setattr(step_module, "_BLOCK", {"cpu": 1})
    blocks = unified_step(model, work, OBJECTIVE, backward)
    torch.testing.assert_close(blocks.total, whole.total, rtol=1e-13, atol=0)
    assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-13


@pytest.mark.parametrize("records", [RECORDS + CHATS, RECORDS + ANSWERED + CHATS], ids=["both", "answers too"])
def test_checkpointing_changes_no_gradient(records: Records) -> None:
    model = exact(grit_model("mistral_window", dtype=torch.float64, prompt_format="grit")).train()
    work = packed(model, mixed(model, records), 64)
    unified_step(model, work, OBJECTIVE, backward)
    wanted = gradients(model)
    model.activation_checkpointing_enable()
    unified_step(model, work, OBJECTIVE, backward)
    assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-12


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_second_run_has_the_dropout_of_the_first(checkpointing: bool) -> None:
    """Vectors of both runs agree bit by bit, and so the gradient is that of the loss that is reported."""
    model = exact(grit_model("llama", dtype=torch.float64, prompt_format="grit")).train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    if checkpointing:
        model.activation_checkpointing_enable()
    seen: dict[int, list[Tensor]] = {}
    forward = model.forward

    def spy(task: str, row: object) -> object:
        out = forward(task, row)  # type: ignore[arg-type]
        vectors = out[0] if task == "read" else out
        if task != "next_token":
            seen.setdefault(id(row), []).append(vectors.detach().clone())
        return out

    model.forward = spy  # type: ignore[method-assign, assignment]
    work = packed(model, mixed(model, RECORDS + ANSWERED + CHATS), 48)
    torch.manual_seed(0)
    unified_step(model, work, OBJECTIVE, backward)
    twice = [runs for runs in seen.values() if len(runs) == 2]
    assert len(twice) == len(work.embed_rows) + len(work.read_rows) - 1 > 1
    assert all(torch.equal(first, second) for first, second in twice)
    first, second = (next(iter(seen.values())), model("embed", work.embed_rows[0]))
    assert not torch.equal(first[0], second)  # there is dropout to replay


def test_the_router_loss_is_the_mean_over_examples_however_rows_are_cut() -> None:
    model = grit_model("mixtral", prompt_format="grit").train()
    objective = dataclasses.replace(OBJECTIVE, router=model.router_balance, router_weight=0.3)
    batch = mixed(model, RECORDS + CHATS)
    single = [model("next_token", pack([text]), objective.router)[1] for text in batch.generative]
    balance = torch.stack(single).mean()
    expected = slow_twin(model, batch).float() + 0.3 * balance
    expected.backward()
    wanted = gradients(model)
    for budget in (1, 10_000):
        losses = unified_step(model, packed(model, batch, budget), objective, backward)
        torch.testing.assert_close(losses.router, balance.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(losses.total, expected.detach(), rtol=1e-5, atol=0)
        # transformers routes in fp32, whatever the model's dtype
        assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-5
    whole = unified_step(model, packed(model, batch, 10_000), objective)
    backward(whole.total)
    assert (gradients(model) - wanted).norm() / wanted.norm() < 1e-5
    with pytest.raises(UnsupportedModelError, match="no mixture of experts"):
        _ = grit_model().router_balance


def test_an_empty_batch_is_refused() -> None:
    model = grit_model()
    with pytest.raises(InputError, match="empty batch"):
        unified_step(model, packed(model, MixedBatch(None, []), 64), OBJECTIVE)
