"""Knowledge bases that are open: each once, as long as somebody uses it or there is room.

Who uses one holds it: it is closed by the last of its users when it is no longer wanted, or not the one any more that
its folder has (another process may have deleted it, made it anew, or indexed it again with another model). All of them
share one budget of memory. Who only looks at one changes nothing of that.

Everything here is called from worker threads. This module knows nothing about names that are allowed, turns of writers,
or clients.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gritkit.rag import Rag
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.manifest import FILE_NAME

Identity = tuple[int, ...]
Where = Path | str
"""A folder, or the address of a database."""


def identity_of(folder: Where) -> Identity | None:
    """What tells the knowledge base in a folder from another one there; None where there is none.

    A folder that is a link, or whose manifest is, holds none: it may lead anywhere. An address is always the same base:
    what became of it meanwhile is for its store to say.
    """
    if isinstance(folder, str):
        return ()
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return None
        found = os.lstat(folder / FILE_NAME)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


class GoneError(Exception):
    """There is no knowledge base, or not any more."""


@dataclass(eq=False)
class _Open:
    rag: Rag
    identity: Identity
    users: int = 0
    used: int = 0
    """When it was asked for last, in uses of all."""
    wanted: bool = True


class OpenBases:
    """At most ``most`` that nobody uses; ``memory_bytes`` of key-values in memory, shared equally.

    ``open`` opens the one of a name and folder, ``open_to_look`` what there is to look at of it.
    """

    def __init__(
        self,
        open: Callable[[str, Where], Rag],
        open_to_look: Callable[[str, Where], KnowledgeBase],
        *,
        most: int,
        memory_bytes: int,
    ) -> None:
        self._open = open
        self._open_to_look = open_to_look
        self._most = most
        self._memory_bytes = memory_bytes
        self._changed = threading.Condition()
        self._opened: dict[str, _Open] = {}
        self._unclosed: set[_Open] = set()
        """Those, and the ones that are no longer wanted and still in use."""
        self._reads_of_closed: Counter[str] = Counter()
        self._opening: set[str] = set()
        self._barred: set[str] = set()
        self._uses = 0

    @contextlib.contextmanager
    def using(self, name: str, folder: Where) -> Iterator[tuple[Rag, Identity]]:
        """A base, open for as long as the block takes.

        Raises:
            GoneError: where there is none. What ``open`` raises.
        """
        one = self._taken(name, folder)
        if one is None:
            with self.opening(name):  # once, for all who want it now
                one = self._taken(name, folder)
                if one is None:
                    one = self._admitted(name, folder)
        try:
            yield one.rag, one.identity
        finally:
            self._left(one)

    @contextlib.contextmanager
    def looking(self, name: str, folder: Where) -> Iterator[tuple[KnowledgeBase, Identity]]:
        """The one that is open; else one that is opened for the block alone, so that no other is closed for it.

        Raises:
            GoneError: where there is none. What ``open_to_look`` raises.
        """
        one = self._taken(name, folder, to_look=True)
        if one is not None:
            try:
                yield one.rag.base, one.identity
            finally:
                self._left(one)
            return
        with self.opening(name):
            identity = identity_of(folder)
            if identity is None:
                raise GoneError
            with self._open_to_look(name, folder) as base:
                yield base, identity

    def add(self, name: str, folder: Where, rag: Rag) -> None:
        """One that was just made. Raises GoneError where it is being deleted already; it is closed then."""
        self._left(self._admit(name, _Open(rag, identity_of(folder) or ())))

    @contextlib.contextmanager
    def barred(self, name: str, *, wait_s: float) -> Iterator[bool]:
        """Nobody uses or opens a base in the block, and it is closed; False where that needs longer than ``wait_s``."""
        with self._changed:
            if name in self._barred:
                raise GoneError
            self._barred.add(name)
            free = self._changed.wait_for(lambda: not self._in_use(name), wait_s)
            one = self._opened.pop(name, None) if free else None
        try:
            if one is not None:
                self._close(one)
            yield free
        finally:
            with self._changed:
                self._barred.discard(name)

    @contextlib.contextmanager
    def opening(self, name: str) -> Iterator[None]:
        """Nobody else opens this base in the block, and whoever bars it waits for that. Raises GoneError once it is."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._opening)
            if name in self._barred:
                raise GoneError
            self._opening.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._opening.discard(name)
                self._changed.notify_all()

    def counts(self) -> Counter[str]:
        """Reads of key-values so far, by tier: of the bases that are open and of those that were. They never fall."""
        with self._changed:
            reads, unclosed = self._reads_of_closed.copy(), list(self._unclosed)
        return sum((one.rag.counts for one in unclosed), reads)

    def close(self) -> None:
        """All of them; those in use when they are left."""
        with self._changed:
            unused = [one for one in [self._dropped(name) for name in list(self._opened)] if one]
        for one in unused:
            self._close(one)

    def _taken(self, name: str, folder: Where, *, to_look: bool = False) -> _Open | None:
        """The open one, as its next user; None where it has to be opened. ``to_look`` does not count as asking."""
        with self._changed:
            identity = None if name in self._barred else identity_of(folder)
            one = self._opened.get(name)
            if one is not None and one.identity == identity:
                return self._hold(one) if to_look else self._use(one)
            unused = self._dropped(name) if one is not None and name not in self._barred else None
        if unused is not None:
            self._close(unused)
        if identity is None:
            raise GoneError
        return None

    def _admitted(self, name: str, folder: Where) -> _Open:
        identity = identity_of(folder)
        if identity is None:
            raise GoneError
        return self._admit(name, _Open(self._open(name, folder), identity))

    def _admit(self, name: str, one: _Open) -> _Open:
        """One that was opened, as its first user; others are closed for it."""
        with self._changed:
            self._unclosed.add(one)
            if name in self._barred:
                gone = [one]
            else:
                before = self._dropped(name) if name in self._opened else None
                self._opened[name] = self._use(one)
                idle = sorted((other.used, key) for key, other in self._opened.items() if not other.users)
                spare = [key for _, key in idle[: max(0, len(self._opened) - self._most)]]
                gone = [other for other in (before, *map(self._dropped, spare)) if other]
                for other in self._opened.values():
                    other.rag.resize(self._memory_bytes // len(self._opened))
        for other in gone:
            self._close(other)
        if one in gone:
            raise GoneError
        return one

    def _use(self, one: _Open) -> _Open:
        self._uses += 1
        one.used = self._uses
        return self._hold(one)

    def _hold(self, one: _Open) -> _Open:
        one.users += 1
        return one

    def _in_use(self, name: str) -> bool:
        """Whether somebody opens it, or uses the one that is open."""
        one = self._opened.get(name)
        return name in self._opening or (one is not None and one.users > 0)

    def _dropped(self, name: str) -> _Open | None:
        """Want one no longer. Returns it where nobody uses it, to be closed."""
        one = self._opened.pop(name)
        one.wanted = False
        return None if one.users else one

    def _left(self, one: _Open) -> None:
        with self._changed:
            one.users -= 1
            last = not one.users and not one.wanted
            self._changed.notify_all()
        if last:
            self._close(one)

    def _close(self, one: _Open) -> None:
        """One that nobody uses and nobody can ask for any more. What it has read goes on counting."""
        with self._changed:
            self._unclosed.discard(one)
            self._reads_of_closed.update(one.rag.counts)
        one.rag.close()
