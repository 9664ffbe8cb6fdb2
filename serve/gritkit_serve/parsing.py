"""A process that reads files which clients sent: ``python -m gritkit_serve.parsing``, started for one request.

Parsers of PDF, DOCX and HTML are large, partly native code, and what they get was made by strangers. A file that takes
memory or time without end, or crashes its parser, ends this process and not the server. It writes no files, and nothing
of the server is in it: no model, no key, no knowledge base.

    stdin     a Job as JSON; its handles are open files that this process inherited
    stdout    lines of JSON: {"ready": true}; then for each file in order {"id", "kind", "metadata", "bytes"} and so
              many bytes of text for a document, {"where", "reason"} for what cannot be read, {"done": name} at its end

This module knows nothing about HTTP or knowledge bases, and imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from gritkit.rag.sources import Failure, Source, read_file
from gritkit_serve.rlimits import limit


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be read, and how much that may take."""

    files: Sequence[tuple[int, str]]
    """(descriptor, name) of each."""
    jsonl_field: str
    max_file_bytes: int
    max_id_chars: int
    max_metadata_bytes: int
    seconds: int
    """Of CPU, for each file."""
    memory_bytes: int


def main() -> None:
    """Read all files in their order."""
    job = Job(**json.load(sys.stdin.buffer))
    limit("RLIMIT_AS", job.memory_bytes)
    limit("RLIMIT_FSIZE", 0)
    limit("RLIMIT_CORE", 0)
    with contextlib.suppress(OSError):
        os.nice(5)
    _line(sys.stdout.buffer, {"ready": True})
    sys.stdout.buffer.flush()
    for handle, name in job.files:
        limit("RLIMIT_CPU", int(sum(os.times()[:2])) + job.seconds)
        with os.fdopen(handle, "rb") as file:
            for found in read_file(file, name, jsonl_field=job.jsonl_field, max_file_bytes=job.max_file_bytes):
                _write(sys.stdout.buffer, found, job)
        _line(sys.stdout.buffer, {"done": name})
        sys.stdout.buffer.flush()


def _write(out: BinaryIO, found: Source | Failure, job: Job) -> None:
    if isinstance(found, Source):
        wrong = _wrong(found, job)
        if wrong is None:
            text = found.text.encode()
            _line(out, {"id": found.id, "kind": found.kind, "metadata": found.metadata, "bytes": len(text)})
            out.write(text)
            return
        found = Failure(found.id[: job.max_id_chars], wrong)
    _line(out, {"where": found.where, "reason": found.reason})


def _wrong(source: Source, job: Job) -> str | None:
    """Why a text cannot be a document of a server."""
    if len(source.id) > job.max_id_chars:
        return f"its id has {len(source.id)} characters and may have {job.max_id_chars}"
    try:
        size = len(json.dumps(source.metadata, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        return f"its metadata cannot be written as JSON: {error}"
    if size > job.max_metadata_bytes:
        return f"its other fields take {size} bytes as JSON and may take {job.max_metadata_bytes}"
    return None


def _line(out: BinaryIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line).encode("ascii") + b"\n")


if __name__ == "__main__":
    main()
