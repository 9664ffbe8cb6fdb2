from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from gritkit.train.callbacks import Progress, _panels, plot_losses

HELD_OUT = {
    "step": 5,
    "eval_nq_ndcg_at_10": 0.5,
    "eval_tiny_ndcg_at_10": 0.7,
    "eval_ndcg_at_10": 0.6,
    "eval_recall_at_10": 0.8,
    "eval_mrr_at_10": 0.55,
    "eval_spearman": 0.31234,
    "eval_next_token_loss": 1.75,
}
GRADIENTS = {"step": 5, "grad_norm_contrastive": 9.0, "grad_norm_next_token": 0.2, "grad_cosine": -0.1}


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


def test_what_was_measured_has_its_panel_and_nothing_else_has_one() -> None:
    def drawn(history: list[dict[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
        return {
            panel.title: {curve.label: curve.points for curve in panel.curves}
            for panel in _panels(history)
            if panel.curves
        }

    assert [len(curves) for curves in drawn(history(3)).values()] == [1, 1]
    found = drawn([*history(4), GRADIENTS, HELD_OUT, {**HELD_OUT, "step": 9, "eval_tiny_ndcg_at_10": 0.9}])
    assert found["held-out retrieval"]["nDCG@10"] == [(5, 0.6), (9, 0.6)]
    assert list(found["held-out retrieval"]) == ["nDCG@10", "recall@10", "MRR@10"]
    assert found["held-out retrieval: nDCG@10"] == {
        "nq": [(5, 0.5), (9, 0.5)],
        "tiny": [(5, 0.7), (9, 0.9)],
        "mean of 2 files": [(5, 0.6), (9, 0.6)],
    }
    assert found["held-out similarity: Spearman"] == {"Spearman": [(5, 0.31234), (9, 0.31234)]}
    assert found["held-out generation: next-token loss"] == {"next-token loss": [(5, 1.75), (9, 1.75)]}
    assert found["gradient of each loss"] == {"contrastive": [(5, 9.0)], "next token": [(5, 0.2)]}
    assert len(found) == 8
    only = {name: value for name, value in HELD_OUT.items() if "nq" not in name and "tiny" not in name}
    assert "held-out retrieval: nDCG@10" not in drawn([only])  # one file: its nDCG is in the panel above


@pytest.mark.parametrize("steps", [1, 20, 2000])
def test_everything_measured_is_drawn_without_a_warning(tmp_path: Path, steps: int) -> None:
    many = {f"eval_set{i}_ndcg_at_10": 0.1 * i for i in range(12)}
    measured = [entry for step in range(1, steps + 1) for entry in ({**GRADIENTS, "step": step},)]
    assert plot_losses([*history(steps), *measured, {**HELD_OUT, **many, "step": 0}], tmp_path / "all.png")
    assert plot_losses([{"step": 0, "eval_spearman": 0.5}], tmp_path / "start.png")
    wide, small = ((tmp_path / name).read_bytes()[16:24] for name in ("all.png", "start.png"))
    size = [int.from_bytes(wide[i : i + 4], "big") / int.from_bytes(small[i : i + 4], "big") for i in (0, 4)]
    assert size == [3, 3]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_held_out_data_says_has_a_line_of_its_own(
    tmp_path: Path, terminal: bool, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "gritkit")
    args = TrainingArguments(output_dir=str(tmp_path), disable_tqdm=not terminal, use_cpu=True)
    state, control = TrainerState(max_steps=50, global_step=20), TrainerControl()
    progress = Progress()
    progress.on_train_begin(args, state, control)
    progress.on_log(args, state, control, logs=HELD_OUT)
    progress.on_train_end(args, state, control)
    told = capsys.readouterr()
    line = "step 20 of 50, held out: nDCG@10 0.6  recall@10 0.8  MRR@10 0.55  Spearman 0.3123  next-token loss 1.75"
    assert (line in told.err) == terminal
    assert caplog.messages == ([] if terminal else [line])
    assert told.out == ""
    Progress().on_log(args, state, control, logs=HELD_OUT)  # evaluated without a run
    assert caplog.messages[-1] == line
    state.is_world_process_zero = False
    before = len(caplog.messages)
    Progress().on_log(args, state, control, logs=HELD_OUT)
    assert len(caplog.messages) == before


def test_without_matplotlib_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plot_losses(history(3), tmp_path / "losses.png")
    assert "gritkit[train]" in caplog.text
