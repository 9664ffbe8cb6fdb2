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

    def fill(store: Any, path: Path) -> dict[str, Any]:
        memory = _Memory()
        seconds, first = 0.0, 0
        with path.open("wb") as file:
            for batch in material.batches(_ROWS_AT_ONCE):
                rows = [
                    Row(f"doc{first + one}", 0, 1, text, "{}", tags(first + one), "digest", tuple(range(100)),
                        f"block{first + one}", "model", vector)
                    for one, (text, vector) in enumerate(zip(batch.texts, batch.vectors, strict=True))
                ]  # fmt: skip
                file.write(batch.vectors.tobytes())
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
        path = Path(options["scratch"]) / "vectors"
        store = opened(exact_bytes=1)
        figures: dict[str, Any] = {"num": material.num} | fill(store, path)
        queries = material.queries(options["queries"])
        matrix = np.fromfile(path, np.float32).reshape(-1, dim)

        def found(search: Callable[[Any], Any], step: int = 1, offset: int = 0) -> dict[str, float]:
            """Latencies, and the recall among every so manieth chunk; of equal chunks one is as good as another."""
            took, hits, wanted, cpu = [], 0, 0, 0.0
            for query in [queries.vectors[0], *queries.vectors]:
                start, start_cpu = time.perf_counter(), time.process_time()
                rows = search(query)
                took.append(time.perf_counter() - start)
                cpu += time.process_time() - start_cpu
                true = np.sort(matrix[offset::step] @ query)[::-1][:10]
                got = [matrix[int(row.document[3:])] @ query for row, _ in rows or []]
                hits += sum(score >= true[-1] - 1e-5 for score in got)
                wanted += len(true)
            return _milliseconds(took) | {"cpu": 1000 * cpu / len(took), "recall": hits / wanted}

        figures["numpy"] = found(_plain(matrix)) | {"recall": None}
        exact = opened(exact_bytes=_MANY)
        figures["exact"] = found(lambda query: exact.nearest(query, 10))
        exact.close()
        figures["searched_by"] = store.searched_by()
        figures["index"] = found(lambda query: store.nearest(query, 10))
        figures["filter 1/20"] = found(lambda query: store.nearest(query, 10, ["twentieth3"]), 20, 3)
        figures["filter 1/1000"] = found(lambda query: store.nearest(query, 10, ["thousandth7"]), 1000, 7)
        texts = iter([queries.texts[0], *queries.texts])
        figures["words"] = found(lambda _: store.matching(next(texts), 10)) | {"recall": None}
        if options["store"] == "lance":
            figures["flat"] = found(_flat(where)) | {"recall": None}
        figures["bytes"] = _bytes(options)
        store.close()
        return figures

    return measure, lambda figures, path: Path(path).write_text(json.dumps(figures), encoding="utf-8")


class _Memory:
    """The process's resident bytes, looked at five times a second."""

    def __init__(self) -> None:
        self._start = self._peak = self._now()
        self._marks: list[tuple[int, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def mark(self, rows: int) -> None:
        self._marks.append((rows, self._now()))

    def marks(self, rows: int) -> list[int]:
        """At a fifth, three fifths and all of the rows; above what it was at the start."""
        return [next(size - self._start for at, size in self._marks if at >= part * rows) for part in (0.2, 0.6, 1)]

    def end(self) -> int:
        """The most that it was above the start."""
        self._ended.set()
        self._thread.join()
        return self._peak - self._start

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


def _plain(matrix: Any) -> Callable[[Any], None]:
    """A matrix product and a partial sort: what an exact search cannot do without."""
    import numpy as np

    def search(query: Any) -> None:
        scores = matrix @ query
        best = np.argpartition(-scores, min(10, len(scores) - 1))[:10]
        best[np.argsort(-scores[best])]

    return search


def _flat(where: str) -> Callable[[Any], None]:
    """LanceDB's own exact search, as its user would ask for it."""
    import lancedb

    table: Any = lancedb.connect(where).open_table("documents_0")

    def search(query: Any) -> None:
        asked = table.search(query).distance_type("dot").bypass_vector_index().limit(10)
        asked.select(["document", "text", "_distance"]).to_list()

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
