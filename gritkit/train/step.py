"""The unified step: one global batch -> both losses and their exact gradients, on one process or many.

    total = embedding_weight * contrastive / queries  +  generative_weight * next_token / count
            + router_weight * router / examples

The contrastive loss needs all vectors together, the memory of a pass is bounded by its row. So texts are run twice
(GradCache, Gao et al. 2021, arXiv 2101.06983): once without gradients for their vectors; then, when the loss has given
every vector its gradient, once more with the same dropout, row by row. The last row keeps its graph and is not run
again. Over processes, vectors are gathered and every query meets every passage. The next-token loss is a sum and needs
no other row.

Queries, targets and gradients are those of the whole batch however it is cut, so one process and many, long rows and
short ones give the same gradient. Every pass goes through the root model, ``model(task, row)``, which is what DDP and
FSDP2 wrap; under DDP the gradients are reduced once, in a last pass of a token or two that touches every parameter.

This module knows nothing about optimizers, data on disk or logging.

Shapes: N texts of this process (queries, then passages), Q queries, P passages of all processes, H vector size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gritkit.batch import Batch, Reading, pack, pack_readings
from gritkit.data import PackedBatch
from gritkit.errors import InputError
from gritkit.losses import Asked, InfoNCE, NextToken, Offered, RouterBalance
from gritkit.tokens import sequence
from gritkit.train.world import RandomState, World, reduced

Backward = Callable[[Tensor], None]
LossScale = Literal["exact", "gritlm"]
_NO_QUERY = -1
# Similarities of queries and passages that exist at once, so that their matrix takes less than a pass of the model.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised."""

    contrastive: InfoNCE
    next_token: NextToken
    embedding_weight: float = 1.0
    generative_weight: float = 1.0
    router: RouterBalance | None = None
    """Balances the experts in the examples to write, for mixtures of experts."""
    router_weight: float = 0.0
    loss_scale: LossScale = "exact"
    """``gritlm``: the contrastive gradient over the number of processes, as the original GRIT code has it."""


@dataclass(frozen=True)
class StepLosses:
    """The losses of the whole batch; a half that it does not have is None."""

    total: Tensor
    contrastive: Tensor | None
    next_token: Tensor | None
    router: Tensor | None = None
    masked: Tensor | None = None
    """Share of the pairs of query and passage that were left out, as false negatives or of queries that stay alone."""
    twice: tuple[Batch, ...] = ()
    """Rows of this process whose forward pass was run twice."""


class Halves(Protocol):
    """Looks at the gradients when the contrastive half's are there, and again when all are."""

    def after_first(self) -> None: ...

    def after_all(self) -> None: ...


def unified_step(
    model: nn.Module,
    batch: PackedBatch,
    objective: Objective,
    backward: Backward | None = None,
    *,
    world: World | None = None,
    grad_cache: bool = True,
    halves: Halves | None = None,
) -> StepLosses:
    """Losses of a batch, of which every process has its share. With ``backward``, gradients are accumulated row by row
    and what returns is detached; they come averaged over processes by the model's wrapper, DDP or FSDP2, and are those
    of the whole batch.

    Without it (one process only), the total carries the graph of the whole step. ``grad_cache=False`` keeps the graphs
    of all rows of texts instead of running them twice: memory for speed.

    Raises:
        InputError: for a batch without anything to train on, or several processes without ``backward``.
    """
    world = world or World()
    num_queries = batch.contrast.num_queries if batch.contrast else 0
    num_examples = sum(len(row.lengths_S) for row in batch.next_token_rows)
    counts = world.summed([num_queries, batch.num_counted, num_examples])
    queries, counted, examples = (int(count) for count in counts)
    if not queries and not counted:
        raise InputError("an empty batch: there is nothing to train on")
    if backward is None:
        if world.size > 1:
            raise InputError(f"the graph of a whole step spans one process, not {world.size}: give backward")
        return _whole_graph(model, batch, objective, counted, examples)
    step = _Step(model, batch, objective, backward, world, queries, counted, examples)
    with reduced(model, False):
        contrastive = step.texts(grad_cache) if queries else None
        if halves is not None and not step.has_readings:
            if contrastive is not None:
                step.reduce()
            halves.after_first()
        for row in step.next_token_rows:
            step.run_next_token(row)
    step.reduce()
    if halves is not None and not step.has_readings:
        halves.after_all()
    next_token = world.summed_tensor(step.next_token) if counted else None
    router = world.summed_tensor(step.router) if objective.router is not None and examples else None
    total = _total(objective, contrastive, next_token, router)
    return StepLosses(total, contrastive, next_token, router, step.masked, tuple(step.twice))


def _total(
    objective: Objective, contrastive: Tensor | None, next_token: Tensor | None, router: Tensor | None
) -> Tensor:
    weighted = (
        (objective.embedding_weight, contrastive),
        (objective.generative_weight, next_token),
        (objective.router_weight, router),
    )
    return torch.stack([weight * part for weight, part in weighted if part is not None]).sum()


class _Step:
    """What the passes of one step share."""

    def __init__(
        self,
        model: nn.Module,
        batch: PackedBatch,
        objective: Objective,
        backward: Backward,
        world: World,
        queries: int,
        counted: int,
        examples: int,
    ) -> None:
        self.model, self.batch, self.objective, self.world = model, batch, objective, world
        self.queries, self.counted, self.examples = queries, counted, examples
        self.device = next(model.parameters()).device
        self.zero = torch.zeros((), device=self.device)
        self.next_token = self.router = self.zero
        self.masked: Tensor | None = None
        self.twice: list[Batch] = []
        self._backward = backward
        # FSDP2 gathers weights in every pass: all processes make the same ones
        sizes = [len(batch.embed_rows), len(batch.read_rows), len(batch.next_token_rows)]
        embed, read, next_token = world.largest(sizes)
        self.has_readings = read > 0
        self.text_rows = [*_padded(batch.embed_rows, embed, _BLANK_TEXT), *_padded(batch.read_rows, read, _BLANK_READ)]
        self.next_token_rows = _padded(batch.next_token_rows, next_token, _BLANK_EXAMPLE)

    def backward(self, loss: Tensor) -> None:
        """DDP and FSDP2 average gradients over processes; a sum is wanted."""
        self._backward(loss * self.world.size)

    def run_next_token(self, row: Batch) -> None:
        if self.objective.router is None:
            self.backward(self.weighed(self.model("next_token", row)))
            return
        nll, router = self.model("next_token", row, self.objective.router)
        if not _is_blank(row):
            self.router = self.router + router.detach() / self.examples
        weight = self.objective.router_weight * (not _is_blank(row)) / max(1, self.examples)
        self.backward(self.weighed(nll) + weight * router)

    def weighed(self, nll: Tensor) -> Tensor:
        """A row's part of the total; counted for the figures too."""
        part = self.objective.next_token(nll, max(1, self.counted))
        self.next_token = self.next_token + part.detach()
        return self.objective.generative_weight * part

    def texts(self, grad_cache: bool) -> Tensor:
        """Gradients of the contrastive loss (and of answers that read); the loss of the whole batch."""
        text_at = self.batch.restore.argsort()  # which text each vector of the rows is of
        own_NH: Tensor | None = None
        passes, at = [], 0
        for number, row in enumerate(self.text_rows, 1):
            one = _TextPass(self, row, keep=not grad_cache or number == len(self.text_rows))
            vectors_SH = one.first_run()
            # One tensor for all of them: small ones between the large buffers of passes would keep memory in pieces.
            own_NH = vectors_SH.new_empty(len(text_at), vectors_SH.shape[1]) if own_NH is None else own_NH
            one.texts_S = text_at[at : at + (0 if _is_blank(row) else len(vectors_SH))].to(own_NH.device)
            own_NH[one.texts_S] = vectors_SH[: len(one.texts_S)]
            at += len(one.texts_S)
            passes.append(one)
        assert own_NH is not None
        loss, gradient_NH = self._contrastive(own_NH)
        for one in reversed(passes):  # the graph that waits is freed first
            one.finish(gradient_NH)
        return loss

    def _contrastive(self, own_NH: Tensor) -> tuple[Tensor, Tensor]:
        """(loss of the whole batch, its weighted gradient of this process's vectors)."""
        objective, world = self.objective, self.world
        weight = objective.embedding_weight / (world.size if objective.loss_scale == "gritlm" else 1)
        own_NH.requires_grad_()
        blocks = _Blocks(own_NH, self.batch, objective.contrastive, world)
        summed = self.zero
        left_out = torch.zeros((), device=self.device, dtype=torch.long)
        with torch.enable_grad():
            for part, excluded in blocks:
                (weight * part / self.queries).backward()
                summed, left_out = summed + part.detach(), left_out + excluded
            blocks.return_gradients()
        assert own_NH.grad is not None
        summed, left_out = world.summed_tensor(summed), world.summed_tensor(left_out)
        self.masked = left_out / (self.queries * blocks.num_passages)
        return summed / self.queries, own_NH.grad

    def reduce(self) -> None:
        """One more pass, of nothing, in which DDP reduces the gradients of all before it."""
        if not isinstance(self.model, DistributedDataParallel):
            return
        with reduced(self.model, True):
            if self.counted:
                self._backward(self.model("next_token", _BLANK_EXAMPLE))
            else:
                self._backward(0.0 * self.model("embed", _BLANK_TEXT).sum())


class _TextPass:
    """A row of texts: run for its vectors first, and with gradients when the loss has said what they are."""

    texts_S: Tensor
    """Which texts of the batch the row's vectors are of; none, for a row of nothing."""

    def __init__(self, step: _Step, row: Batch, *, keep: bool) -> None:
        self._step, self._row = step, row
        self._task = "read" if any(row.reads_S) else "embed"
        self._random = None if keep else RandomState(step.device)
        self._kept: tuple[Tensor, Tensor | None] | None = None

    def first_run(self) -> Tensor:
        """The row's vectors [S, H], without their graph."""
        with torch.set_grad_enabled(self._random is None):
            out = self._run()
        if self._random is None:
            self._kept = out
        else:
            self._step.twice.append(self._row)
        return out[0].detach()

    def _run(self) -> tuple[Tensor, Tensor | None]:
        out = self._step.model(self._task, self._row)
        return out if self._task == "read" else (out, None)

    def finish(self, gradient_NH: Tensor) -> None:
        """Send the gradient of the batch's vectors back through the row's."""
        if self._kept is not None:
            vectors_SH, nll = self._kept
            self._kept = None
        else:
            assert self._random is not None
            with self._random.again():
                vectors_SH, nll = self._run()
        loss = (vectors_SH[: len(self.texts_S)] * gradient_NH[self.texts_S]).sum()
        if nll is not None:
            loss = loss + self._step.weighed(nll)
        self._step.backward(loss)


class _Blocks:
    """The contrastive loss, block by block of this process's queries, each against the passages of all processes."""

    def __init__(self, vectors_NH: Tensor, batch: PackedBatch, loss: InfoNCE, world: World) -> None:
        self._loss = loss
        self._device = vectors_NH.device
        contrast = batch.contrast
        num_queries = contrast.num_queries if contrast else 0
        self._queries_QH = vectors_NH[:num_queries]
        passages_NH = vectors_NH[num_queries:]
        queries_each, passages_each = world.counts(num_queries), world.counts(len(passages_NH))
        self.num_passages = sum(passages_each)
        self._gathered_PH = world.gathered(passages_NH, passages_each)
        # Blocks add up the gradient of all passages here; it goes back through the gathering once.
        self._passages_PH = self._gathered_PH.detach().requires_grad_(vectors_NH.requires_grad)
        first_query, first_passage = sum(queries_each[: world.rank]), sum(passages_each[: world.rank])
        self._asked, offered = _told(batch, first_query, first_passage)
        self._offered = Offered(
            **{
                name: world.gathered(value.to(world.device), passages_each).to(self._device)
                for name, value in vars(offered).items()
            }
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(summed loss of a block, number of pairs left out in it)."""
        size = max(1, _BLOCK.get(self._device.type, 1 << 18) // self.num_passages)
        for start in range(0, len(self._queries_QH), size):
            asked = self._asked.block(start, start + size).to(self._device)
            excluded_QP = self._loss.excluded(asked, self._offered)
            queries_QH = self._queries_QH[start : start + size]
            yield self._loss(queries_QH, self._passages_PH, asked.positive_Q, excluded_QP), excluded_QP.sum()

    def return_gradients(self) -> None:
        """Send the passages' gradients to the processes (and the leaf) that they came from; once, after all blocks."""
        gradient_PH = self._passages_PH.grad
        if gradient_PH is None:
            gradient_PH = torch.zeros_like(self._passages_PH)
        torch.autograd.backward(self._gathered_PH, gradient_PH)


def _told(batch: PackedBatch, first_query: int, first_passage: int) -> tuple[Asked, Offered]:
    """What the loss must know, in the numbers of the whole batch."""
    contrast = batch.contrast
    if contrast is None:
        nothing = torch.zeros(0, dtype=torch.long)
        asked = Asked(positive_Q=nothing, number_Q=nothing, words_Q=nothing, alone_Q=nothing.bool())
        return asked, Offered(owner_P=nothing, words_P=nothing, asked_words_P=nothing)
    place_Q = torch.arange(contrast.num_queries)
    asked_words_P = torch.full_like(contrast.owner_P, _NO_QUERY)
    asked_words_P[: contrast.num_queries] = contrast.query_words_Q
    return (
        Asked(
            positive_Q=first_passage + place_Q,
            number_Q=first_query + place_Q,
            words_Q=contrast.query_words_Q,
            alone_Q=contrast.alone_Q,
        ),
        Offered(owner_P=first_query + contrast.owner_P, words_P=contrast.passage_words_P, asked_words_P=asked_words_P),
    )


def _whole_graph(model: nn.Module, batch: PackedBatch, objective: Objective, counted: int, examples: int) -> StepLosses:
    """The step as one graph."""
    next_token = contrastive = router = None
    if objective.router is None:
        sums = [model("next_token", row) for row in batch.next_token_rows]
    else:
        both = [model("next_token", row, objective.router) for row in batch.next_token_rows]
        sums = [nll for nll, _ in both]
        router = torch.stack([balance for _, balance in both]).sum() / examples if both else None
    if batch.contrast is not None:
        read = [model("read", row) for row in batch.read_rows]
        sums += [nll for _, nll in read]
        vectors = torch.cat([*(model("embed", row) for row in batch.embed_rows), *(vectors for vectors, _ in read)])
        vectors_NH = vectors[batch.restore.to(vectors.device)]
        num_queries, contrast = batch.contrast.num_queries, objective.contrastive
        asked, offered = _told(batch, 0, 0)
        asked, offered = asked.to(vectors.device), offered.to(vectors.device)
        queries_QH, passages_PH = vectors_NH[:num_queries], vectors_NH[num_queries:]
        excluded_QP = contrast.excluded(asked, offered)
        contrastive = contrast(queries_QH, passages_PH, asked.positive_Q, excluded_QP) / num_queries
    if sums:
        next_token = torch.stack(sums).sum() / counted
    return StepLosses(_total(objective, contrastive, next_token, router), contrastive, next_token, router)


def _is_blank(row: Batch) -> bool:
    return any(row is blank for blank in (_BLANK_TEXT, _BLANK_EXAMPLE, _BLANK_READ))


def _padded(rows: Sequence[Batch], count: int, blank: Batch) -> list[Batch]:
    return [*rows, *[blank] * (count - len(rows))]


# Rows of nothing: a process that has fewer rows than another runs them beside it, and their loss is zero.
_BLANK_TEXT = pack([sequence([0], pool=True)])
_BLANK_EXAMPLE = pack([sequence([0, 0], loss=[False, True])], [0.0])
_BLANK_READ = pack_readings([Reading([sequence([0], pool=True)], sequence([0, 0], loss=[False, True]), 0.0)], 0)
