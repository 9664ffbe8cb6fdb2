"""What a model is worth while it trains: retrieval, similarity and next-token loss on held-out files.

    {"query", "pos", "neg"}              every query against all passages of its file: nDCG@10, recall@10, MRR@10
    {"sentence1", "sentence2", "score"}  Spearman's correlation of cosine and score
    {"text"} or {"messages"}             mean negative log-likelihood of a target token, in nats

A query's own words are no passage of it; sentences may be ``[instruction, text]``. Losses are the better the lower, all
else the higher, which transformers' ``metric_for_best_model`` takes from the name.

Every pass goes through the root, ``forward(task, row)``, and all processes make the same ones: so it is right under DDP
and FSDP2 too. This module knows nothing about training.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gritkit.batch import pack, rows_of
from gritkit.data import Data, EmbeddingRecord, Lengths, Source, Text, load, tokenise
from gritkit.data.reading import Sources, data_set, file_rows, located, sorted_kinds
from gritkit.data.sources import Problems, bare_name
from gritkit.data.tokenised import EmbeddingRow, TextTable
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
    own: list[set[int]]
    """For each query the passages that are its own words: they are nothing to be found, and left out."""

    def measure(self, embed: Embed, likelihood: Likelihood) -> dict[str, float]:
        vectors = embed([*self.queries, *self.passages])
        depth = _DEPTH + max(map(len, self.own))
        _, found = top_k(vectors[: len(self.queries)], vectors[len(self.queries) :], depth)
        graded = [dict.fromkeys(relevant - own, 1.0) for relevant, own in zip(self.relevant, self.own, strict=True)]
        rankings = [
            [place for place in places if place not in own]
            for places, own in zip(found.tolist(), self.own, strict=True)
        ]
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
        correlation = spearman(cosines, self.scores)
        return {"spearman": 0.0 if math.isnan(correlation) else correlation}  # one cosine for all pairs: no order


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
    files = _read(data, problems)
    for source in (source for file in files for source in file.sources):
        if source.kind == "embedding":
            _check_findable(cast("Source[EmbeddingRecord]", source), problems)
    names = _names([file.name for file in files])
    similar = [_similarity(file, name, tokens, lengths, problems) for file, name in zip(files, names, strict=True)]
    result: HeldOut = [one for one in similar if one is not None]
    sources = [source for file in files for source in file.sources]
    tokenised = tokenise(sources, tokens, lengths, problems=problems)
    rows, examples = iter(tokenised.embedding), iter(tokenised.generative)
    for name, source in [(name, source) for name, file in zip(names, files, strict=True) for source in file.sources]:
        if source.kind == "embedding":
            queries = cast("Source[EmbeddingRecord]", source).records
            result.append(_retrieval(name, queries, next(rows)[1], tokenised.texts))
        else:
            result.append(Likelihoods(name, [next(examples) for _ in source.records]))
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
    before = {module: module.training for module in model.modules()}  # a part may be kept from training
    model.eval()
    try:
        yield
    finally:
        for module, trains in before.items():
            module.training = trains


# -- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """What one file holds: records of one kind, or pairs of sentences with their lines."""

    name: str
    sources: Sources = field(default_factory=list)
    pairs: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)


def _read(data: Data, problems: Problems) -> list[_File]:
    if isinstance(data, (str, os.PathLike)):
        return [_from_place(place, problems) for place in located(data)]
    if isinstance(data, (bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputError(f"evaluation must be a path, a data set's id or records, not {type(data).__name__}")
    records = list(data)
    if records and all(isinstance(item, Source) for item in records):
        return [_File(source.name, _without_answers([source])) for source in load(records)]
    return [_sorted("records", enumerate(records), problems, one_kind=False)] if records else []


def _from_place(place: Path | str, problems: Problems) -> _File:
    name = place if isinstance(place, str) else place.name
    rows = file_rows(place) if isinstance(place, Path) and place.is_file() else enumerate(data_set(place))
    before = problems.total
    file = _sorted(name, rows, problems, one_kind=True)
    if file.pairs and file.sources:
        line, kind = file.pairs[0][0], file.sources[0].kind
        problems.add(f"{name}:{line}", f"a pair of sentences in a file of the {kind} kind")
        return replace(file, pairs=[])
    if not file.pairs and not file.sources and problems.total == before:
        problems.add(name, "there are no records in it")
    return file


def _sorted(name: str, rows: Iterable[tuple[int, Any]], problems: Problems, *, one_kind: bool) -> _File:
    pairs: list[tuple[int, Mapping[str, Any]]] = []

    def others() -> Iterator[tuple[int, Any]]:
        for line, row in rows:
            if isinstance(row, Mapping) and ("sentence1" in row or "sentence2" in row):
                pairs.append((line, row))
            else:
                yield line, row

    return _File(name, _without_answers(sorted_kinds(name, others(), problems, one_kind=one_kind)), pairs)


def _without_answers(sources: Sources) -> Sources:
    """Nothing is measured of what an embedding record's query is answered with."""
    result: Sources = []
    for source in sources:
        if source.kind == "embedding":
            asked = cast("Source[EmbeddingRecord]", source)
            result.append(replace(asked, records=[replace(record, answer=None) for record in asked.records]))
        else:
            result.append(source)
    return result


def _names(wholes: Sequence[str]) -> list[str]:
    """What the files are called in metrics: without their suffixes, unless two would then be one."""
    bare = [bare_name(whole) for whole in wholes]
    names = [whole if bare.count(short) > 1 else short for whole, short in zip(wholes, bare, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two held-out sets are called {name!r}: their metrics would be one")
    return names


# -- texts and conversations -------------------------------------------------------------------------------------


def _check_findable(source: Source[EmbeddingRecord], problems: Problems) -> None:
    for index, record in enumerate(source.records):
        if all(text.text.strip() == record.query.text.strip() for text in record.pos):
            problems.add(source.where(index), "pos holds nothing but the query itself: there is nothing to find")


def _retrieval(
    name: str, records: Sequence[EmbeddingRecord], rows: Sequence[EmbeddingRow], texts: TextTable
) -> Retrieval:
    """Passages that read alike are one, so that no query is failed by a copy of its answer."""
    places: dict[int, int] = {}
    spelled: dict[str, set[int]] = {}
    passages: list[TokenSeq] = []
    for record, row in zip(records, rows, strict=True):
        given = zip((*record.pos, *record.neg), (*row.pos, *row.neg), strict=True)
        for text, number in given:
            place = places.setdefault(int(texts.words[number]), len(passages))
            if place == len(passages):
                passages.append(texts.sequences[number])
            spelled.setdefault(text.text.strip(), set()).add(place)
    relevant: dict[int, set[int]] = {}
    own: dict[int, set[int]] = {}
    for record, row in zip(records, rows, strict=True):  # a query that is asked twice has the answers of both
        relevant.setdefault(row.query, set()).update(places[int(texts.words[number])] for number in row.pos)
        own[row.query] = spelled.get(record.query.text.strip(), set())
    queries = [texts.sequences[query] for query in relevant]
    return Retrieval(name, queries, passages, list(relevant.values()), list(own.values()))


# -- pairs of sentences ------------------------------------------------------------------------------------------


def _similarity(file: _File, name: str, tokens: Tokens, lengths: Lengths, problems: Problems) -> Similarity | None:
    """The pairs of a file; None where it has none. Both sentences are embedded alike, as queries are (so E5 and
    instructions have it), and may be as long as passages: some sets pair articles."""
    sentences: tuple[list[TokenSeq], list[TokenSeq]] = ([], [])
    scores: list[float] = []
    for line, row in file.pairs:
        try:
            scores.append(_score(row.get("score")))
            for side, column in zip(sentences, ("sentence1", "sentence2"), strict=True):
                instruction, text = Text.of(row.get(column), column)
                side += tokens.to_embed([text], "query", instruction, lengths.passage, truncate=True)
        except (InputError, RecordError) as error:
            problems.add(f"{file.name}:{line}", str(error).replace("text 0", "a sentence", 1))
    if not file.pairs:
        return None
    if len(set(scores)) == 1:
        problems.add(file.name, f"no pair has another score than {scores[0]:g}: there is no order to agree with")
    return Similarity(name, *sentences, scores)


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecordError(f"a pair of sentences needs a score that is a finite number, not {value!r:.40}")
    return float(value)
