"""A folder of data files -> mteb tasks: every set that it holds, checked, and cut to a limit where one is asked for.

The layouts are those of ``gritkit_eval.mteb.files``. A task is called ``kind.NAME`` after its folders. A classification
set of four classes or more is a clustering task too (``clustering.NAME``): with fewer, v-measure is mostly luck.

This module knows nothing about models, or how anything is measured.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gritkit.errors import InputError
from gritkit.files import resolve
from gritkit_eval.mteb import tasks
from gritkit_eval.mteb.files import FOLDERS, Reader, find, sets
from gritkit_eval.mteb.instructions import GRIT_SET
from gritkit_eval.mteb.records import (
    bitext_record,
    candidates_record,
    document_record,
    example_record,
    judged_record,
    judgement_record,
    query_record,
    scored_record,
    summaries_record,
)

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

T = TypeVar("T")
Draft = Callable[[], "AbsTask"]
"""A task whose data were read; called when all data are known to be right."""

_SAME_AS = {
    "classification.amazon_counterfactual_en": "AmazonCounterfactualClassification",
    "classification.banking77": "Banking77Classification",
    "classification.sentence_polarity": "ImdbClassification",
    "classification.tweeteval_sentiment": "TweetSentimentExtractionClassification",
    "retrieval.boolq_passages": "NQ",
    "retrieval.hotpotqa_mini": "HotpotQA",
}
"""Sets that ask what a task of the GRIT set asks, and so take its instruction."""
_SHOTS = {"classification.amazon_counterfactual_en": 32}
"""Examples a class, where mteb's task of the same data departs from its default."""
_USUAL_SHOTS = 8
_POOL = 8
"""Draws of training examples that a limit leaves of each class."""
_FEWEST_CLUSTERS = 4
_LANGUAGES, _FEWEST_PAIRS = 10, 10
"""What a limit leaves of pairs in many languages: as many as it allows for ten, but at least ten of each."""
_CLUSTERED = 10
"""Times the limit: clusters of one or two texts would tell nothing."""
_OTHERS = 4
"""Passages that nobody judged for the queries kept, at most so many for each query that a limit allows."""


@dataclass(frozen=True)
class Sample:
    """Which examples a limit keeps: the same ones for the same seed, whatever the model."""

    limit: int | None
    seed: int

    @property
    def settings(self) -> dict[str, int]:
        """What figures on it depend on; empty without a limit."""
        return {} if self.limit is None else {"limit": self.limit, "seed": self.seed}

    def of(self, items: Sequence[T], name: str, times: int = 1) -> list[T]:
        """At most ``times`` the limit, in their order."""
        if self.limit is None or len(items) <= times * self.limit:
            return list(items)
        chosen = random.Random(f"{self.seed} {name}").sample(range(len(items)), times * self.limit)
        return [items[place] for place in sorted(chosen)]

    def of_each_class(self, rows: Sequence[Mapping[str, Any]], name: str, most: int) -> list[Mapping[str, Any]]:
        """At most so many of each label where there is a limit, in their order."""
        if self.limit is None:
            return list(rows)
        order = random.Random(f"{self.seed} {name} train").sample(range(len(rows)), len(rows))
        left = Counter({row["label"]: most for row in rows})
        chosen = set()
        for place in order:
            if left[rows[place]["label"]] > 0:
                left[rows[place]["label"]] -= 1
                chosen.add(place)
        return [rows[place] for place in sorted(chosen)]


def load_tasks(
    data: Path, names: Sequence[str] = (), types: Sequence[str] = (), limit: int | None = None, seed: int = 0
) -> list[AbsTask]:
    """Every task of the folder, or those of the ``names`` and ``types`` (mteb's words, or the folders').

    ``limit`` keeps so many examples: pairs, texts (ten times as many to cluster), queries (with all passages judged for
    them and at most four times as many others), pairs of a language (of more than ten languages together as many as of
    ten); and of each class eight times the training examples that a draw takes.

    Raises:
        InputError: for a folder without data, an unknown name or type (listing the known), or a missing file.
        RecordError: naming file and line of every bad record (the first 20, and their number), or the task whose
            examples, perhaps by the limit, leave nothing to tell apart.
    """
    root = resolve(data)
    if not root.is_dir():
        raise InputError(f"no folder of data: {root}")
    if limit is not None and limit < 2:
        raise InputError(f"limit={limit}: at least 2 examples are needed to compare anything")
    reader, sample = Reader(root), Sample(limit, seed)
    chosen = _chosen(_known(root), names, types)
    drafts = [_DRAFTS[kind](reader, name, folder, sample) for name, (kind, folder) in chosen.items()]
    reader.problems.check()
    return [tasks.drawn(draft(), sample.settings) for draft in drafts]


def _known(root: Path) -> dict[str, tuple[str, Path]]:
    """Task name -> kind, folder."""
    known = {f"{kind}.{path.name}": (kind, path) for kind, path in sets(root)}
    if not known:
        raise InputError(
            f"{root} holds no data: files such as sts/NAME/test.jsonl are read, of the kinds {', '.join(FOLDERS)} "
            "(README.md, Measuring, has the fields)"
        )
    for path in [path for kind, path in known.values() if kind == "classification"]:
        if _num_classes(root, path) >= _FEWEST_CLUSTERS:
            known.setdefault(f"clustering.{path.name}", ("clustering", path))
    return dict(sorted(known.items()))


def _num_classes(root: Path, folder: Path) -> int:
    """Of the test examples; bad records are reported where they are used."""
    examples = Reader(root).records(folder, "test", example_record) if find(folder, "test") else []
    return len(_classes(_values(examples)))


def _chosen(
    known: Mapping[str, tuple[str, Path]], names: Sequence[str], types: Sequence[str]
) -> dict[str, tuple[str, Path]]:
    kinds = {_plain(word): kind for kind, word in FOLDERS.items()} | {_plain(kind): kind for kind in FOLDERS}
    for unknown in (one for one in types if _plain(one) not in kinds):
        raise InputError(f"no type is called {unknown!r}; the types: {', '.join(FOLDERS.values())}")
    for unknown in (one for one in names if one not in known):
        raise InputError(f"no task is called {unknown!r}; the tasks: {', '.join(known)}")
    wanted = {kinds[_plain(one)] for one in types} or set(FOLDERS)
    result = {
        name: (kind, folder)
        for name, (kind, folder) in known.items()
        if kind in wanted and (not names or name in names)
    }
    if not result:
        raise InputError(f"no task is of the types {', '.join(types)}; the tasks: {', '.join(names or known)}")
    return result


def _plain(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")


def _prompt(name: str) -> str | None:
    return GRIT_SET[_SAME_AS[name]] if name in _SAME_AS else None


# -- one function a kind: records, checked and cut -> a draft --------------------------------------------------------


def _sts(reader: Reader, name: str, folder: Path, sample: Sample) -> Draft:
    read = reader.records(folder, "test", scored_record)
    rows = sample.of(_values(read), name)
    if len({row["score"] for row in rows}) == 1:
        reader.problems.add(name, f"all {len(rows)} pairs have one score: no correlation is defined")
    return lambda: tasks.sts(name, _prompt(name), _columns(rows))


def _pairs(reader: Reader, name: str, folder: Path, sample: Sample) -> Draft:
    read = reader.records(folder, "test", judged_record)
    rows = sample.of(_values(read), name)
    if len({row["label"] for row in rows}) == 1:
        reader.problems.add(name, f"all {len(rows)} pairs have the label {rows[0]['label']}: nothing to tell apart")
    return lambda: tasks.pair_classification(name, _prompt(name), _columns(rows))


def _classification(reader: Reader, name: str, folder: Path, sample: Sample) -> Draft:
    train = reader.records(folder, "train" if find(folder, "train") else "dev", example_record)
    test = reader.records(folder, "test", example_record)
    classes = _classes(_values(train))
    if train and len(classes) < 2:
        reader.problems.add(name, f"the training examples are of one class, {next(iter(classes))!r}")
    for where, row in test:
        if train and row["label"] not in classes:
            reader.problems.add(where, f"the label {row['label']!r} has no training example")
    kept, shots = sample.of(_values(test), name), _SHOTS.get(name, _USUAL_SHOTS)
    pool = sample.of_each_class(_values(train), name, _POOL * shots)
    return lambda: tasks.classification(
        name, _prompt(name), _numbered(pool, classes), _numbered(kept, classes), shots=shots
    )


def _clustering(reader: Reader, name: str, folder: Path, sample: Sample) -> Draft:
    kept = sample.of(_values(reader.records(folder, "test", example_record)), name, _CLUSTERED)
    classes = _classes(kept)
    if kept and len(classes) < 2:
        reader.problems.add(name, f"all {len(kept)} texts are of one class, {next(iter(classes))!r}")
    return lambda: tasks.clustering(name, _prompt(name), _numbered(kept, classes))


def _bitext(reader: Reader, name: str, folder: Path, sample: Sample) -> Draft:
    by_language: dict[str, list[dict[str, str]]] = {}
    for language, pair in _values(reader.records(folder, "test", bitext_record)):
        by_language.setdefault(language, []).append(pair)
    if sample.limit is not None:
        each = max(_FEWEST_PAIRS, _LANGUAGES * sample.limit // max(len(by_language), 1))
        sample = replace(sample, limit=min(sample.limit, each))
    kept = {language: sample.of(pairs, f"{name} {language}") for language, pairs in sorted(by_language.items())}
    return lambda: tasks.bitext(name, _prompt(name), {language: _columns(pairs) for language, pairs in kept.items()})


def _summarization(reader: Reader, name: str, folder: Path, sample: Sample) -> Draft:
    rows = sample.of(_values(reader.records(folder, "test", summaries_record)), name)
    if rows and all(len(set(row["relevance"])) == 1 for row in rows):
        reader.problems.add(name, "no text has summaries of different relevance: no correlation is defined")
    return lambda: tasks.summarization(name, _prompt(name), _columns(rows))


def _reranking(reader: Reader, name: str, folder: Path, sample: Sample) -> Draft:
    rows = sample.of(_values(reader.records(folder, "test", candidates_record)), name)
    corpus: dict[str, str] = {}
    grades: dict[str, dict[str, int]] = {}
    for number, row in enumerate(rows):
        # trec_eval puts the larger id first among equal scores: the negatives', so that a tie gains nothing
        judged = {f"q{number}-a{place}": (text, 1) for place, text in enumerate(row["positive"])}
        judged |= {f"q{number}-b{place}": (text, 0) for place, text in enumerate(row["negative"])}
        corpus |= {document: text for document, (text, _) in judged.items()}
        grades[f"q{number}"] = {document: grade for document, (_, grade) in judged.items()}

    def draft() -> AbsTask:
        documents = {"id": list(corpus), "title": [""] * len(corpus), "text": list(corpus.values())}
        queries = {"id": list(grades), "text": [row["query"] for row in rows]}
        return tasks.retrieval(
            name, _prompt(name), documents, queries, grades, {query: list(of) for query, of in grades.items()}
        )

    return draft


def _retrieval(reader: Reader, name: str, folder: Path, sample: Sample) -> Draft:
    corpus = _by_id(reader, reader.records(folder, "corpus", document_record))
    queries = _by_id(reader, reader.records(folder, "queries", query_record))
    grades = _grades(reader, reader.records(folder, "qrels", judgement_record), corpus, queries)
    kept = sample.of([query for query in queries if query in grades], name)
    judged = {document for query in kept for document in grades[query]}
    others = set(sample.of([document for document in corpus if document not in judged], f"{name} others", _OTHERS))
    if not any(grade > 0 for query in kept for grade in grades[query].values()):
        reader.problems.add(name, f"no judgement of {len(kept)} queries is above 0: there is nothing to find")

    def draft() -> AbsTask:
        ids = [document for document in corpus if document in judged or document in others]
        documents = {
            "id": ids, "title": [corpus[one]["title"] for one in ids], "text": [corpus[one]["text"] for one in ids],
        }  # fmt: skip
        asked = {"id": kept, "text": [queries[query] for query in kept]}
        return tasks.retrieval(name, _prompt(name), documents, asked, {query: grades[query] for query in kept})

    return draft


_DRAFTS: Mapping[str, Callable[[Reader, str, Path, Sample], Draft]] = {
    "bitext": _bitext,
    "classification": _classification,
    "clustering": _clustering,
    "pair_classification": _pairs,
    "reranking": _reranking,
    "retrieval": _retrieval,
    "sts": _sts,
    "summarization": _summarization,
}


# -- between records and columns -------------------------------------------------------------------------------------


def _by_id(reader: Reader, read: Iterable[tuple[str, tuple[str, T]]]) -> dict[str, T]:
    result: dict[str, T] = {}
    for where, (name, value) in read:
        if name in result:
            reader.problems.add(where, f"the id {name!r} stands more than once")
        result[name] = value
    return result


def _grades(
    reader: Reader,
    read: Iterable[tuple[str, tuple[str, str, int]]],
    corpus: Mapping[str, Any],
    queries: Mapping[str, Any],
) -> dict[str, dict[str, int]]:
    result: dict[str, dict[str, int]] = {}
    for where, (query, document, grade) in read:
        if query not in queries:
            reader.problems.add(where, f"no query has the id {query!r}")
        elif document not in corpus:
            reader.problems.add(where, f"no document has the id {document!r}")
        elif result.setdefault(query, {}).setdefault(document, grade) != grade:
            reader.problems.add(where, f"a second grade of document {document!r} for query {query!r}")
    return result


def _values(read: Iterable[tuple[str, T]]) -> list[T]:
    return [value for _, value in read]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _classes(rows: Iterable[Mapping[str, Any]]) -> dict[str | int, int]:
    """Label -> number from 0, in the order of the labels."""
    labels = sorted({row["label"] for row in rows}, key=lambda label: (isinstance(label, str), label))
    return {label: number for number, label in enumerate(labels)}


def _numbered(rows: Sequence[Mapping[str, Any]], classes: Mapping[str | int, int]) -> dict[str, list[Any]]:
    return {"text": [row["text"] for row in rows], "label": [classes[row["label"]] for row in rows]}
