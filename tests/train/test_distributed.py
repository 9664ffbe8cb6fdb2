"""The unified step on 1, 2 and 4 processes, under DDP and FSDP2: the gradient of the one-process big batch, 1e-12.

The big batch's gradient is that of one graph in one process (``test_step.py`` holds it against a slow twin). Processes
run on the CPU and talk over gloo.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gritkit.config import EmbeddingConfig
from gritkit.data import EmbeddingRecord, GenerativeRecord, Lengths, MixedBatch, Mixer, load, pack_batch, share_of
from gritkit.data import tokenise as tokenised
from gritkit.losses import InfoNCE, NextToken
from gritkit.model import GritModel
from gritkit.train import Objective, unified_step
from gritkit.train.figures import GradientHalves
from gritkit.train.world import World
from tests.distributed import in_processes
from tests.models import exact, gradients, language_model, tokenizer

RECORDS = [
    EmbeddingRecord.of(f"question {i} " * (1 + i % 3), [f"answer {i % 5}"], [f"wrong {i}", "none " * (i % 4 + 1)])
    for i in range(7)
]
ANSWERED = [
    EmbeddingRecord.of(f"who {i}", [f"it was {i} " * 2], [f"nobody {i}"], answer=f"number {i} it was") for i in range(3)
]
CHATS = [GenerativeRecord.of([f"say {i} " * (1 + i), f"{i} it is " * (1 + i % 4)]) for i in range(6)]
OBJECTIVE = Objective(
    contrastive=InfoNCE(temperature=0.1),
    next_token=NextToken(reduction="mixed", group=4),
    embedding_weight=0.7,
    generative_weight=1.3,
)


def made(*, lora: bool = False, checkpointing: bool = False) -> GritModel:
    lm: Any = language_model("mistral_window", dtype=torch.float64)
    model = exact(GritModel.from_parts(lm, tokenizer(), EmbeddingConfig(prompt_format="grit")))
    if lora:
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model.lm = get_peft_model(lm, config).double()
        model._backbone = type(model._backbone)(model.lm)
    if checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


def drawn(model: GritModel, *, embedding: bool = True, generation: bool = True, answers: bool = False) -> MixedBatch:
    records = [*(RECORDS if embedding else []), *(CHATS if generation else []), *(ANSWERED if answers else [])]
    data = tokenised(load(records), model.tokens, Lengths(query=64, passage=64, generative=160))
    return Mixer(data, embedding_batch_size=8, generative_batch_size=6, num_hard_negatives=2).draw()


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def expected(model: GritModel, mixed: MixedBatch, objective: Objective) -> tuple[Tensor, Tensor]:
    work = pack_batch(share_of(mixed, objective.next_token.shares), 10_000, len(model.tokens.bos_ids))
    losses = unified_step(model, work, objective)
    backward(losses.total)
    return gradients(model), losses.total.detach()


def wrapped(model: GritModel, kind: str, world_size: int) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in model._backbone.base.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def one_process(
    kind: str, mixed: MixedBatch, objective: Objective, how: dict[str, bool], grad_cache: bool, budget: int
) -> tuple[Tensor, Tensor]:
    world = World.here()
    root = made(**how)
    num_bos = len(root.tokens.bos_ids)
    model = wrapped(root, kind, world.size)
    work = pack_batch(share_of(mixed, objective.next_token.shares, world.rank, world.size), budget, num_bos)
    for _ in range(2):  # a second step meets what the first one left behind
        model.zero_grad()
        losses = unified_step(model, work, objective, backward, world=world, grad_cache=grad_cache)
    return gradients(model), losses.total


CASES = [
    (kind, size, how)
    for kind in ("ddp", "fsdp")
    for size in (1, 2, 4)
    for how in ({}, {"checkpointing": True}, {"lora": True}, {"lora": True, "checkpointing": True})
    if size < 4 or not how.get("checkpointing") or how.get("lora")
]


@pytest.mark.parametrize("answers", [False, True], ids=["", "answers"])
@pytest.mark.parametrize(("kind", "size", "how"), CASES, ids=lambda x: "+".join(x) if isinstance(x, dict) else str(x))
def test_gradient_is_that_of_the_big_batch(kind: str, size: int, how: dict[str, bool], answers: bool) -> None:
    model = made(**how)
    mixed = drawn(model, answers=answers)
    wanted, loss = expected(model, mixed, OBJECTIVE)
    for grad_cache, budget in ((True, 64), (False, 200)):
        for found, total in in_processes(size, one_process, kind, mixed, OBJECTIVE, how, grad_cache, budget):
            torch.testing.assert_close(total, loss, rtol=1e-12, atol=0)
            assert (found - wanted).norm() / wanted.norm() < 1e-12


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("half", ["embedding", "generation"])
def test_one_half_alone(kind: str, half: str) -> None:
    model = made()
    mixed = drawn(model, embedding=half == "embedding", generation=half == "generation")
    if half == "embedding":
        model._backbone.head[0].requires_grad_(False)  # as the trainer does: nothing of this half reaches it
    wanted, _ = expected(model, mixed, OBJECTIVE)

    def one(size: int) -> Tensor:
        root = made()
        root._backbone.head[0].requires_grad_(half == "generation")
        model = wrapped(root, kind, size)
        world = World.here()
        work = pack_batch(share_of(mixed, OBJECTIVE.next_token.shares, world.rank, size), 64)
        for _ in range(2):
            model.zero_grad()
            unified_step(model, work, OBJECTIVE, backward, world=world)
        return gradients(model)

    for found in in_processes(3, one, 3):
        assert (found - wanted).norm() / wanted.norm() < 1e-12


def test_a_process_without_any_row_takes_part() -> None:
    """Two queries and one example on four processes."""
    model = made()
    whole = drawn(model)
    half = whole.contrastive
    assert half is not None
    two = [i for i, owner in enumerate(half.owners) if owner < 2]
    mixed = MixedBatch(
        dataclasses.replace(
            half,
            queries=half.queries[:2],
            query_words=half.query_words[:2],
            alone=half.alone[:2],
            answers=half.answers[:2],
            passages=[half.passages[i] for i in two],
            owners=[half.owners[i] for i in two],
            passage_words=[half.passage_words[i] for i in two],
        ),
        whole.generative[:1],
    )
    wanted, _ = expected(model, mixed, OBJECTIVE)
    for kind in ("ddp", "fsdp"):
        for found, _ in in_processes(4, one_process, kind, mixed, OBJECTIVE, {}, True, 64):
            assert (found - wanted).norm() / wanted.norm() < 1e-12


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_ratio_of_both_gradients_is_that_of_the_weights_or_of_the_original_code(size: int) -> None:
    """exact: the same contrastive gradient on any number of processes; gritlm: 1/size of it."""
    model = made()
    mixed = drawn(model)
    alone = dataclasses.replace(OBJECTIVE, generative_weight=0.0)
    both, _ = expected(model, mixed, OBJECTIVE)
    contrastive, _ = expected(model, mixed, alone)
    next_token = both - contrastive
    gritlm = dataclasses.replace(OBJECTIVE, loss_scale="gritlm")
    for found, _ in in_processes(size, one_process, "ddp", mixed, gritlm, {}, True, 64):
        ratio = ((found - next_token) @ contrastive) / (contrastive @ contrastive)
        assert ratio.item() == pytest.approx(1 / size, rel=1e-10)
        assert (found - next_token - contrastive / size).norm() / contrastive.norm() < 1e-12


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_gradients_of_both_halves_are_measured_alike(kind: str) -> None:
    mixed = drawn(made())

    def one(size: int) -> dict[str, Tensor]:
        model = wrapped(made(), kind, size) if size > 1 else made()
        world = World.here()
        work = pack_batch(share_of(mixed, OBJECTIVE.next_token.shares, world.rank, size), 64)
        halves = GradientHalves(model.parameters())
        unified_step(model, work, OBJECTIVE, backward, world=world, halves=halves)
        return {"whole": gradients(model), **halves.figures}

    expected = one(1)
    assert -1 < expected["grad_cosine"] < 1
    for found in in_processes(2, one, 2):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
