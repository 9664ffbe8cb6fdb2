from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gritkit_eval.bench.plain_read import forget, read_plainly


def test_it_reads_what_is_there(tmp_path: Path) -> None:
    paths = []
    for number, size in enumerate([0, 1, 1 << 20, (9 << 20) + 5]):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(np.random.default_rng(number).bytes(size))
    forget(paths)
    assert [buffer.tobytes() for buffer in read_plainly(paths)] == [path.read_bytes() for path in paths]
    assert read_plainly([]) == []


def test_what_is_not_there_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plainly([tmp_path / "none"])
