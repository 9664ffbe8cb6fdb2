"""Documents -> rows and blocks, by one model: cut, read in one pass each, key-values coded.

    Document -> Chunker -> TokenSeq -> GritModel.read (vector + DocKV) -> Row, Block

It is all of indexing that needs a model, and nothing of it needs a store: where documents are read elsewhere (another
process, another machine) the same happens there.

This module knows nothing about databases, files or answers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gritkit.batch import token_budget
from gritkit.errors import InputError
from gritkit.kv.blocks import Block
from gritkit.kv.codecs import check_codec
from gritkit.model import GritModel
from gritkit.rag.chunking import MIN_TOKENS, Chunker
from gritkit.rag.coding import BlockCoder
from gritkit.rag.documents import Document, tags_of, to_json
from gritkit.rag.manifest import Manifest
from gritkit.rag.rates import Rates
from gritkit.rag.store import Row, Vector
from gritkit.tokens import TokenSeq

CHUNK_TOKENS = 512
"""Longest chunk where nobody says otherwise, prompt included; less where the model holds less."""
CHUNK_OVERLAP = 32
SECTION = "section"
"""What a chunk's headings are called among its metadata, unless the document has an entry of that name."""
_READ_TOKENS = 4096
"""Tokens whose key-values are in memory at once; at least one packed row."""
_TEXTS_AT_ONCE = 256
"""Chunks that are tokenised at once."""
_MARGIN = 4
"""Tokens by which a text may grow where it meets its prompt."""


@dataclass(frozen=True)
class Piece:
    """A chunk of a document, tokenised; not read yet."""

    document: str
    """Its id."""
    number: int
    count: int
    text: str
    metadata: str
    tags: tuple[str, ...]
    digest: str
    tokens: TokenSeq


def manifest_of(
    model: GritModel, *, codec: str, chunk_tokens: int | None = None, chunk_overlap: int | None = None
) -> Manifest:
    """What a knowledge base of this model says about itself.

    Raises:
        InputError: for an unknown codec, chunks that are longer than the model embeds or shorter than 8 tokens, or an
            overlap of more than half of them.
    """
    limit = min(model.embedding_config.max_length, model.context_length)
    tokens = min(CHUNK_TOKENS, limit) if chunk_tokens is None else chunk_tokens
    least = MIN_TOKENS + model.tokens.prompt_length("passage") + _MARGIN
    if not isinstance(tokens, int) or not least <= tokens <= limit:
        raise InputError(f"chunk_tokens={tokens!r} must be between {least} and the {limit} tokens that are embedded")
    overlap = min(CHUNK_OVERLAP, tokens // 8) if chunk_overlap is None else chunk_overlap
    if type(overlap) is not int or not 0 <= overlap <= tokens // 2:
        raise InputError(f"chunk_overlap={overlap!r} must be between 0 and {tokens // 2}, half of a chunk")
    return Manifest(
        fingerprint=model.fingerprint,
        dim=model.dim,
        prompt_format=model.embedding_config.prompt_format,
        codec=check_codec(codec),
        chunk_tokens=tokens,
        chunk_overlap=overlap,
    )


class Reader:
    """One model that reads documents as a manifest says, and measures how fast it does.

    ``coder`` is None where key-values cannot be kept.
    """

    def __init__(
        self, model: GritModel, manifest: Manifest, coder: BlockCoder | None, rates: Rates | None = None
    ) -> None:
        self._model = model
        self._rates = rates
        self._manifest = manifest
        self._coder = coder
        self._limit = min(model.embedding_config.max_length, model.context_length)
        room = manifest.chunk_tokens - model.tokens.prompt_length("passage") - _MARGIN
        self._chunker = Chunker(model.tokens.backend, max_tokens=room, overlap=min(manifest.chunk_overlap, room // 2))

    def digest(self, document: Document) -> str:
        """Says whether a document, and apart from it its metadata, is the one that was read: two digests in one."""
        cut = [document.text, document.kind, self._manifest.chunk_tokens, self._manifest.chunk_overlap]
        return _digest(json.dumps(cut)) + _digest(to_json(dict(document.metadata)))

    def cut(self, document: Document, *, tick: Callable[[], object] = lambda: None) -> list[Piece]:
        """The chunks of a document. Raises InputError, naming it, for one without words or with none that fit.

        ``tick`` is called now and then; what it raises ends the cutting.
        """
        try:
            chunks = self._chunker.chunks(document.text, document.kind, tick=tick)
            if not chunks:
                raise InputError("it is empty: drop it or give it words")
            texts = [chunk.text for chunk in chunks]
            tokens: list[TokenSeq] = []
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                tick()
                some = texts[start : start + _TEXTS_AT_ONCE]
                tokens += self._model.tokens.to_embed(some, "passage", None, self._limit, truncate=False, first=start)
        except InputError as error:
            raise InputError(f"document {document.id!r:.200} cannot be added: {error}") from None
        digest, tags = self.digest(document), tags_of(document.metadata)
        return [
            Piece(document.id, number, len(chunks), chunk.text, _metadata(document, chunk.trail), tags, digest, one)
            for number, (chunk, one) in enumerate(zip(chunks, tokens, strict=True))
        ]

    def again(self, row: Row) -> Piece:
        """A stored chunk, to be read again. Raises InputError where it does not fit this model."""
        try:
            (tokens,) = self._model.tokens.to_embed([row.text], "passage", None, self._limit, truncate=False)
        except InputError as error:
            raise InputError(f"chunk {row.id!r:.200} cannot be read by this model: {error}") from None
        return Piece(row.document, row.number, row.count, row.text, row.metadata, row.tags, row.digest, tokens)

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[list[Row], list[Block]]]:
        """Rows and blocks of all pieces in their order, a few passes' worth at a time."""
        for group in _groups(pieces, max(_READ_TOKENS, token_budget(self._model.device))):
            sequences = [piece.tokens for piece in group]
            if self._coder is None:
                vectors = self._model.embed_tokens(sequences)
                yield [self._row(piece, vector, "") for piece, vector in zip(group, vectors, strict=True)], []
                continue
            since = time.perf_counter()
            vectors, documents = self._model.read_tokens(sequences)
            if self._rates is not None:
                self._rates.measured("prefill", sum(map(len, sequences)), time.perf_counter() - since)
            blocks = [self._coder.block(document) for document in documents]
            made = zip(group, vectors, blocks, strict=True)
            yield [self._row(piece, vector, block.key) for piece, vector, block in made], blocks

    def _row(self, piece: Piece, vector: Vector, block_key: str) -> Row:
        return Row(
            document=piece.document,
            number=piece.number,
            count=piece.count,
            text=piece.text,
            metadata=piece.metadata,
            tags=piece.tags,
            digest=piece.digest,
            token_ids=tuple(piece.tokens.ids.tolist()),
            block_key=block_key,
            fingerprint=self._manifest.fingerprint,
            vector=vector,
        )


def own_metadata(metadata: str, tags: Sequence[str]) -> dict[str, Any]:
    """What a document's metadata was, by that of one of its chunks: without the headings."""
    found: dict[str, Any] = json.loads(metadata)
    if not any(json.loads(tag)[0] == SECTION for tag in tags):
        found.pop(SECTION, None)
    return found


def with_metadata(row: Row, document: Document, digest: str) -> Row:
    """A chunk whose document has the same text and other metadata."""
    own = SECTION in own_metadata(row.metadata, row.tags)  # then the headings were not kept
    section = None if own else json.loads(row.metadata).get(SECTION)
    metadata = _metadata(document, [] if section is None else [section])
    return dataclasses.replace(row, metadata=metadata, tags=tags_of(document.metadata), digest=digest)


def same_text(digest: str, other: str) -> bool:
    """Whether two digests of :meth:`Reader.digest` differ by metadata at most."""
    return digest[:_DIGITS] == other[:_DIGITS]


_DIGITS = 32


def _metadata(document: Document, trail: Sequence[str]) -> str:
    """JSON of a chunk's metadata: the document's, and the headings that the chunk stands under."""
    section = {SECTION: " > ".join(trail)} if trail else {}
    return to_json({**section, **document.metadata})


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_DIGITS // 2).hexdigest()


def _groups(pieces: Sequence[Piece], budget: int) -> Iterator[list[Piece]]:
    """Neighbouring pieces of at most ``budget`` tokens together, a longer one alone."""
    group: list[Piece] = []
    room = budget
    for piece in pieces:
        size = len(piece.tokens)
        if group and size > room:
            yield group
            group, room = [], budget
        group.append(piece)
        room -= size
    if group:
        yield group
