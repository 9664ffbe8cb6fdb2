from __future__ import annotations

import numpy as np
import pytest

from gritkit_eval.bench.search import run
from gritkit_eval.bench.search_material import KINDS


@pytest.mark.parametrize("kind", list(KINDS))
def test_material_follows_from_the_seed(kind: str) -> None:
    one, again, other = (list(KINDS[kind](120, 32, seed).batches(50)) for seed in (0, 0, 1))
    assert [len(batch.texts) for batch in one] == [50, 50, 20]
    assert [batch.texts for batch in one] == [batch.texts for batch in again]
    assert all(np.array_equal(a.vectors, b.vectors) for a, b in zip(one, again, strict=True))
    assert [batch.texts for batch in one] != [batch.texts for batch in other]
    vectors = np.concatenate([batch.vectors for batch in one])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    queries = KINDS[kind](120, 32, 0).queries(30)
    assert len(queries.texts) == len(queries.vectors) == 30
    assert not set(queries.texts) & {text for batch in one for text in batch.texts}


@pytest.mark.slow
def test_a_small_run_reports_every_search() -> None:
    report = run(num=700, dim=16, seed=0, kinds=("clusters",), queries=20)
    assert "gritkit eval bench search --num 700 --dim 16 --seed 0" in report
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith("| clusters")]
    lance = {row[2]: row for row in rows if row[1] == "LanceDB"}
    assert lance["700"][3].replace(",", "").isdigit()
    assert lance["nearest, exact"][-1].startswith("1.0000")
    (chosen,) = (row for name, row in lance.items() if name.startswith(("nearest: index", "nearest: exact")))
    assert float(chosen[-1].rstrip(" |")) >= 0.95
    assert float(lance["nearest, the same, filter that 1/20 pass"][-1].rstrip(" |")) == 1
    assert "numpy: matrix product and partial sort" in lance
    assert any(row[1] == "PostgreSQL" for row in rows)
