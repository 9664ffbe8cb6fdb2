"""Documents of one request -> a knowledge base, a commit at a time, so that its client can watch and leave.

    with bases.writer(name) as writer:
        addition = Addition(found, writer, metrics.count_added)
        async for progress in addition.commits(): ...
        addition.reply()

Between commits others have their turn. Who leaves ends it, within a pass of the model; what was committed stays, and is
passed over when it is sent again, and nothing is left of the commit that had begun.

This module knows nothing about HTTP messages or files.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from gritkit.errors import GritkitError, InputError
from gritkit.rag import AddReport, AddStopped, Document, Rag
from gritkit_serve.bases import Writer
from gritkit_serve.errors import HttpError, problem_of
from gritkit_serve.schemas.kb import MAX_ERRORS, AddReply, NewDocument, NotTaken, Progress

DOCUMENTS_AT_ONCE = 32
CHARACTERS_AT_ONCE = 1 << 18
"""Of one commit, but for a document that is longer: some seconds of a small model on a CPU."""

Outcome = tuple[AddReport, list[tuple[str, str]]]


@dataclass
class Found:
    """The documents of a request, and what could not be read of it."""

    documents: list[Document] = field(default_factory=list)
    not_taken: list[NotTaken] = field(default_factory=list)
    num_not_taken: int = 0

    def refuse(self, where: str, reason: str) -> None:
        """Count what could not be read, and name it while there are few."""
        self.num_not_taken += 1
        if len(self.not_taken) < MAX_ERRORS:
            self.not_taken.append(NotTaken(id=where, reason=reason))


class Addition:
    """What one request adds. ``count`` is told what became of documents as soon as it is so, whoever waits for it."""

    def __init__(self, found: Found, writer: Writer, count: Callable[[AddReport], None]) -> None:
        self._found = found
        self._writer = writer
        self._count = count
        self._left = threading.Event()
        """Nobody waits for it any more."""
        self._counts: Counter[str] = Counter(failed=found.num_not_taken)

    async def commits(self) -> AsyncGenerator[Progress, None]:
        """How far it has come: at first, and after every commit. Closed or cancelled, it ends the one that has begun.

        Raises:
            HttpError: where it could not go on, with what is on disk by then.
        """
        done = self._found.num_not_taken
        total = done + len(self._found.documents)
        self._count(AddReport(failed=done))
        yield Progress(documents_done=done, documents_total=total)
        for batch in _batches(self._found.documents):
            try:
                report, failed = await self._writer.write(partial(self._add, batch))
            except GritkitError as error:
                raise _stopped(error, done, total) from error
            except BaseException:
                self._left.set()
                raise
            for id, reason in failed:
                self._found.refuse(id, reason)
            for what in ("added", "updated", "skipped", "failed", "chunks"):
                self._counts[what] += getattr(report, what)
            done += len(batch)
            yield Progress(documents_done=done, documents_total=total)

    def reply(self) -> AddReply:
        """What became of them."""
        counts = {what: self._counts[what] for what in ("added", "updated", "skipped", "failed", "chunks")}
        return AddReply(**counts, errors=self._found.not_taken)

    def _add(self, documents: Sequence[Document], rag: Rag) -> Outcome:
        """One commit, in a worker thread: it may come to its end when its client has left."""
        failed: list[tuple[str, str]] = []

        def on_error(id: str, reason: str) -> None:
            failed.append((id, reason.removeprefix(f"document {id!r:.200} cannot be added: ")))

        try:
            report = rag.add(documents, on_error=on_error, cancelled=self._left.is_set)
        except AddStopped:  # nobody hears of it
            return AddReport(), failed
        self._count(report)
        return report, failed


def found_in(given: Sequence[NewDocument]) -> Found:
    """The documents of a JSON body; one that gritkit does not take is named by its id or its place."""
    found = Found()
    for index, one in enumerate(given):
        try:
            found.documents.append(one.document())
        except InputError as error:
            found.refuse(one.id or f"documents[{index}]", str(error))
    return found


def _batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        if batch and (len(batch) == DOCUMENTS_AT_ONCE or size + len(document.text) > CHARACTERS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text)
    if batch:
        yield batch


def _stopped(error: GritkitError, done: int, total: int) -> GritkitError:
    if not done:
        return error
    problem = problem_of(error)
    message = (
        f"{problem.message}; {done} of the {total} documents were done before, and are passed over when sent again"
    )
    return HttpError(message, status=problem.status, code=problem.code, headers=problem.headers)
