"""The knowledge bases of a folder, for many clients at once.

    DIR/name/      one each, by the name that clients use; links and other names are passed over
    DIR            where it is a knowledge base itself (``gritkit index DIR``): the only one, named as the folder
    postgresql://  one too, named as the database; made at the first use if there is none

Clients read beside each other and beside a writer; writers of one base take turns, and what a write returned is on
disk. A base that is deleted is renamed first, so that a kill leaves all of it or none; the rest goes at the next start.

Names come from clients. :meth:`Bases.path` is the only place where one becomes a path.

This module knows nothing about HTTP messages, and of knowledge bases what :class:`gritkit.rag.Rag` shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from gritkit.errors import GritkitError, InputError, StoreError
from gritkit.files import resolve, write_atomic
from gritkit.kv.codecs import DEFAULT_CODEC
from gritkit.rag import Rag
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.lock import InUseError
from gritkit.rag.place import place_of
from gritkit.rag.reader import manifest_of
from gritkit_serve.base_folders import INSTRUCTION_FILE, NAME, clear_remains, instruction_of, is_free, put_aside, tidy
from gritkit_serve.base_looks import Facts, open_to_look
from gritkit_serve.engine import Overloaded
from gritkit_serve.errors import ConflictError, HttpError, NotFoundError
from gritkit_serve.open_bases import GoneError, Identity, OpenBases, Where, identity_of
from gritkit_serve.settings import Settings

if TYPE_CHECKING:
    from gritkit_serve.engine import Engine

T = TypeVar("T")
Held = TypeVar("Held")

_WRITERS = 2  # at work at once: the device has no use for more, and those who read need threads too
_PATIENCE_S = 10.0  # with those who still read what is to be deleted, and with other processes
_RETRY_S = 5.0
_log = logging.getLogger("gritkit.serve")


@dataclass(eq=False)
class _Turns:
    """Those who change one base."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    places: int = 0


class Writer:
    """A place among those who change one base; made by :meth:`Bases.writer`."""

    def __init__(self, bases: Bases, name: str, turns: _Turns) -> None:
        self._bases = bases
        self._name = name
        self._turns = turns
        self._open = True

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Make room for another one; any number of times."""
        if self._open:
            self._open = False
            self._turns.places -= 1
            self._bases._forget(self._name, self._turns)

    async def write(self, work: Callable[[Rag], T]) -> T:
        """What ``work`` makes of the base, in a worker thread, when it is this one's turn.

        Work that has begun goes on to its end when its caller is cancelled; other work may come between two calls.

        Raises:
            NotFoundError: when the base was deleted meanwhile. HttpError: when its disk refuses.
        """
        return await self.turn(lambda: self._bases._with(self._name, work, changes=True))

    async def turn(self, work: Callable[[], T]) -> T:
        """The same for work that is not done with an open base."""
        return await self._bases._turn(self._name, self._turns, work)


class Bases:
    """Made when the model is there. Its coroutines are for one event loop; the engine's workers do the work.

    Raises:
        StoreError: for a folder that cannot be used. InputError: for a path that is none.
    """

    def __init__(self, folder: str | os.PathLike[str], engine: Engine, *, settings: Settings | None = None) -> None:
        self._address = os.fspath(folder) if "://" in os.fspath(folder) else None
        given = resolve(folder) if self._address is None else place_of(self._address).blocks
        self.folder = Path(os.path.realpath(given))
        self._engine = engine
        self._settings = settings or Settings()
        self.single = _slug(given.name) if identity_of(self.folder) is not None else None
        if self._address is not None:
            self.single = _slug(urlsplit(self._address).path)
        """The name of the only one, where no others can be made and it cannot be deleted."""
        self._open = OpenBases(
            self._opened,
            self._opened_to_look,
            most=self._settings.max_open_bases,
            memory_bytes=self._settings.base_memory_bytes,
        )
        self._making = threading.Lock()
        self._turns: dict[str, _Turns] = {}
        self._writers = asyncio.Semaphore(_WRITERS)
        self._unfinished: set[asyncio.Future[Any]] = set()
        tidy(self.folder, within=self.single is None)

    # -- names and paths -----------------------------------------------------------------------------------------

    def where(self, name: str) -> Where:
        """The folder of a base, there or not, or its address. Raises NotFoundError for what is no name of one."""
        if self.single is not None:
            if name != self.single:
                raise _unknown(name)
            return self._address or self.folder
        return self.path(name)

    def path(self, name: str) -> Path:
        """The folder of one among several. Raises NotFoundError for what is no name of one."""
        if not NAME.fullmatch(name):
            raise _unknown(name)
        return self.folder / name

    def names(self) -> list[str]:
        """Those that are there, sorted."""
        if self.single is not None:
            return [self.single]
        found = [name for name in os.listdir(self.folder) if NAME.fullmatch(name)]
        return sorted(name for name in found if identity_of(self.path(name)) is not None)

    # -- for coroutines ------------------------------------------------------------------------------------------

    async def read(self, name: str, work: Callable[[Rag], T]) -> T:
        """What ``work`` makes of a base, in a worker thread. It changes nothing, and may be called twice.

        Raises:
            NotFoundError: where there is none of that name. ConflictError: for one that cannot be used now.
        """
        return await self._engine.call(lambda: self._with(name, work), kind="bases")

    def writer(self, name: str) -> Writer:
        """A place among those who change a base, to be closed.

        Raises:
            NotFoundError: where there is none of that name. Overloaded: when too many are changing it.
        """
        if identity_of(self.where(name)) is None:
            raise _unknown(name)
        turns = self._turns.setdefault(name, _Turns())
        if turns.places >= self._settings.max_waiting_writes:
            raise Overloaded(f"{turns.places} requests are changing knowledge base {name!r}", _RETRY_S)
        turns.places += 1
        return Writer(self, name, turns)

    async def create(self, name: str, *, instruction: str | None = None, **options: Any) -> None:
        """Make a base; the options are those of :meth:`gritkit.rag.Rag.open` that count when it is made.

        Raises:
            ConflictError: where one of that name is there, or too many are. InputError: for an option that is none.
        """
        await self._to_the_end(
            asyncio.ensure_future(self._engine.call(lambda: self._create(name, instruction, options), kind="bases"))
        )

    async def delete(self, name: str) -> None:
        """Remove a base with everything in it, when those who change it are done.

        Raises:
            NotFoundError: where there is none of that name. ConflictError: while it is in use for too long.
        """
        if name == self.single:
            raise HttpError(
                f"knowledge base {name!r} is the one that this server was started with: delete that by hand",
                status=403,
            )
        with self.writer(name) as writer:
            await writer.turn(lambda: self._delete(name))

    async def facts(self, name: str) -> Facts:
        """Raises NotFoundError where there is none of that name."""
        return await self._engine.call(lambda: self._facts(name), kind="bases")

    async def all_facts(self) -> list[Facts]:
        """Of every base, by name."""

        def look() -> list[Facts]:
            found = []
            try:
                names = self.names()
            except OSError as error:
                raise HttpError(f"the knowledge bases cannot be listed: {error.strerror}", status=500) from error
            for name in names:
                with contextlib.suppress(NotFoundError):  # deleted meanwhile
                    found.append(self._facts(name))
            return found

        return await self._engine.call(look, kind="bases")

    def counts(self) -> Counter[str]:
        """Reads of key-values so far, by tier. They never fall."""
        return self._open.counts()

    def close(self) -> None:
        """Let go of all bases, when the engine has stopped."""
        self._open.close()

    # -- inside --------------------------------------------------------------------------------------------------

    async def _turn(self, name: str, turns: _Turns, work: Callable[[], T]) -> T:
        await turns.lock.acquire()
        try:
            await self._writers.acquire()
        except BaseException:
            turns.lock.release()
            raise

        def done(_: object) -> None:
            self._writers.release()
            turns.lock.release()
            self._forget(name, turns)

        task = asyncio.ensure_future(self._engine.call(work, kind="bases"))
        task.add_done_callback(done)
        return await self._to_the_end(task)

    async def _to_the_end(self, task: asyncio.Future[T]) -> T:
        """The task's outcome; it goes on when its caller is cancelled."""
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    def _forget(self, name: str, turns: _Turns) -> None:
        """Without anybody at work or waiting there is nothing to remember."""
        if not turns.places and not turns.lock.locked() and self._turns.get(name) is turns:
            del self._turns[name]

    # -- in worker threads ---------------------------------------------------------------------------------------

    def _with(self, name: str, work: Callable[[Rag], T], *, changes: bool = False) -> T:
        return self._tried(name, self._open.using, work, status=507 if changes else 500)

    def _tried(
        self,
        name: str,
        held: Callable[[str, Where], AbstractContextManager[tuple[Held, Identity]]],
        work: Callable[[Held], T],
        *,
        status: int,
    ) -> T:
        """What ``work`` makes of what ``held`` gives of a base; ``status`` where its disk fails."""
        where = self.where(name)
        for last in (False, True):
            try:
                with held(name, where) as (base, identity):
                    try:
                        return work(base)
                    except StoreError as error:
                        now = identity_of(where)
                        if now == identity or last:
                            raise self._failure(name, error, status=status) from error
                        # another process deleted it, made it anew or indexed it again in these moments
            except GoneError:
                raise _unknown(name) from None
        raise AssertionError("the second time returned or raised")

    def _opened(self, name: str, where: Where) -> Rag:
        with self._said(name):
            return Rag.open(where, self._engine.model, instruction=instruction_of(where))

    def _opened_to_look(self, name: str, where: Where) -> KnowledgeBase:
        with self._said(name):
            return open_to_look(where, self._engine.model, instruction_of(where))

    @contextlib.contextmanager
    def _said(self, name: str) -> Iterator[None]:
        """Why a base cannot be opened, to a client."""
        try:
            yield
        except (StoreError, InputError, OSError) as error:
            raise ConflictError(f"knowledge base {name!r} cannot be used: {self._told(name, error)}") from error

    def _create(self, name: str, instruction: str | None, options: dict[str, Any]) -> None:
        if self.single is not None:
            raise HttpError(
                "this server serves one knowledge base: start it with the folder of several to make others", status=403
            )
        path = self.path(name)
        model = self._engine.model
        model.tokens.format.embed_prefix("query", instruction)  # raises before anything is made
        manifest_of(model, **{**options, "codec": options.get("codec") or DEFAULT_CODEC})
        with self._making:
            if not is_free(path):
                raise ConflictError(f"a knowledge base {name!r} is there already")
            if len(self.names()) >= self._settings.max_bases:
                raise ConflictError(f"there are {self._settings.max_bases} knowledge bases, and no room for more")
            try:
                clear_remains(path)
                if instruction is None:
                    (path / INSTRUCTION_FILE).unlink(missing_ok=True)  # of an attempt that was killed
                else:
                    write_atomic(path / INSTRUCTION_FILE, instruction.encode())
                rag = Rag.open(path, model, instruction=instruction, **options)
            except (StoreError, OSError) as error:
                raise self._failure(name, error, status=507) from error
            with contextlib.suppress(GoneError):  # it is to be deleted as soon as this lets it
                self._open.add(name, path, rag)

    def _delete(self, name: str) -> None:
        path = self.path(name)
        try:
            with contextlib.ExitStack() as locks, self._open.barred(name, wait_s=_PATIENCE_S) as free:
                if identity_of(path) is None:
                    raise GoneError
                if not free:
                    raise ConflictError(f"knowledge base {name!r} is in use: try again")
                locks.enter_context(place_of(path).writing(alone=True, wait_s=_PATIENCE_S))
                # whoever makes it has its manifest first: what came after it would make the folder anew. It is let go
                # last, so that the next one to be made is not barred any more.
                locks.enter_context(self._making)
                trash = put_aside(path)
        except GoneError:
            raise _unknown(name) from None
        except (StoreError, OSError) as error:
            raise self._failure(name, error, status=507) from error
        shutil.rmtree(trash, ignore_errors=True)

    def _facts(self, name: str) -> Facts:
        where = self.where(name)
        instruction = instruction_of(where)
        problem = None
        try:
            stats = self._tried(name, self._open.looking, KnowledgeBase.stats, status=500)
        except ConflictError as error:  # it cannot be opened with this model, or not at all
            problem, stats = str(error), None
            try:
                with contextlib.suppress(StoreError), self._open.opening(name), KnowledgeBase.open(where) as base:
                    stats = base.stats()
            except GoneError:
                raise _unknown(name) from None
        return Facts(name, stats, instruction, problem)

    def _failure(self, name: str, error: Exception, *, status: int) -> GritkitError:
        """What a client is told of a store or a disk that fails."""
        if isinstance(error, InUseError):
            return ConflictError(f"knowledge base {name!r} is being changed by another process: try again")
        _log.warning("knowledge base %s: %s", name, error)
        return HttpError(f"knowledge base {name!r}: {self._told(name, error)}", status=status, code="storage_error")

    def _told(self, name: str, error: Exception) -> str:
        """A message without the server's paths and addresses."""
        if self._address is not None:
            _log.warning("knowledge base %s: %s", name, error)
            return "its database does not do what it should; the server's log says more"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return reason.replace(str(self.where(name)), name).replace(str(self.folder), ".")


def _slug(folder: str) -> str:
    """A folder's name as one that clients can ask for."""
    return re.sub(r"[^a-z0-9_-]+", "-", folder.lower()).strip("-_")[:63] or "kb"


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"no knowledge base {name[:64]!r} here: GET /v1/kb lists what there is", code="kb_not_found")


def _log_failure(task: asyncio.Future[Any]) -> None:
    """Of work that nobody waits for any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("a change of a knowledge base, whose client had left, failed: %s", type(error).__name__)
