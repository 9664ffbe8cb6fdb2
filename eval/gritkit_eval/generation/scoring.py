"""Log-probabilities of continuations: (context, continuation) pairs of ids -> packed rows -> a sum for each pair.

    pairs -> groups of one context -> packed rows -> logits where a token is predicted -> sums, and whether greedy

A context that several continuations share is computed once: they stand behind it in the row, and each reads the context
and itself. The results are those of every pair alone, to rounding.

This module knows nothing about text, tasks or harnesses.

Shapes: T tokens of a row, K places whose logits are made, N predicted tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gritkit import GritModel
from gritkit.backbone import Backbone
from gritkit.batch import rows_of, token_budget
from gritkit.errors import InputError, UnsupportedModelError
from gritkit.plan import Plan, Segment

Pair = tuple[Sequence[int], Sequence[int]]
"""Ids of a context, and of what follows it; neither is empty."""
Progress = Callable[[int], object]
_LOGITS = 1 << 26
"""Numbers that the logits of one row may have: 256 MB in fp32, and about twice that at once."""


@dataclass(frozen=True)
class Scored:
    """One continuation."""

    logprob: float
    """Sum over its tokens, in nats."""
    greedy: bool
    """Whether each of its tokens is the likeliest one."""


@dataclass(frozen=True)
class _Group:
    """Continuations of one context, by their places among the pairs."""

    context: tuple[int, ...]
    members: list[int]
    num_tokens: int
    """That are run: the context, and of each continuation all but the last."""
    num_logits: int


def context_limit(model: GritModel) -> int:
    """Tokens that a prediction may look back on; 2,048 where the config states nothing, as in the harness."""
    return model.context_length if model.context_length < 1 << 30 else 2048


@torch.inference_mode()
def score_pairs(model: GritModel, pairs: Sequence[Pair], progress: Progress | None = None) -> list[Scored]:
    """log p(continuation | context) of every pair, in order. A context that is too long loses its beginning.

    Raises:
        InputError: naming the pair: an empty side, a continuation that the context cannot hold, or a result of NaN.
        UnsupportedModelError: for a checkpoint without a language-model head.
    """
    if not model.writes:
        raise UnsupportedModelError("this checkpoint has no language-model head: it embeds but cannot predict text")
    limit = context_limit(model)
    cut = [_cut(index, pair, limit) for index, pair in enumerate(pairs)]
    budget = token_budget(model.device)
    most = max(1, _LOGITS // int(model.config.get_text_config().vocab_size))
    groups = _groups(cut, min(budget, most))
    # A row is full by its tokens or by its logits, whichever comes first.
    weights = [max(group.num_tokens, -(-group.num_logits * budget // most)) for group in groups]
    backbone = Backbone(model.lm)
    scored: dict[int, Scored] = {}
    for row in rows_of(weights, budget):
        of_row = [groups[number] for number in row]
        scored.update(_score_row(backbone, of_row, cut))
        if progress is not None:
            progress(sum(len(group.members) for group in of_row))
    return [scored[index] for index in range(len(pairs))]


def _cut(index: int, pair: Pair, limit: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    context, continuation = tuple(pair[0]), tuple(pair[1])
    if not context or not continuation:
        which = "continuation" if context else "context"
        raise InputError(f"pair {index} has an empty {which}: there is nothing to predict")
    if len(continuation) > limit:
        raise InputError(f"the continuation of pair {index} has {len(continuation)} tokens and the context is {limit}")
    return context[-(limit + 1 - len(continuation)) :], continuation  # the last token is predicted, never read


def _groups(pairs: Sequence[Pair], budget: int) -> list[_Group]:
    """Pairs by context; a group is closed before it would pass the budget."""
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, (context, _) in enumerate(pairs):
        by_context.setdefault(tuple(context), []).append(index)
    groups = []
    for context, indices in by_context.items():
        members: list[int] = []
        num_tokens = len(context)
        for index in indices:
            more = len(pairs[index][1]) - 1
            if members and num_tokens + more > budget:
                groups.append(_group(context, members, pairs))
                members, num_tokens = [], len(context)
            members.append(index)
            num_tokens += more
        groups.append(_group(context, members, pairs))
    return groups


def _group(context: tuple[int, ...], members: list[int], pairs: Sequence[Pair]) -> _Group:
    read = sum(len(pairs[index][1]) - 1 for index in members)
    return _Group(context, members, len(context) + read, 1 + read)


@dataclass
class _Row:
    """A packed row in the making."""

    ids: list[int]
    positions: list[int]
    segments: list[Segment]
    keep: list[int]
    """Places [K] whose logits are made."""
    use: list[int]
    """For each predicted token [N] which of them predicts it."""
    targets: list[int]
    owner: list[int]
    """Whose token it is: the pair's number among those of the row."""


def _lay(groups: Sequence[_Group], pairs: Sequence[Pair]) -> tuple[_Row, list[int]]:
    """The row of some groups, and which pairs it holds. One continuation alone stands in its context's segment."""
    row, members = _Row([], [], [], [], [], [], []), list[int]()
    for group in groups:
        start, shared = len(row.ids), len(group.members) > 1
        row.ids += group.context
        row.positions += range(len(group.context))
        end = len(row.ids)
        if shared:
            row.segments.append(Segment(start, end, True))
        first = len(row.keep)
        row.keep.append(end - 1)
        for index in group.members:
            continuation = pairs[index][1]
            at = len(row.ids)
            row.ids += continuation[:-1]
            row.positions += range(len(group.context), len(group.context) + len(continuation) - 1)
            if shared and len(continuation) > 1:
                row.segments.append(Segment(at, len(row.ids), True, reads=((start, end),)))
            row.use += [first, *range(len(row.keep), len(row.keep) + len(continuation) - 1)]
            row.keep += range(at, len(row.ids))
            row.targets += continuation
            row.owner += [len(members)] * len(continuation)
            members.append(index)
        if not shared:
            row.segments.append(Segment(start, len(row.ids), True))
    return row, members


def _score_row(backbone: Backbone, groups: Sequence[_Group], pairs: Sequence[Pair]) -> dict[int, Scored]:
    row, members = _lay(groups, pairs)

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=backbone.device)

    plan = Plan(tuple(row.segments))
    logits_KV = backbone.logits(tensor(row.ids), tensor(row.positions), plan, tensor(row.keep))
    logits_KV = logits_KV.to(torch.promote_types(logits_KV.dtype, torch.float32))
    use_N, targets_N = tensor(row.use).to(logits_KV.device), tensor(row.targets).to(logits_KV.device)
    best_N = logits_KV.argmax(-1)[use_N]
    whole_N = logits_KV.logsumexp(-1)[use_N]
    logprob_N = (logits_KV[use_N, targets_N] - whole_N).double().cpu()
    owner_N = torch.tensor(row.owner)
    sums = torch.zeros(len(members), dtype=torch.float64).index_add(0, owner_N, logprob_N)
    missed = torch.zeros(len(members)).index_add(0, owner_N, (best_N != targets_N).float().cpu())
    if sums.isnan().any():
        bad = members[int(sums.isnan().nonzero()[0])]
        raise InputError(f"the log-probability of pair {bad} is NaN: the model's weights or their precision are broken")
    return {
        index: Scored(logprob, not miss)
        for index, logprob, miss in zip(members, sums.tolist(), missed.tolist(), strict=True)
    }
