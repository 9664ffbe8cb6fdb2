from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gritkit import GritModel
from gritkit.errors import GritkitError, InputError
from gritkit_eval.bench.embed import _choose, _compare, _rows, make_model, run
from gritkit_eval.bench.harness import Timing

# A Python with the standard library alone, that still finds the worker's neighbour.
BARE_PYTHON = """#!/bin/sh
exec python3 -S -I -c '
import sys
path = sys.argv[1]
sys.path.insert(0, path.rsplit("/", 1)[0])
exec(compile(open(path).read(), path, "exec"), {"__name__": "__main__"})
' "$1"
"""


def test_texts_of_the_standard_library_are_many_and_mixed() -> None:
    texts = _choose(None, 2000)
    lengths = sorted(map(len, texts))
    assert len(set(texts)) == 2000
    assert lengths[1800] > 5 * lengths[200]
    assert texts == _choose(None, 2000)


def test_too_few_texts_and_unreadable_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    with pytest.raises(InputError, match="2 texts found and 10 wanted"):
        _choose(tmp_path / "few.txt", 10)
    with pytest.raises(InputError, match="cannot read"):
        _choose(tmp_path / "absent.txt", 10)


def test_figures_of_contestants_that_disagree_do_not_count() -> None:
    timings = {"gritkit": Timing((1.0, 1.0)), "peer": Timing((2.0, 3.0))}
    same = {"gritkit": np.zeros((2, 3), np.float32), "peer": np.full((2, 3), 5e-6, np.float32)}
    rows = _rows("float32", timings, same, num_tokens=100)
    assert rows[1][2] == "40"
    assert rows[1][4] == "2.50x as fast"
    with pytest.raises(GritkitError, match=r"peer \(float32\): vectors differ"):
        _rows("float32", timings, {**same, "peer": same["peer"] + 1e-4}, num_tokens=100)


@pytest.mark.slow
def test_gritkit_alone_when_the_peer_is_missing(tmp_path: Path) -> None:
    """A real worker process; the peer's Python is one without site-packages."""
    texts = ["a few words", "and many more of them, to be packed beside the first"]
    num_tokens = make_model(tmp_path / "model", texts, "6M")
    (tmp_path / "texts.json").write_text('["a few words", "and more"]', encoding="utf-8")
    bare = tmp_path / "bare"
    bare.write_text(BARE_PYTHON, encoding="utf-8")
    bare.chmod(0o755)
    rows = _compare(tmp_path, "float32", 1, "cpu", str(bare), num_tokens, versions := {})
    assert [row[1] for row in rows] == ["gritkit", "sentence-transformers, defaults"]
    assert rows[1][2].startswith("skipped: no ")
    assert versions["gritkit"]
    assert GritModel.from_pretrained(tmp_path / "model").embed(texts).shape == (2, 256)


@pytest.mark.parametrize(
    ("size", "device", "message"),
    [("9B", "cpu", "size='9B' is not one of 6M"), ("6M", "tpu", "device='tpu' is not one of cpu, cuda")],
)
def test_a_size_or_a_device_that_there_is_not(tmp_path: Path, size: str, device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model(tmp_path / "model", ["a"], size, device)
    assert not (tmp_path / "model").exists()


def test_a_dtype_that_there_is_not() -> None:
    options = {"texts": None, "num": 10, "rounds": 1, "size": "6M", "device": "cpu", "peer_python": None, "command": ""}
    with pytest.raises(InputError, match="dtype='int9' is not one of float32, bfloat16"):
        run(**options, dtypes=["float32", "int9"])  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torch sees no GPU"):
        make_model(tmp_path / "model", ["a"], "6M", "cuda")
