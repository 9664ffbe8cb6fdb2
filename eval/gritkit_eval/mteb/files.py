"""Files of evaluation data: which sets a folder holds, and what is wrong with any of their records.

    sts/NAME/test                  {sentence1, sentence2, score}
    classification/NAME/train|dev, test    {text, label}
    clustering/NAME/test           {text, label}
    pair_classification/NAME/test  {sentence1, sentence2, label}; or premise and hypothesis; label 0 or 1
    reranking/NAME/test            {query, positive: [...], negative: [...]}
    retrieval/NAME/corpus, queries, qrels  {_id, title, text}, {_id, text}, {query_id, corpus_id, score}
    bitext/NAME/test               {sentence1, sentence2}, and lang where there are several
    summarization/NAME/test        {text, human_summaries: [...], machine_summaries: [...], relevance: [...]}

Each is one file: JSON Lines (plain, ``.gz``, ``.zst``) or Parquet. Other fields are ignored.

This module knows nothing about mteb, metrics or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gritkit.data.reading import DamagedFile, file_rows
from gritkit.data.sources import SUFFIXES, Problems
from gritkit.errors import InputError, RecordError

T = TypeVar("T")
FOLDERS: Mapping[str, str] = {
    "bitext": "BitextMining",
    "classification": "Classification",
    "clustering": "Clustering",
    "pair_classification": "PairClassification",
    "reranking": "Reranking",
    "retrieval": "Retrieval",
    "sts": "STS",
    "summarization": "Summarization",
}
"""Folder -> mteb's name of the type."""


@dataclass
class Reader:
    """Reads any number of files and reports everything that is wrong with them at once."""

    root: Path
    problems: Problems = field(default_factory=lambda: Problems("nothing was measured"))

    def records(self, folder: Path, stem: str, parse: Callable[[Mapping[str, Any]], T]) -> list[tuple[str, T]]:
        """(``file:line``, parsed) of every record of the file ``stem.*``; a record that ``parse`` refuses with a
        RecordError is a problem. Raises InputError where there is no such file, or more than one."""
        path = find(folder, stem)
        if path is None:
            raise InputError(f"{folder} has no {stem} file ({', '.join(SUFFIXES)}): the data are incomplete")
        name, result, place = str(path.relative_to(self.root)), [], 0
        before = self.problems.total
        try:
            for place, row in file_rows(path):
                try:
                    if isinstance(row, RecordError):
                        raise row
                    if not isinstance(row, dict):
                        raise RecordError(f"an object is needed, not {type(row).__name__}")
                    result.append((f"{name}:{place}", parse(row)))
                except RecordError as error:
                    self.problems.add(f"{name}:{place}", str(error))
        except DamagedFile as error:
            self.problems.add(f"{name}:{place}", f"{error} after this line" if place else str(error))
        if not result and self.problems.total == before:
            self.problems.add(name, "the file has no records")
        return result


def find(folder: Path, stem: str) -> Path | None:
    """The one file of that name. Raises InputError where several could be meant."""
    found = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has several {stem} files ({', '.join(path.name for path in found)}): keep one")
    return found[0] if found else None


def sets(root: Path) -> Iterator[tuple[str, Path]]:
    """(kind folder, folder of a set) of everything there is, in the order of the names."""
    for kind in FOLDERS:
        if (root / kind).is_dir():
            for path in sorted((root / kind).iterdir()):
                if path.is_dir() and not path.name.startswith("."):
                    yield kind, path
