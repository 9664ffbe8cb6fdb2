from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from gritkit.rag.rates import Rates


def test_nothing_is_known_before_a_measurement(tmp_path: Path) -> None:
    rates = Rates(tmp_path / "rates.json")
    assert rates.seconds("prefill", 1000) is None
    rates.save()
    assert not (tmp_path / "rates.json").exists()
    rates.measured("prefill", 1000, 2.0)
    assert rates.seconds("prefill", 250) == 0.5
    assert rates.seconds("prefill", 0) == 0
    assert rates.seconds("disk", 1000) is None


def test_old_circumstances_are_forgotten(tmp_path: Path) -> None:
    rates = Rates(tmp_path / "rates.json")
    rates.measured("disk", 1 << 20, 1.0)
    expected = float(1 << 20)
    for _ in range(20):
        rates.measured("disk", 1 << 20, 0.1)
        expected = 0.7 * expected + 0.3 * 10 * (1 << 20)
    assert rates.seconds("disk", 1 << 20) == pytest.approx((1 << 20) / expected, rel=1e-12)
    assert rates.seconds("disk", 1 << 20) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("what", "amount", "seconds"),
    [("prefill", 63, 1.0), ("disk", (1 << 16) - 1, 1.0), ("prefill", 100, 0.0), ("prefill", 100, -1.0)],
)
def test_what_measures_the_call_and_not_the_rate_is_left_out(
    tmp_path: Path, what: str, amount: int, seconds: float
) -> None:
    rates = Rates(tmp_path / "rates.json")
    rates.measured(what, amount, seconds)
    assert rates.seconds(what, 100) is None


def test_they_are_kept_for_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    rates = Rates(file)
    rates.measured("prefill", 1000, 2.0)
    rates.measured("disk", 1 << 20, 0.5)
    rates.save()
    assert json.loads(file.read_text()) == {"prefill": 500.0, "disk": 2.0 * (1 << 20)}
    again = Rates(file)
    assert again.seconds("prefill", 1000) == 2.0
    file.unlink()
    again.save()
    assert not file.exists()  # nothing new to write


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"prefill": "fast"}', b'{"prefill": 0}', b'{"prefill": -3}',
        b'{"prefill": NaN}', b'{"prefill": Infinity}', b'{"prefill": true}', b'{"prefill": null}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rates.json").write_bytes(content)
    rates = Rates(tmp_path / "rates.json")
    assert rates.seconds("prefill", 100) is None
    rates.measured("prefill", 100, 1.0)
    rates.save()
    assert Rates(tmp_path / "rates.json").seconds("prefill", 100) == 1.0


def test_a_disk_that_refuses_is_not_worth_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    rates = Rates(tmp_path / "file" / "rates.json")
    rates.measured("prefill", 100, 1.0)
    rates.save()
    assert rates.seconds("prefill", 100) == 1.0


def test_threads_may_measure_at_once(tmp_path: Path) -> None:
    rates = Rates(tmp_path / "rates.json")
    threads = [
        threading.Thread(target=lambda: [rates.measured("prefill", 100, 2.0) for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rates.seconds("prefill", 100) == pytest.approx(2.0)


def test_a_folder_that_was_removed_meanwhile_stays_removed(tmp_path: Path) -> None:
    rates = Rates(tmp_path / "gone" / "rates.json")
    rates.measured("prefill", 100, 1.0)
    rates.save()
    assert list(tmp_path.iterdir()) == []
