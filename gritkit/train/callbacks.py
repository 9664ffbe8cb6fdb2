"""What a run shows while it runs: one live bar with both losses, log lines where there is no terminal, and the curves.

This module knows nothing about how losses are computed.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gritkit.files import write_atomic

logger = logging.getLogger("gritkit")

CURVES = "losses.png"
_SHORT = {"loss": "loss", "loss_contrastive": "emb", "loss_next_token": "lm", "tokens_per_second": "tok/s"}


class Progress(TrainerCallback):
    """A bar on stderr with the newest figures; without a terminal, a log line every tenth of the run."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._told = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        disable = args.disable_tqdm or not state.is_world_process_zero
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit=" steps", disable=disable)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.update(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._bar is None or not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        shown = {short: f"{logs[name]:.4g}" for name, short in _SHORT.items() if name in logs}
        self._bar.set_postfix(shown, refresh=False)
        share = state.global_step / max(1, state.max_steps)
        if args.disable_tqdm and (share - self._told >= 0.1 or share == 1 or not self._told):
            self._told = share
            figures = "  ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, figures)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class LossCurves(TrainerCallback):
    """Draws ``losses.png`` in the run's folder at every save and at the end."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._draw(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._draw(args, state)

    def _draw(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero:
            plot_losses(state.log_history, Path(str(args.output_dir)) / CURVES)


def plot_losses(history: Sequence[Mapping[str, float]], path: Path) -> bool:
    """Both losses over the steps, one panel each with a linear and a log axis' worth of room; False when nothing is
    drawn.

    Needs matplotlib (the extra ``train``); without it a warning is logged and the run goes on.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: matplotlib is not installed (pip install 'gritkit[train]')", path.name)
        return False
    panels = [
        (title, color, points)
        for name, title, color in (
            ("loss_contrastive", "contrastive loss (embedding)", "tab:blue"),
            ("loss_next_token", "next-token loss (generation), nats a token", "tab:orange"),
        )
        if (points := [(entry["step"], entry[name]) for entry in history if name in entry])
    ]
    if not panels:
        return False
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, color, points) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, color=color, alpha=0.35 if len(values) > 50 else 1.0, linewidth=1.2, label="each step")
        if len(values) > 50:
            axes.plot(steps, _smooth(values), color=color, linewidth=2, label="smoothed")
            axes.legend(frameon=False)
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set(title=title, xlabel="step", ylabel="loss")
        axes.grid(alpha=0.3, which="both")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_atomic(path, drawn.getvalue())
    return True


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average with its start corrected; half-life a fiftieth of the run."""
    keep = 0.5 ** (50 / len(values))
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result
