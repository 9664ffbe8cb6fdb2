"""What a model is worth while it trains: retrieval, similarity and next-token loss on held-out files.

    {"query", "pos", "neg"}              every query against all passages of its file: nDCG@10, recall@10, MRR@10
    {"sentence1", "sentence2", "score"}  Spearman's correlation of cosine and score
    {"text"} or {"messages"}             mean negative log-likelihood of a target token, in nats

Every pass goes through the root, ``forward(task, row)``, and all processes make the same ones: so it is right under DDP
and FSDP2 too. This module knows nothing about training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gritkit.batch import pack, rows_of
from gritkit.data import Data, EmbeddingRecord, GenerativeRecord, Lengths, Source, load, tokenise
from gritkit.data.reading import file_rows, located
from gritkit.data.sources import Problems, bare_name
from gritkit.data.tokenised import TokenisedData
from gritkit.errors import InputError, RecordError
from gritkit.metrics import mrr_at_k, ndcg_at_k, recall_at_k, spearman
from gritkit.search import top_k
from gritkit.tokens import Tokens, TokenSeq

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[TokenSeq]], Vectors]
Likelihood = Callable[[Sequence[TokenSeq]], float]
_DEPTH = 10


@dataclass(frozen=True)
class Retrieval:
    """Queries and the passages of their file."""

    name: str
    queries: list[TokenSeq]
    passages: list[TokenSeq]
    relevant: list[set[int]]
    """For each query the passages that answer it."""

    def measure(self, embed: Embed, likelihood: Likelihood) -> dict[str, float]:
        vectors = embed([*self.queries, *self.passages])
        _, found = top_k(vectors[: len(self.queries)], vectors[len(self.queries) :], _DEPTH)
        graded = [dict.fromkeys(relevant, 1.0) for relevant in self.relevant]
        rankings = [ranking.tolist() for ranking in found]
        metrics = {"ndcg_at_10": ndcg_at_k, "recall_at_10": recall_at_k, "mrr_at_10": mrr_at_k}
        return {
            name: mean(metric(ranking, grades, _DEPTH) for ranking, grades in zip(rankings, graded, strict=True))
            for name, metric in metrics.items()
        }


@dataclass(frozen=True)
class Similarity:
    """Pairs of sentences and how alike people found them."""

    name: str
    first: list[TokenSeq]
    second: list[TokenSeq]
    scores: list[float]

    def measure(self, embed: Embed, likelihood: Likelihood) -> dict[str, float]:
        vectors = embed([*self.first, *self.second])
        cosines = (vectors[: len(self.first)] * vectors[len(self.first) :]).sum(1)
        return {"spearman": spearman(cosines, self.scores)}


@dataclass(frozen=True)
class Likelihoods:
    """Texts and conversations to predict."""

    name: str
    examples: list[TokenSeq]

    def measure(self, embed: Embed, likelihood: Likelihood) -> dict[str, float]:
        targets = sum(int(example.loss_mask.sum()) for example in self.examples)
        return {"next_token_loss": likelihood(self.examples) / targets}


HeldOut = list[Retrieval | Similarity | Likelihoods]


def load_held_out(data: Data, tokens: Tokens, lengths: Lengths) -> HeldOut:
    """A file, a folder of files (each measured on its own), or records, in the model's tokens.

    Raises:
        RecordError: naming file and line of every record that cannot be used. InputError: where there are none.
    """
    problems = Problems("nothing was measured")
    result: HeldOut = []
    if isinstance(data, (str, os.PathLike)):
        for place in located(data):
            rows = _similarity_rows(place) if isinstance(place, Path) and place.is_file() else None
            if rows is None:
                result += _of_sources(load(place), tokens, lengths)
            else:
                result += _similarity(bare_name(cast(Path, place).name), rows, tokens, lengths, problems)
    else:
        records = list(data)
        pairs = [(place, row) for place, row in enumerate(records) if _is_similarity(row)]
        others = [row for row in records if not _is_similarity(row)]
        result += _similarity("records", pairs, tokens, lengths, problems) if pairs else []
        result += _of_sources(load(others), tokens, lengths) if others else []
    problems.check()
    if not result:
        raise InputError("evaluation is empty: there is nothing to measure")
    return result


@torch.no_grad()
def evaluate(model: nn.Module, held_out: HeldOut, budget: int) -> dict[str, float]:
    """Every metric of every set; where several sets have one, each under ``<set>_<metric>`` and their mean under the
    metric's name. ``model`` is the root or its DDP or FSDP2 wrapper; ``budget`` the tokens of one pass.
    """

    def embed(texts: Sequence[TokenSeq]) -> Vectors:
        rows = rows_of([len(text) for text in texts], budget)
        parts = [cast(Tensor, model("embed", pack([texts[i] for i in row]))).float().cpu() for row in rows]
        vectors = torch.empty(len(texts), parts[0].shape[1])
        vectors[[i for row in rows for i in row]] = torch.cat(parts)
        return vectors.numpy()

    def likelihood(examples: Sequence[TokenSeq]) -> float:
        rows = rows_of([len(example) for example in examples], budget)
        return float(sum(model("next_token", pack([examples[i] for i in row])).double().cpu() for row in rows))

    with _evaluating(model):
        measured = [(one.name, one.measure(embed, likelihood)) for one in held_out]
    result: dict[str, float] = {}
    for metric in dict.fromkeys(metric for _, metrics in measured for metric in metrics):
        values = {name: metrics[metric] for name, metrics in measured if metric in metrics}
        if len(values) > 1:
            result |= {f"{name}_{metric}": value for name, value in values.items()}
        result[metric] = mean(values.values())
    return result


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def _of_sources(
    sources: Sequence[Source[EmbeddingRecord] | Source[GenerativeRecord]], tokens: Tokens, lengths: Lengths
) -> HeldOut:
    result: HeldOut = []
    for source in sources:
        tokenised = tokenise([source], tokens, lengths)
        name = bare_name(source.name)
        result.append(Likelihoods(name, tokenised.generative) if tokenised.generative else _retrieval(name, tokenised))
    return result


def _retrieval(name: str, data: TokenisedData) -> Retrieval:
    """Passages that read alike are one, so that no query is failed by a copy of its answer."""
    (_, rows), words = data.embedding[0], data.texts.words
    places: dict[int, int] = {}
    passages: list[TokenSeq] = []
    for number in (number for row in rows for number in (*row.pos, *row.neg)):
        if places.setdefault(int(words[number]), len(passages)) == len(passages):
            passages.append(data.texts.sequences[number])
    relevant: dict[int, set[int]] = {}
    for row in rows:  # a query that is asked twice has the answers of both
        relevant.setdefault(row.query, set()).update(places[int(words[number])] for number in row.pos)
    return Retrieval(name, [data.texts.sequences[query] for query in relevant], passages, list(relevant.values()))


# -- pairs of sentences ------------------------------------------------------------------------------------------


def _is_similarity(row: Any) -> bool:
    return isinstance(row, Mapping) and "sentence1" in row


def _similarity_rows(path: Path) -> Iterator[tuple[int, Any]] | None:
    """The rows of a file of sentence pairs; None for a file of something else."""
    first = next(file_rows(path), None)
    return file_rows(path) if first is not None and _is_similarity(first[1]) else None


def _similarity(name: str, rows: Any, tokens: Tokens, lengths: Lengths, problems: Problems) -> list[Similarity]:
    sentences: tuple[list[TokenSeq], list[TokenSeq]] = ([], [])
    scores: list[float] = []
    for line, row in rows:
        try:
            if isinstance(row, RecordError):
                raise row
            score = row["score"] if _is_similarity(row) else None
            if isinstance(score, bool) or not isinstance(score, (int, float)):
                raise RecordError(
                    f"a pair of sentences needs sentence1, sentence2 and a score that is a number: {row!r:.80}"
                )
            pair = tokens.to_embed(
                [row["sentence1"], row.get("sentence2")], "passage", None, lengths.passage, truncate=True
            )
        except (InputError, RecordError, KeyError) as error:
            problems.add(f"{name}:{line}", f"no {error}" if isinstance(error, KeyError) else str(error))
            continue
        for side, sentence in zip(sentences, pair, strict=True):
            side.append(sentence)
        scores.append(float(score))
    return [Similarity(name, *sentences, scores)] if scores else []
