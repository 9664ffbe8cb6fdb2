"""What a run shows while it runs: one live bar with both losses, log lines where there is no terminal, and the curves.

This module knows nothing about how losses, held-out metrics or gradient figures are computed.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gritkit.files import write_atomic

logger = logging.getLogger("gritkit")

CURVES = "losses.png"
_SHORT = {"loss": "loss", "loss_contrastive": "emb", "loss_next_token": "lm", "tokens_per_second": "tok/s"}
_HELD_OUT = {
    "ndcg_at_10": "nDCG@10",
    "recall_at_10": "recall@10",
    "mrr_at_10": "MRR@10",
    "spearman": "Spearman",
    "next_token_loss": "next-token loss",
}
_PREFIX = "eval_"
_MARKED = 30  # points that are drawn as such
_SMOOTHED = 50


class Progress(TrainerCallback):
    """A bar on stderr with the newest figures; without a terminal, a log line every tenth of the run. What held-out
    data says has a line of its own, in either."""

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
        if not logs or not state.is_world_process_zero:
            return
        found = {short: logs[_PREFIX + name] for name, short in _HELD_OUT.items() if _PREFIX + name in logs}
        if found:
            self._tell(args, state, found)
        if self._bar is None or "loss" not in logs:
            return
        shown = {short: f"{logs[name]:.4g}" for name, short in _SHORT.items() if name in logs}
        self._bar.set_postfix(shown, refresh=False)
        share = state.global_step / max(1, state.max_steps)
        if args.disable_tqdm and (share - self._told >= 0.1 or share == 1 or not self._told):
            self._told = share
            figures = "  ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, figures)

    def _tell(self, args: TrainingArguments, state: TrainerState, found: Mapping[str, float]) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        line = f"step {state.global_step} of {state.max_steps}, held out: {figures}"
        if self._bar is None or args.disable_tqdm:
            logger.info("%s", line)
        else:
            self._bar.write(line, file=sys.stderr)  # above the bar, which stays where it is

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


@dataclass(frozen=True)
class _Curve:
    label: str
    points: list[tuple[float, float]]
    """(step, value)."""
    color: str
    is_thin: bool = False


@dataclass(frozen=True)
class _Panel:
    title: str
    curves: list[_Curve]
    unit: str
    zero: bool = False
    """Whether zero is drawn, as what separates good from bad."""


def plot_losses(history: Sequence[Mapping[str, float]], path: Path) -> bool:
    """A panel of each loss over the steps, and of what held-out data and both halves' gradients say where that was
    measured; False when nothing is drawn.

    Needs matplotlib (the extra ``train``); without it a warning is logged and the run goes on.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: matplotlib is not installed (pip install 'gritkit[train]')", path.name)
        return False
    panels = [panel for panel in _panels(history) if panel.curves]
    if not panels:
        return False
    last = max(step for panel in panels for curve in panel.curves for step, _ in curve.points)
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_panel(axes, panel)
        axes.set_xlim(0, 1.02 * max(1, last))  # the same in all, though held-out data is measured later and more rarely
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_atomic(path, drawn.getvalue())
    return True


def _panels(history: Sequence[Mapping[str, float]]) -> list[_Panel]:
    losses = [
        _Panel(title, _curves(history, {name: (short, color)}), "loss")
        for name, title, short, color in (
            ("loss_contrastive", "contrastive loss (embedding)", "each step", "tab:blue"),
            ("loss_next_token", "next-token loss (generation), nats a token", "each step", "tab:orange"),
            ("loss_router", "load-balancing loss (experts)", "each step", "tab:brown"),
        )
    ]
    ranking = {"ndcg_at_10": "tab:blue", "recall_at_10": "tab:green", "mrr_at_10": "tab:purple"}
    named = {_PREFIX + name: (_HELD_OUT[name], color) for name, color in ranking.items()}
    retrieval = _Panel("held-out retrieval", _curves(history, named), "mean over queries")
    norms = {
        "grad_norm_contrastive": ("contrastive", "tab:blue"),
        "grad_norm_next_token": ("next token", "tab:orange"),
    }
    return [
        *losses,
        retrieval,
        *([panel] if len((panel := _by_file(history, "ndcg_at_10", "retrieval", "tab:blue")).curves) > 1 else []),
        _by_file(history, "spearman", "similarity", "tab:red"),
        _by_file(history, "next_token_loss", "generation", "tab:orange"),
        _Panel("gradient of each loss", _curves(history, norms), "norm"),
        _Panel(
            "do both losses pull the same way?",
            _curves(history, {"grad_cosine": ("each measured step", "tab:gray")}),
            "cosine of their gradients",
            zero=True,
        ),
    ]


def _by_file(history: Sequence[Mapping[str, float]], metric: str, what: str, color: str) -> _Panel:
    """A held-out metric: its mean, and every file's where there are several."""
    whole = _PREFIX + metric
    ending = f"_{metric}"
    names = dict.fromkeys(name for entry in history for name in entry if name.startswith(_PREFIX))
    files = {name: name[len(_PREFIX) : -len(ending)] for name in names if name.endswith(ending) and name != whole}
    palette = ("tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan", "black")
    thin = []
    for number, (name, file) in enumerate(files.items()):
        chosen = (file, palette[number]) if number < len(palette) else ("_other", "silver")  # no place in the legend
        thin += _curves(history, {name: chosen}, is_thin=True)
    label = f"mean of {len(files)} files" if files else _HELD_OUT[metric]
    unit = "nats a token" if metric == "next_token_loss" else _HELD_OUT[metric]
    return _Panel(f"held-out {what}: {_HELD_OUT[metric]}", [*thin, *_curves(history, {whole: (label, color)})], unit)


def _curves(
    history: Sequence[Mapping[str, float]], named: Mapping[str, tuple[str, str]], *, is_thin: bool = False
) -> list[_Curve]:
    """What was logged under each name, with its label and color; without those that never were."""
    return [
        _Curve(label, points, color, is_thin)
        for name, (label, color) in named.items()
        if (points := [(entry["step"], entry[name]) for entry in history if name in entry])
    ]


def _draw_panel(axes: Any, panel: _Panel) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    for curve in panel.curves:
        steps, values = [step for step, _ in curve.points], [value for _, value in curve.points]
        is_long = len(values) > _SMOOTHED and not curve.is_thin
        width = 1.0 if curve.is_thin else 1.2 if is_long else 1.8
        axes.plot(
            steps,
            values,
            color=curve.color,
            alpha=0.3 if is_long else 1.0,
            linewidth=width,
            marker="o" if len(values) <= _MARKED else None,
            markersize=2.5 if curve.is_thin else 4,
            label=None if is_long and len(panel.curves) > 1 else curve.label,
        )
        if is_long:
            label = curve.label if len(panel.curves) > 1 else "smoothed"
            axes.plot(steps, _smooth(values), color=curve.color, linewidth=2, label=label)
    if panel.zero:
        axes.axhline(0, color="black", linewidth=0.8)
    every = [value for curve in panel.curves for _, value in curve.points]
    if min(every) > 0 and max(every) > 20 * min(every):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # 0.2, not 2 x 10^-1
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(axes.get_lines()) - panel.zero > 1:
        is_large = len(panel.curves) > 4
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if is_large else {}
        axes.legend(frameon=False, fontsize="small", **beside)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=panel.title, xlabel="step", ylabel=panel.unit)
    axes.grid(alpha=0.3, which="both")


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average with its start corrected; half-life a fiftieth of the run."""
    keep = 0.5 ** (50 / len(values))
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result
