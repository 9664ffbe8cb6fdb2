"""Files that a client sent -> documents, read as ``gritkit index`` does, in a process of their own (``parsing``).

A file's name becomes the document's id and says what is in it; it never becomes a path. A file that cannot be read, or
that takes its reader down with it, is named with the reason, and the others are read.

This module knows nothing about HTTP messages or knowledge bases.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from gritkit.errors import InputError
from gritkit.rag import Document
from gritkit_serve.adding import Found
from gritkit_serve.children import START_S, child
from gritkit_serve.engine import Overloaded
from gritkit_serve.errors import HttpError
from gritkit_serve.parsing import Job
from gritkit_serve.schemas.kb import MAX_ID_CHARS, MAX_METADATA_BYTES
from gritkit_serve.settings import MIB, Settings
from gritkit_serve.wording import as_fields

NAME_CHARS = 255
"""Of a file's name, its end: a row's id is the name and the number of its line."""
_REQUESTS = 4  # whose files are taken in at once: each file above 1 MB is an open one
_PROCESSES = 2  # at work at once
_FILES = 64  # of one process: each is an open one
_RETRY_S = 5.0
_PATIENCE = 4  # times the seconds of CPU that a file may take: on a busy machine it gets a part of one
_LINE_BYTES = 4 * (MAX_ID_CHARS + MAX_METADATA_BYTES) + 4096  # in ASCII every character may take six bytes


@dataclass(frozen=True)
class Upload:
    """A file as it came. It is closed when it has been read."""

    name: str
    file: BinaryIO
    """Spooled: it gets a descriptor when that is asked for."""


class FileReader:
    """Reads what clients of one server send."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._requests = 0
        self._free = asyncio.Semaphore(_PROCESSES)

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """To be held while files come in and are read. Raises Overloaded when too many requests do that."""
        if self._requests >= _REQUESTS:
            raise Overloaded(f"files of {self._requests} requests are being taken in", _RETRY_S)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def read(self, uploads: Sequence[Upload], *, jsonl_field: str = "text") -> Found:
        """Documents in the order of the files. Cancelled, it ends its process.

        Raises:
            HttpError: for files that hold more text or more documents than one request may bring (413).
        """
        reading = _Reading(self._settings, uploads, jsonl_field)
        async with self._free:
            while reading.left:
                await reading.go_on()
        return reading.found


def shown_name(name: str) -> str:
    """A file's name as a document's id: without a way up or down from a root, in printable characters, not too long."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "//", "..")]
    shown = "".join(char if char.isprintable() else "_" for char in "/".join(parts))
    return shown[-NAME_CHARS:] or "unnamed"


def _opened(uploads: Sequence[Upload]) -> list[tuple[int, str]]:
    """(descriptor, name) of each file, on disk and at its beginning."""
    files = []
    for one in uploads:
        handle = one.file.fileno()
        one.file.flush()
        one.file.seek(0)
        files.append((handle, shown_name(one.name)))
    return files


class _Reading:
    """The files of one request, while they are read."""

    def __init__(self, settings: Settings, uploads: Sequence[Upload], jsonl_field: str) -> None:
        self.found = Found()
        self.left = list(self._of_different_names(uploads))
        self._settings = settings
        self._jsonl_field = jsonl_field
        self._num_bytes = 0

    def _of_different_names(self, uploads: Sequence[Upload]) -> Iterator[Upload]:
        """A file whose name becomes the id of an earlier one would replace that, as if it had never been sent."""
        names: set[str] = set()
        for one in uploads:
            name = shown_name(one.name)
            if name in names:
                one.file.close()
                self.found.refuse(name, "another file of this request is called so: give this one another name")
            else:
                names.add(name)
                yield one

    async def go_on(self) -> None:
        """Read a number of files, or up to one that ends the process."""
        files = await asyncio.to_thread(_opened, self.left[:_FILES])
        num_read, reason = 0, "reading it ended unexpectedly: is it damaged?"
        handles = [handle for handle, _ in files]
        async with child("gritkit_serve.parsing", pass_fds=handles, limit=_LINE_BYTES) as process:
            try:
                await asyncio.wait_for(self._begin(process, files), START_S)
                while num_read < len(files) and await self._file(process):
                    num_read += 1
            except asyncio.TimeoutError:
                reason = self._too_long
        if num_read < len(files):
            took_too_long = process.returncode == -signal.SIGXCPU
            self.found.refuse(files[num_read][1], self._too_long if took_too_long else reason)
            num_read += 1
        for one in self.left[:num_read]:
            one.file.close()
        del self.left[:num_read]

    @property
    def _too_long(self) -> str:
        return f"reading it takes longer than {self._settings.parse_seconds} s: convert it to text first"

    async def _begin(self, process: asyncio.subprocess.Process, files: Sequence[tuple[int, str]]) -> None:
        """Give it its job, and have it begin."""
        settings = self._settings
        job = Job(
            files=files, jsonl_field=self._jsonl_field, max_file_bytes=settings.max_upload_bytes,
            max_id_chars=MAX_ID_CHARS, max_metadata_bytes=MAX_METADATA_BYTES, seconds=settings.parse_seconds,
            memory_bytes=settings.parse_memory_bytes,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it ended already; what it does not say tells that
            process.stdin.write(json.dumps(dataclasses.asdict(job)).encode())
            await process.stdin.drain()
            process.stdin.close()
        await process.stdout.readline()

    async def _file(self, process: asyncio.subprocess.Process) -> bool:
        """Take what the process says of one file; False where it ended before it had said all."""
        assert process.stdout is not None
        reading = self._one_file(process.stdout)
        return await asyncio.wait_for(reading, _PATIENCE * self._settings.parse_seconds)

    async def _one_file(self, said: asyncio.StreamReader) -> bool:
        while True:
            line = await said.readline()
            if not line.endswith(b"\n"):
                return False
            told: dict[str, Any] = json.loads(line)
            if "done" in told:
                return True
            if "reason" in told:
                self.found.refuse(told["where"], as_fields(told["reason"]))
                continue
            self._count(told["bytes"])
            try:
                text = (await said.readexactly(told["bytes"])).decode()
            except asyncio.IncompleteReadError:
                return False
            try:
                self.found.documents.append(Document(text, told["id"], told["metadata"], told["kind"]))
            except InputError as error:
                self.found.refuse(told["id"], str(error))

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        settings = self._settings
        if self._num_bytes > settings.max_upload_bytes:
            raise HttpError(
                f"the files hold more than {settings.max_upload_bytes // MIB} MiB of text: send them in parts",
                status=413,
            )
        if len(self.found.documents) >= settings.max_upload_documents:
            raise HttpError(
                f"the files hold more than {settings.max_upload_documents} documents: send them in parts, or use "
                "gritkit index",
                status=413,
            )
