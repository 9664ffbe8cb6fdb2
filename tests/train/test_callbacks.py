from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gritkit.train.callbacks import plot_losses


def history(steps: int) -> list[dict[str, float]]:
    return [
        {"step": i, "loss_contrastive": 5.0 / (1 + i), "loss_next_token": 6.0 - 0.01 * i} for i in range(1, steps + 1)
    ]


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_curves_are_a_whole_picture(tmp_path: Path, steps: int) -> None:
    assert plot_losses([*history(steps), {"step": steps, "train_loss": 1.0}], tmp_path / "run" / "losses.png")
    picture = (tmp_path / "run" / "losses.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture.rstrip().endswith(b"IEND\xaeB`\x82")


def test_one_half_alone_and_none(tmp_path: Path) -> None:
    assert plot_losses([{"step": 1, "loss_next_token": 2.0}], tmp_path / "one.png")
    assert not plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_without_matplotlib_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plot_losses(history(3), tmp_path / "losses.png")
    assert "gritkit[train]" in caplog.text
