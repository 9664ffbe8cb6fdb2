"""A global batch -> one process's share of it -> packed rows under a token budget, and how to put vectors in order.

Queries and passages share rows, longest first, so equally long texts are neighbours. A query that has an answer takes
its passages into a row where the answer reads them. Every row is one pass of the model.

This module knows nothing about models, devices or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gritkit.batch import Batch, Reading, pack, pack_readings, rows_of
from gritkit.data.batches import ContrastiveBatch, MixedBatch
from gritkit.tokens import TokenSeq

Shares = Callable[[Sequence[int]], tuple[list[float], int]]
"""Target tokens of each example -> (factor of each example's summed loss, what their total is divided by)."""


@dataclass(frozen=True)
class Contrast:
    """What the contrastive loss must know beside the vectors. Q queries, P passages, the first Q of them the
    positives."""

    num_queries: int
    owner_P: Tensor
    """For each passage the query that it was given with."""
    query_words_Q: Tensor
    passage_words_P: Tensor
    alone_Q: Tensor
    """True where a query meets only its own passages."""


@dataclass(frozen=True)
class PackedBatch:
    """One process's work of one step."""

    embed_rows: list[Batch]
    read_rows: list[Batch]
    """Documents, each alone, and answers that read them."""
    restore: Tensor
    """Place of each text (queries, then passages) among the vectors of the rows, one row after the other."""
    contrast: Contrast | None
    next_token_rows: list[Batch]
    num_counted: int
    """This process's part of the count that the next-token loss is divided by; the parts add up."""
    num_tokens: int
    """Tokens that the model reads in this process."""
    budget: int
    """Tokens that a row has room for."""

    @property
    def rows(self) -> list[Batch]:
        return [*self.embed_rows, *self.read_rows, *self.next_token_rows]


@dataclass(frozen=True)
class Share:
    """What one process does of a global batch: a batch of its own, and what the whole says of its examples."""

    mixed: MixedBatch
    generative_shares: Sequence[float]
    answer_shares: Sequence[float]
    """For each query; 0 where it has no answer."""
    num_counted: int


def share_of(mixed: MixedBatch, shares: Shares, rank: int = 0, world_size: int = 1) -> Share:
    """Process ``rank``'s share of a batch that every process has drawn alike.

    Queries (with their passages) and examples go to the process that has the fewest tokens so far, longest first. The
    examples' shares are those of the whole batch, and its count stands with process 0: the parts add up to it.
    """
    half = mixed.contrastive
    answers = [answer for answer in half.answers if answer is not None] if half else []
    counts = [int(example.loss_mask.sum()) for example in (*mixed.generative, *answers)]
    factors, count = shares(counts) if counts else ([], 0)
    given = iter(factors[len(mixed.generative) :])
    answer_shares = [0.0 if answer is None else next(given) for answer in half.answers] if half else []
    generative = _dealt([len(example) for example in mixed.generative], rank, world_size)
    contrastive = None
    if half is not None:
        sizes = [len(query) for query in half.queries]
        for passage, owner in zip(half.passages, half.owners, strict=True):
            sizes[owner] += len(passage)
        queries = _dealt(sizes, rank, world_size)
        contrastive = _chosen(half, queries)
        answer_shares = [answer_shares[i] for i in queries]
    return Share(
        MixedBatch(contrastive, [mixed.generative[i] for i in generative]),
        [factors[i] for i in generative],
        answer_shares,
        count if rank == 0 else 0,
    )


def _dealt(sizes: Sequence[int], rank: int, world_size: int) -> list[int]:
    """The items of one process, in their order, when each goes to the process with the least so far, largest first."""
    loads = [0] * world_size
    mine = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = loads.index(min(loads))
        loads[least] += sizes[index]
        if least == rank:
            mine.append(index)
    return sorted(mine)


def _chosen(half: ContrastiveBatch, queries: Sequence[int]) -> ContrastiveBatch:
    """The batch of these queries alone: their positives first, then their hard negatives."""
    number = {query: place for place, query in enumerate(queries)}
    hard = [i for i, owner in enumerate(half.owners) if i >= len(half.queries) and owner in number]
    passages = [*queries, *hard]
    return replace(
        half,
        queries=[half.queries[i] for i in queries],
        passages=[half.passages[i] for i in passages],
        owners=[number[half.owners[i]] for i in passages],
        query_words=[half.query_words[i] for i in queries],
        passage_words=[half.passage_words[i] for i in passages],
        alone=[half.alone[i] for i in queries],
        answers=[half.answers[i] for i in queries],
    )


def pack_batch(share: Share, budget: int, num_bos: int = 0) -> PackedBatch:
    """Rows of at most ``budget`` tokens (a longer text, or an answer with its documents, gets a row of its own).

    ``num_bos``: tokens of beginning that later documents of an answer are joined without.
    """
    half = share.mixed.contrastive
    texts = [*half.queries, *half.passages] if half else []
    readings, read_texts = _readings(half, share.answer_shares) if half else ([], [])
    alone = sorted(set(range(len(texts))) - {i for some in read_texts for i in some})
    embed = [[alone[i] for i in row] for row in rows_of([len(texts[i]) for i in alone], budget)]
    read = rows_of([len(reading) for reading in readings], budget)
    order = [i for row in embed for i in row] + [i for row in read for r in row for i in read_texts[r]]
    restore = torch.empty(len(texts), dtype=torch.long)
    restore[order] = torch.arange(len(texts))
    examples = share.mixed.generative
    embed_rows = [pack([texts[i] for i in row]) for row in embed]
    read_rows = [pack_readings([readings[i] for i in row], num_bos) for row in read]
    next_token_rows = [
        pack([examples[i] for i in row], [share.generative_shares[i] for i in row])
        for row in rows_of([len(example) for example in examples], budget)
    ]
    return PackedBatch(
        embed_rows=embed_rows,
        read_rows=read_rows,
        restore=restore,
        contrast=_contrast(half) if half else None,
        next_token_rows=next_token_rows,
        num_counted=share.num_counted,
        num_tokens=sum(row.num_tokens for row in (*embed_rows, *read_rows, *next_token_rows)),
        budget=budget,
    )


def _contrast(half: ContrastiveBatch) -> Contrast:
    return Contrast(
        num_queries=len(half.queries),
        owner_P=torch.tensor(half.owners, dtype=torch.long),
        query_words_Q=torch.tensor(half.query_words, dtype=torch.long),
        passage_words_P=torch.tensor(half.passage_words, dtype=torch.long),
        alone_Q=torch.tensor(half.alone, dtype=torch.bool),
    )


def _readings(half: ContrastiveBatch, shares: Sequence[float]) -> tuple[list[Reading], list[list[int]]]:
    """Each answer with the passages of its query, shuffled; and the places of these among all texts."""
    given: dict[int, list[int]] = {}
    for place, owner in enumerate(half.owners):
        given.setdefault(owner, []).append(place)
    readings, places = [], []
    for number, answer in enumerate(half.answers):
        if answer is None:
            continue
        passages = _shuffled(given[number], half)
        documents: list[TokenSeq] = [half.passages[i] for i in passages]
        readings.append(Reading(documents, answer, shares[number]))
        places.append([len(half.queries) + i for i in passages])
    return readings, places


def _shuffled(passages: list[int], half: ContrastiveBatch) -> list[int]:
    """In an order that only depends on what they are, so that it is the same on any number of processes."""
    ordered = sorted(passages, key=lambda i: half.passage_words[i])
    random = np.random.default_rng([half.passage_words[i] & (2**63 - 1) for i in ordered])
    return [ordered[i] for i in random.permutation(len(ordered))]
