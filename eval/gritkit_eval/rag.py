"""``gritkit eval rag``: what models answer to question files, without documents and with them, in every way of reuse.

For each model and question file the passages are indexed once for each codec, into folders that go when all is measured
(or a knowledge base is given), and :func:`gritkit.rag.gate.measure` does the rest. Documents are found by search, or
given: the question's own passages, gold ones first (``oracle``).

This module knows nothing about how a way is measured, or tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from gritkit import GritModel
from gritkit.data.reading import file_rows
from gritkit.errors import InputError, RecordError
from gritkit.files import resolve
from gritkit.rag.documents import Document, Search
from gritkit.rag.gate import CLOSED, Measured, measure, settings_of
from gritkit.rag.questions import Exam, load_exams
from gritkit.rag.rag import Rag
from gritkit_eval.arguments import check_names, listed, named, whole_numbers
from gritkit_eval.outcome import OutcomeFolder, plain
from gritkit_eval.rag_outcomes import Subject, version_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run."""

    questions: tuple[Path, ...]
    models: tuple[str, ...]
    """Folders or hub ids, each optionally with a name before it: ``name=folder``."""
    kb: Path | None = None
    documents: Path | None = None
    modes: tuple[str, ...] = (CLOSED, "off", "prefix", "cached", "linked")
    codecs: tuple[str, ...] = ("int8",)
    joins: tuple[str, ...] = ("no-bos",)
    top_k: tuple[int, ...] = (1, 3)
    link_tokens: tuple[int, ...] = (16,)
    oracle: bool = False
    by: Search = "dense"
    limit: int | None = None
    max_new_tokens: int = 32
    chunk_tokens: int | None = None
    seed: int = 0
    """Chooses which ``limit`` questions of a file are asked."""

    def __post_init__(self) -> None:
        if self.kb is not None and (self.documents is not None or self.oracle or len(self.codecs) > 1):
            raise InputError("a knowledge base has its documents and one codec: leave out documents, oracle and codecs")
        if self.documents is not None and self.oracle:
            raise InputError("oracle reads the questions' own passages: leave out documents")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way of one model on one file."""

    model: str
    questions: str
    measured: Measured


def settings_from(
    *, modes: str, codecs: str, joins: str, top_k: str, link_tokens: str, questions: Sequence[Path],
    models: Sequence[str], by: str, **others: Any,
) -> Settings:  # fmt: skip
    """From a command line's strings, lists by comma. Raises InputError for a number that is none."""
    if by not in get_args(Search):
        raise InputError(f"by={by!r} is not one of {', '.join(get_args(Search))}")
    return Settings(
        questions=tuple(questions), models=tuple(models), by=cast(Search, by), modes=listed(modes),
        codecs=listed(codecs), joins=listed(joins), top_k=whole_numbers("top_k", top_k),
        link_tokens=whole_numbers("link_tokens", link_tokens, least=0), **others,
    )  # fmt: skip


def run(settings: Settings, *, outcomes: OutcomeFolder | None = None, progress: bool = False) -> list[Row]:
    """Measure everything; with ``outcomes``, only what is not there yet.

    Raises:
        RecordError: naming file and line of a bad question or document, before any model is loaded.
        InputError: for settings that contradict each other, or questions without the passages that they need.
    """
    check_names(settings.models)
    ways = settings_of(
        settings.modes, settings.codecs, top_ks=settings.top_k, joins=settings.joins, link_tokens=settings.link_tokens
    )
    files = {name: chosen(load_exams(path), settings) for name, path in _names(settings.questions).items()}
    documents = {name: _documents(name, exams, settings) for name, exams in files.items()}
    rows = []
    for given in settings.models:
        name, source = named(given)
        model = GritModel.from_pretrained(source)
        for file, exams in files.items():
            subject = _subject(model, name, file, exams, documents[file], settings)
            measured = subject.find(ways, outcomes) if outcomes is not None and settings.kb is None else None
            if measured is None:
                began = time.monotonic()
                with _knowledge_bases(model, documents[file], settings) as bases:
                    measured = measure(
                        bases.__getitem__,
                        exams,
                        ways,
                        max_new_tokens=settings.max_new_tokens,
                        by=settings.by,
                        where=own_passages if settings.oracle else None,
                        progress=progress,
                    )
                if outcomes is not None:
                    subject.save(measured, time.monotonic() - began, outcomes)
            rows += [Row(model=name, questions=file, measured=one) for one in measured]
    return rows


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without endings, those of one name with their folder's. Raises InputError where even that
    is one."""
    stems = [path.name.split(".")[0] for path in paths]
    found: dict[str, Path] = {}
    for stem, path in zip(stems, paths, strict=True):
        name = stem if stems.count(stem) == 1 else f"{resolve(path).parent.name}/{stem}"
        if name in found:
            raise InputError(f"{found[name]} and {path} would both be called {name!r}: rename one, or its folder")
        found[name] = path
    return found


def _subject(
    model: GritModel, name: str, file: str, exams: Sequence[Exam], documents: Sequence[Document], settings: Settings
) -> Subject:
    chosen_by = {"limit": settings.limit, "seed": settings.seed} if settings.limit is not None else {}
    given = {} if settings.kb is None else {"kb": str(settings.kb)}
    return Subject(
        model=name, fingerprint=model.fingerprint, questions=file, version=version_of(exams, documents),
        search="own passages" if settings.oracle else f"{settings.by} search",
        settings={
            "by": "own passages" if settings.oracle else settings.by, "max_new_tokens": settings.max_new_tokens,
            "chunk_tokens": settings.chunk_tokens, "device": str(model.device), **chosen_by, **given,
        },
    )  # fmt: skip


def chosen(exams: Sequence[Exam], settings: Settings) -> list[Exam]:
    """``limit`` of the questions, the same ones for a seed, in the order of the file."""
    if settings.limit is None or settings.limit >= len(exams):
        return list(exams)
    kept = sorted(random.Random(settings.seed).sample(range(len(exams)), settings.limit))
    return [exams[index] for index in kept]


def own_passages(number: int, top_k: int) -> Mapping[str, Any]:
    """The filter that leaves a question the first ``top_k`` of its passages, gold ones first."""
    return {f"first {top_k} of": number}


def _documents(name: str, exams: Sequence[Exam], settings: Settings) -> list[Document]:
    if settings.kb is not None:
        return []
    if settings.documents is not None:
        return list(_read(settings.documents))
    if set(settings.modes) == {CLOSED}:
        return [Document("no documents")]
    bare = sum(not exam.passages for exam in exams)
    if bare == len(exams) or (settings.oracle and bare):
        raise InputError(f"{bare} questions of {name!r} come without passages: give a knowledge base or documents")
    if settings.oracle:
        return [one for number, exam in enumerate(exams) for one in _ranked(number, exam, settings.top_k)]
    texts = dict.fromkeys(passage.text for exam in exams for passage in exam.passages)
    return [Document(text) for text in texts]


def _ranked(number: int, exam: Exam, top_ks: Sequence[int]) -> Iterator[Document]:
    """A question's passages, gold ones first, as many as are asked for; each knows whose first ones it belongs to."""
    passages = sorted(exam.passages, key=lambda passage: not passage.gold)
    for place, passage in enumerate(passages[: max(top_ks)]):
        metadata = {f"first {top_k} of": number for top_k in top_ks if place < top_k}
        yield Document(passage.text, id=f"{number}-{place}", metadata=metadata)


def _read(path: Path) -> Iterator[Document]:
    """Documents of a JSON Lines file: {"text": ..., "id": ...}, the id optional."""
    file = resolve(path)
    if not file.is_file():
        raise InputError(f"no such file: {file}")
    for line, row in file_rows(file):
        if isinstance(row, RecordError) or not isinstance(row, dict) or not isinstance(row.get("text"), str):
            what = str(row) if isinstance(row, RecordError) else f"the record has no text: {row!r:.80}"
            raise RecordError(f"{file.name}:{line}: {what}")
        name = row.get("id") or row.get("_id")
        yield Document(row["text"]) if name is None else Document(row["text"], id=name)


@contextlib.contextmanager
def _knowledge_bases(model: GritModel, documents: Sequence[Document], settings: Settings) -> Iterator[dict[str, Rag]]:
    """A knowledge base for each codec, open."""
    with contextlib.ExitStack() as stack:
        if settings.kb is not None:
            (codec,) = settings.codecs
            yield {codec: stack.enter_context(Rag.open(settings.kb, model, codec=codec))}
            return
        folder = Path(tempfile.mkdtemp(prefix="gritkit-eval-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bases = {}
        for codec in settings.codecs:
            rag = Rag.open(folder / codec, model, codec=codec, chunk_tokens=settings.chunk_tokens)
            bases[codec] = stack.enter_context(rag)
            bases[codec].add(documents)
        yield bases


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as flat objects; what is not measured is null."""
    flat = []
    for row in rows:
        figures = dataclasses.asdict(row.measured)
        fields = {"model": row.model, "questions": row.questions, **figures.pop("setting"), **figures}
        flat.append(plain(fields))
    return flat
