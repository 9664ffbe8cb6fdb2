"""Records -> token sequences, in bulk and once; which tokens are pooled or trained on is ``gritkit.tokens``' decision.

A text that occurs often is tokenised once. What counts as the same text is said by a hash of its words or, where the
record names it, of its id, so that separate processes agree on it. Texts that cannot be used (an instruction that fills
the length alone, an answer that truncation cuts off whole) are reported by the file and line of their record, all of
them, before anything trains.

This module knows nothing about batches, devices or losses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gritkit.data.reading import Sources
from gritkit.data.records import EmbeddingRecord, GenerativeRecord, Text
from gritkit.data.sources import Problems, Source, bare_name
from gritkit.errors import InputError
from gritkit.prompts import Role
from gritkit.tokens import Tokens, TokenSeq, sequence

Progress = Callable[[int], object]
"""Called with the number of records just tokenised."""

# Text beyond this many characters a token is not even looked at: tokenising a book to keep 256 tokens of it would take
# most of the time. The original GRIT code cuts at the same place.
_CHARS_PER_TOKEN = 10
_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens kept of each kind of text, format and instruction included."""

    query: int
    passage: int
    generative: int


@dataclass(frozen=True)
class EmbeddingRow:
    """One embedding record as indices into the texts, and into the answers, of its set."""

    query: int
    pos: tuple[int, ...]
    neg: tuple[int, ...]
    answer: int | None = None


@dataclass
class TextTable:
    """Every distinct text to embed. Equal texts have equal ``words``, whatever their role and instruction.

    Texts are equal when their words are; texts with ids when those are, within a source and apart for queries and
    passages. A text with an id and the same text without one are two.
    """

    sequences: list[TokenSeq] = field(default_factory=list)
    words: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class TokenisedData:
    """A training set in tokens."""

    texts: TextTable
    embedding: list[tuple[str, list[EmbeddingRow]]]
    """(source's name, rows) of each embedding source."""
    generative: list[TokenSeq]
    """All generative examples, source after source."""
    answers: list[TokenSeq] = field(default_factory=list)
    """Questions that follow documents, with the answers to train on."""

    @property
    def num_embedding(self) -> int:
        return sum(len(rows) for _, rows in self.embedding)


def tokenise(
    sources: Sources,
    tokens: Tokens,
    lengths: Lengths,
    progress: Progress | None = None,
    *,
    problems: Problems | None = None,
) -> TokenisedData:
    """Tokenise all sources. Raises RecordError with every record that cannot be used, added to ``problems``."""
    problems = problems or Problems()
    builder = _Builder(tokens, lengths, problems, progress or (lambda _: None))
    embedding: list[tuple[str, list[EmbeddingRow]]] = []
    generative: list[TokenSeq] = []
    for source in sources:
        if source.kind == "embedding":
            embedding.append((source.name, builder.rows(cast("Source[EmbeddingRecord]", source))))
        else:
            generative += builder.examples(cast("Source[GenerativeRecord]", source))
    problems.check()
    return TokenisedData(builder.table(), embedding, generative, builder.answers)


_Key = tuple[Role, str | None, str, int]
"""Role, instruction, text and words of a text to embed."""


class _Builder:
    def __init__(self, tokens: Tokens, lengths: Lengths, problems: Problems, progress: Progress) -> None:
        self.tokens, self.lengths, self.problems, self.progress = tokens, lengths, problems, progress
        self.index: dict[_Key, int] = {}
        self.words: list[int] = []
        self.sequences: list[TokenSeq] = []
        self.answers: list[TokenSeq] = []
        self.unusable: dict[int, str] = {}

    def table(self) -> TextTable:
        return TextTable(self.sequences, np.asarray(self.words, dtype=np.int64))

    # -- texts to embed ------------------------------------------------------------------------------------------

    def rows(self, source: Source[EmbeddingRecord]) -> list[EmbeddingRow]:
        result = []
        for start, records in _chunks(source.records):
            fresh: list[_Key] = []
            rows = [self._row(source, index, record, fresh) for index, record in enumerate(records, start)]
            self._tokenise(fresh)
            if self.unusable:
                self._report(source, start, rows)
            result += rows
            self.progress(len(records))
        return result

    def _row(
        self, source: Source[EmbeddingRecord], index: int, record: EmbeddingRecord, fresh: list[_Key]
    ) -> EmbeddingRow:
        def numbers(role: Role, texts: Sequence[Text], ids: Sequence[str | None] | None) -> tuple[int, ...]:
            return tuple(number(role, text, name) for text, name in zip(texts, ids or [None] * len(texts), strict=True))

        def number(role: Role, text: Text, name: str | None) -> int:
            return self._number((role, *text, words_id(text.text, role, source.name, name)), fresh)

        return EmbeddingRow(
            query=number("query", record.query, record.query_id),
            pos=numbers("passage", record.pos, record.pos_ids),
            neg=numbers("passage", record.neg, record.neg_ids),
            answer=None if record.answer is None else self._answer(source, index, record.query.text, record.answer),
        )

    def _answer(self, source: Source[EmbeddingRecord], index: int, question: str, answer: str) -> int:
        limit = self.lengths.generative
        question, answer = question[: limit * _CHARS_PER_TOKEN], answer[: limit * _CHARS_PER_TOKEN]
        try:
            self.answers.append(self.tokens.answer_example(question, answer, limit))
        except InputError as error:
            self.problems.add(source.where(index), str(error))
        return len(self.answers) - 1

    def _number(self, key: _Key, fresh: list[_Key]) -> int:
        """The place of a text in the table; new ones are put on the list of those to tokenise."""
        number = self.index.get(key)
        if number is None:
            number = self.index[key] = len(self.words)
            self.words.append(key[-1])
            fresh.append(key)
        return number

    def _tokenise(self, fresh: Sequence[_Key]) -> None:
        """Append the sequences of ``fresh``, whose places in the table are the next ones."""
        base = len(self.sequences)
        groups: dict[tuple[Role, str | None], list[int]] = {}
        for offset, (role, instruction, *_) in enumerate(fresh):
            groups.setdefault((role, instruction), []).append(offset)
        self.sequences += [_NOTHING] * len(fresh)
        for (role, instruction), offsets in groups.items():
            limit = self.lengths.query if role == "query" else self.lengths.passage
            texts = [fresh[offset][2][: limit * _CHARS_PER_TOKEN] for offset in offsets]
            try:
                made = self.tokens.to_embed(texts, role, instruction, limit, truncate=True)
                for offset, item in zip(offsets, made, strict=True):
                    self.sequences[base + offset] = item
            except InputError:
                self._one_by_one(base, offsets, texts, role, instruction, limit)

    def _one_by_one(
        self, base: int, offsets: list[int], texts: list[str], role: Role, instruction: str | None, limit: int
    ) -> None:
        """A group with an unusable text in it: find out which ones, so that all of them can be reported."""
        for offset, text in zip(offsets, texts, strict=True):
            try:
                self.sequences[base + offset] = self.tokens.to_embed([text], role, instruction, limit, truncate=True)[0]
            except InputError as error:
                said = str(error)
                self.unusable[base + offset] = said[6:] if said.startswith("text 0 ") else f": {said}"

    def _report(self, source: Source[Any], start: int, rows: Sequence[EmbeddingRow]) -> None:
        for index, row in enumerate(rows, start):
            named = [("query", row.query)]
            named += [(f"pos[{i}]", number) for i, number in enumerate(row.pos)]
            named += [(f"neg[{i}]", number) for i, number in enumerate(row.neg)]
            for what, number in named:
                if number in self.unusable:
                    self.problems.add(source.where(index), f"{what}{self.unusable[number]}")

    # -- examples to write ---------------------------------------------------------------------------------------

    def examples(self, source: Source[GenerativeRecord]) -> list[TokenSeq]:
        result = []
        for start, records in _chunks(source.records):
            for index, record in enumerate(records, start):
                try:
                    result.append(self._example(record))
                except InputError as error:
                    self.problems.add(source.where(index), str(error))
            self.progress(len(records))
        return result

    def _example(self, record: GenerativeRecord) -> TokenSeq:
        limit = self.lengths.generative
        if record.text is not None:
            example = self.tokens.text_example(record.text[: limit * _CHARS_PER_TOKEN])
        else:
            example = self.tokens.chat_example(record.messages)
        cut = _cut(example, limit, self.tokens.eos_id)
        if not cut.loss_mask[1:].any():
            raise InputError(
                f"nothing of the {int(example.loss_mask.sum())} tokens to train on is within the first {limit} of "
                f"{len(example)} tokens: shorten what stands before the answer or raise generative_max_length"
            )
        return cut


def words_id(text: str, role: Role, source: str, name: str | None = None) -> int:
    """What equal texts have in common, and others do not: 63 bits of a hash, the same in every process and run.

    Of the text without outer white space; where the source names it, of that name, which is told apart from the names
    of other sources, and of queries from those of passages.
    """
    identity = ["text", text.strip()] if name is None else ["id", bare_name(source), role, name]
    digest = hashlib.blake2b("\0".join(identity).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _cut(example: TokenSeq, limit: int, eos_id: int | None) -> TokenSeq:
    """The first ``limit`` tokens; a cut answer still ends with the end of text, as every answer does."""
    if len(example) <= limit:
        return example
    if eos_id is None or not example.loss_mask[limit - 1]:
        return sequence(example.ids[:limit], loss=example.loss_mask[:limit])
    ids = example.ids[:limit].copy()
    ids[-1] = eos_id
    return sequence(ids, loss=example.loss_mask[:limit])


def _chunks(records: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    for start in range(0, len(records), _CHUNK):
        yield start, records[start : start + _CHUNK]


_NOTHING = sequence([])
