"""Checked records -> mteb tasks that hold their data: subclasses of mteb's own, so protocol and metric are mteb's.

This module knows nothing about files or models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gritkit.errors import MissingExtraError

try:
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import (
        AbsTask,
        AbsTaskBitextMining,
        AbsTaskClassification,
        AbsTaskClustering,
        AbsTaskPairClassification,
        AbsTaskRetrieval,
        AbsTaskSTS,
        AbsTaskSummarization,
    )
    from mteb.abstasks.task_metadata import TaskMetadata
except ImportError:
    raise MissingExtraError("mteb", "eval") from None

Columns = Mapping[str, Sequence[Any]]
SEED = 42
"""mteb's own, of few-shot draws and k-means."""
PROTOCOL = 1
"""Goes up when a task of the same files asks something else."""
_UNDETERMINED = "Zyyy"  # ISO 15924: a script that nobody determined
_MOST_CLUSTERED = 2048
"""Texts of a clustering task that are embedded, as in MTEB's second protocol (Enevoldsen et al. 2025, MMTEB)."""


def sts(name: str, prompt: str | None, pairs: Columns) -> AbsTask:
    """``sentence1``, ``sentence2``, ``score``: Spearman's correlation of cosine and score."""
    lowest, highest = min(pairs["score"]), max(pairs["score"])
    return _task(
        AbsTaskSTS, "STS", name, "cosine_spearman", {"test": pairs}, prompt=prompt, min_score=lowest, max_score=highest
    )


def classification(name: str, prompt: str | None, train: Columns, test: Columns, *, shots: int) -> AbsTask:
    """``text``, ``label`` (0, 1, ...): accuracy of logistic regression on ``shots`` a class, mean of 10 draws."""
    return _task(
        AbsTaskClassification, "Classification", name, "accuracy", {"train": train, "test": test}, prompt=prompt,
        samples_per_label=shots,
    )  # fmt: skip


def clustering(name: str, prompt: str | None, examples: Columns) -> AbsTask:
    """``text``, ``label``: v-measure of mini-batch k-means, mean of 10 samples drawn with replacement."""
    columns = {"sentences": examples["text"], "labels": examples["label"]}
    return _task(
        AbsTaskClustering, "Clustering", name, "v_measure", {"test": columns}, prompt=prompt,
        max_fraction_of_documents_to_embed=None, max_document_to_embed=_MOST_CLUSTERED,
    )  # fmt: skip


def pair_classification(name: str, prompt: str | None, pairs: Columns) -> AbsTask:
    """``sentence1``, ``sentence2``, ``label`` (0 or 1): the best average precision of mteb's five similarities."""
    columns = {"sentence1": pairs["sentence1"], "sentence2": pairs["sentence2"], "labels": pairs["label"]}
    return _task(AbsTaskPairClassification, "PairClassification", name, "max_ap", {"test": columns}, prompt=prompt)


def bitext(name: str, prompt: str | None, by_language: Mapping[str, Columns]) -> AbsTask:
    """``sentence1``, ``sentence2`` by language: F1 of finding each first sentence's second, mean over languages.

    Where the one language is called ``""``, nothing is known of it.
    """
    if set(by_language) == {""}:
        return _task(AbsTaskBitextMining, "BitextMining", name, "f1", {"test": by_language[""]}, prompt=prompt)
    languages = {f"{lang}-eng": [f"{lang}-{_UNDETERMINED}", "eng-Latn"] for lang in by_language}
    data = {f"{lang}-eng": {"test": pairs} for lang, pairs in by_language.items()}
    return _task(AbsTaskBitextMining, "BitextMining", name, "f1", data, prompt=prompt, languages=languages)


def summarization(name: str, prompt: str | None, texts: Columns) -> AbsTask:
    """``text``, ``human_summaries``, ``machine_summaries``, ``relevance``: Spearman's correlation of a machine's
    summary's relevance and its largest cosine with a human one, within each text; the mean over texts."""
    grades = [grade for grades in texts["relevance"] for grade in grades]
    return _task(
        AbsTaskSummarization, "Summarization", name, "cosine_spearman", {"test": texts}, prompt=prompt,
        min_score=min(grades), max_score=max(grades),
    )  # fmt: skip


def retrieval(
    name: str, prompt: str | None, corpus: Columns, queries: Columns, grades: Mapping[str, Mapping[str, int]],
    candidates: Mapping[str, Sequence[str]] | None = None,
) -> AbsTask:  # fmt: skip
    """``corpus`` (``id``, ``title``, ``text``), ``queries`` (``id``, ``text``), query -> document -> grade: nDCG@10 of
    ranking the corpus by cosine; with the ``candidates`` of every query, reranking: MAP over those."""
    kind, metric = ("Retrieval", "ndcg_at_10") if candidates is None else ("Reranking", "map_at_1000")
    parts = {"corpus": corpus, "queries": queries, "relevant_docs": grades, "top_ranked": candidates}
    split = parts | {
        part: Dataset.from_dict(dict(columns)) for part, columns in (("corpus", corpus), ("queries", queries))
    }
    return _subclass(
        AbsTaskRetrieval, _metadata(kind, name, metric, parts, prompt, None), {"default": {"test": split}}
    )  # fmt: skip


def drawn(task: Any, by: Mapping[str, Any]) -> AbsTask:
    """The same task, which says by which limit and seed its examples were drawn."""
    task.drawn = by
    made: AbsTask = task
    return made


def _task(
    base: type[AbsTask], kind: str, name: str, metric: str, data: Mapping[str, Any], *, prompt: str | None,
    languages: Mapping[str, Sequence[str]] | None = None, **attributes: Any,
) -> AbsTask:  # fmt: skip
    """Of columns by split, or with ``languages`` by subset and split."""
    metadata = _metadata(kind, name, metric, [data, attributes], prompt, languages)
    if languages is None:
        return _subclass(base, metadata, _splits(data), **attributes)
    return _subclass(base, metadata, {subset: _splits(splits) for subset, splits in data.items()}, **attributes)


def _splits(data: Mapping[str, Columns]) -> Any:
    return DatasetDict({split: Dataset.from_dict(dict(columns)) for split, columns in data.items()})


def _metadata(
    kind: Any, name: str, metric: str, data: Any, prompt: str | None, languages: Mapping[str, Sequence[str]] | None
) -> Any:
    """The revision is a digest of all that is measured on: other data, another limit or seed make another task."""
    digest = hashlib.sha256(json.dumps([PROTOCOL, data], sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return TaskMetadata(
        name=name, type=kind, main_score=metric, description=f"{name}, from files", prompt=prompt,
        category=_category(kind), dataset={"path": name, "revision": digest[:40]}, eval_splits=["test"],
        eval_langs={subset: list(codes) for subset, codes in languages.items()} if languages else ["eng-Latn"],
    )  # fmt: skip


def _category(kind: str) -> Any:
    return "t2c" if kind in ("Classification", "Clustering") else "t2t"


def _subclass(base: type[AbsTask], metadata: Any, dataset: Any, **attributes: Any) -> AbsTask:
    """mteb reads a task's description from its class."""
    members = {"metadata": metadata, "dataset": dataset, "data_loaded": True, **attributes}
    made: AbsTask = type(f"Local{base.__name__}", (base,), members)(seed=SEED)
    return made
