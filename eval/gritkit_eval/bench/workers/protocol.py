"""The worker's side of the harness's protocol; standard library only, so it runs in any peer's environment.

A request is a JSON line: {"load": options}, {"run": true} or {"save": path}. Replies: {"versions": {...}} or
{"missing": library}; {"seconds": s}; {"saved": path}. stdout belongs to the protocol; what a library prints goes to
stderr.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def serve(
    load: Callable[[dict[str, Any]], tuple[Callable[[], Any], Callable[[Any, str], None]]], *libraries: str
) -> None:
    """Answer requests until stdin closes. ``load`` gives (do the job, save its result to a path)."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job: Callable[[], Any] | None = None
    save: Callable[[Any, str], None] | None = None
    result: Any = None

    def reply(**answer: Any) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            try:
                job, save = load(request["load"])
            except ModuleNotFoundError as error:
                reply(missing=error.name)
                continue
            reply(versions=versions_of(libraries))
        elif "run" in request and job is not None:
            start = time.perf_counter()
            result = job()
            reply(seconds=time.perf_counter() - start)
        elif "save" in request and save is not None:
            save(result, request["save"])
            reply(saved=request["save"])


def versions_of(libraries: Sequence[str]) -> dict[str, str]:
    """Of those that are installed: what a job needs it has imported by now."""
    found = {}
    for name in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
