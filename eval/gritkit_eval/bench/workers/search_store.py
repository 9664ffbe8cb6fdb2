"""One store, filled through its own ``replace`` and searched: rates, memory, disk, latencies, recall."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]

_ROWS_AT_ONCE = 500
_SAMPLE_S = 0.2
_MANY = 1 << 50  # bytes: no index is asked for


def load(options: dict[str, Any]) -> Any:
    """Options: store (lance or postgres), where, kind, num, dim, seed, queries, scratch (a folder)."""
    import numpy as np

    from gritkit.rag.store import Row
    from gritkit_eval.bench.search_material import KINDS

    where, dim = options["where"], options["dim"]
    material = KINDS[options["kind"]](options["num"], dim, options["seed"])

    def opened(**more: Any) -> Any:
        if options["store"] == "lance":
            from gritkit.rag.lance import LanceStore

            return LanceStore(where, dim, **more)
        from gritkit.rag.postgres import PostgresStore

        return PostgresStore(where, dim, **more)

    def tags(number: int) -> tuple[str, ...]:
        return (f"twentieth{number % 20}", f"thousandth{number % 1000}", f"source{number}")

    def fill(store: Any, vectors: Any) -> dict[str, Any]:
        memory = _Memory()
        seconds, first = 0.0, 0
        for batch in material.batches(_ROWS_AT_ONCE):
            rows = [
                Row(f"doc{first + one}", 0, 1, text, "{}", tags(first + one), "digest", tuple(range(100)),
                    f"block{first + one}", "model", vector)
                for one, (text, vector) in enumerate(zip(batch.texts, batch.vectors, strict=True))
            ]  # fmt: skip
            vectors[first : first + len(rows)] = batch.vectors
            start = time.perf_counter()
            store.replace(rows)
            seconds += time.perf_counter() - start
            first += len(rows)
            memory.mark(first)
        figures = {"rows_per_s": first / seconds, "memory": memory.marks(first)}
        start = time.perf_counter()
        store.optimize()
        return figures | {"optimize_s": time.perf_counter() - start, "peak": memory.end()}

    def measure() -> dict[str, Any]:
        vectors = np.memmap(Path(options["scratch"]) / "vectors", np.float32, "w+", shape=(material.num, dim))
        store = opened(exact_bytes=1)
        figures: dict[str, Any] = {"num": material.num} | fill(store, vectors)
        queries = material.queries(options["queries"])
        matrix = np.array(vectors)
        del vectors

        def found(search: Callable[[Any], list[tuple[Row, float]]]) -> tuple[dict[str, float], list[list[str]]]:
            start = time.perf_counter()
            search(queries.vectors[0])
            took, ids = [time.perf_counter() - start], []
            for query in queries.vectors:
                start = time.perf_counter()
                ids.append([row.document for row, _ in search(query)])
                took.append(time.perf_counter() - start)
            return _milliseconds(took), ids

        figures["numpy"], true = _plain(matrix, queries.vectors)
        exact = opened(exact_bytes=_MANY)
        figures["exact"], ids = found(lambda query: exact.nearest(query, 10))
        figures["exact"]["recall"] = _recall(ids, true)
        exact.close()
        figures["index"], ids = found(lambda query: store.nearest(query, 10))
        figures["index"]["recall"] = _recall(ids, true)
        for tag, step in ("twentieth3", 20), ("thousandth7", 1000):
            start = int(tag.lstrip("abcdefghijklmnopqrstuvwxyz"))
            name = f"filter 1/{step}"
            figures[name], ids = found(lambda query, tag=tag: store.nearest(query, 10, [tag]))  # type: ignore[misc]
            _, among = _plain(matrix[start::step], queries.vectors)
            figures[name]["recall"] = _recall(ids, [[start + step * one for one in row] for row in among])
        texts = iter([queries.texts[0], *queries.texts])
        figures["words"], _ = found(lambda _: store.matching(next(texts), 10))
        if options["store"] == "lance":
            figures["flat"], _ = found(_flat(where))
        figures["bytes"] = _bytes(options)
        store.close()
        return figures

    return measure, lambda figures, path: Path(path).write_text(json.dumps(figures), encoding="utf-8")


class _Memory:
    """The process's resident bytes, looked at five times a second."""

    def __init__(self) -> None:
        self._peak = self._now()
        self._marks: list[tuple[int, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def mark(self, rows: int) -> None:
        self._marks.append((rows, self._now()))

    def marks(self, rows: int) -> list[int]:
        """At a fifth, three fifths and all of the rows."""
        return [next(size for at, size in self._marks if at >= part * rows) for part in (0.2, 0.6, 1)]

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._peak = max(self._peak, self._now())

    @staticmethod
    def _now() -> int:
        statm = Path("/proc/self/statm")
        if statm.exists():
            return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        import resource  # elsewhere what is known is the peak so far

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _milliseconds(took: list[float]) -> dict[str, float]:
    import numpy as np

    first, *rest = (1000 * seconds for seconds in took)
    return {"first": first, "p50": float(np.percentile(rest, 50)), "p95": float(np.percentile(rest, 95))}


def _plain(matrix: Any, queries: Any) -> tuple[dict[str, float], list[list[int]]]:
    """A matrix product and a partial sort: what an exact search cannot do without."""
    import numpy as np

    took, ids = [0.0], []
    for query in queries:
        start = time.perf_counter()
        scores = matrix @ query
        best = np.argpartition(-scores, min(10, len(scores) - 1))[:10]
        ids.append(best[np.argsort(-scores[best])].tolist())
        took.append(time.perf_counter() - start)
    return _milliseconds(took), ids


def _recall(found: list[list[str]], true: list[list[int]]) -> float:
    hits = (len(set(got) & {f"doc{one}" for one in wanted}) for got, wanted in zip(found, true, strict=True))
    return sum(hits) / max(1, sum(map(len, true)))


def _flat(where: str) -> Callable[[Any], list[Any]]:
    """LanceDB's own exact search, as its user would ask for it."""
    import lancedb

    table: Any = lancedb.connect(where).open_table("documents_0")

    def search(query: Any) -> list[Any]:
        asked = table.search(query).distance_type("dot").bypass_vector_index().limit(10)
        asked.select(["document", "text", "_distance"]).to_list()
        return []

    return search


def _bytes(options: dict[str, Any]) -> int:
    if options["store"] == "lance":
        return sum(file.stat().st_size for file in Path(options["where"]).rglob("*") if file.is_file())
    import psycopg

    with psycopg.connect(options["where"]) as connection:
        query = "SELECT pg_total_relation_size('gritkit.chunks_0')"
        return int(connection.execute(query).fetchone()[0])  # type: ignore[index]


if __name__ == "__main__":
    serve(load, "gritkit", "lancedb", "numpy")
