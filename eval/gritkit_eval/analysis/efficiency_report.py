"""The section of ``eval efficiency``: a table, and the plots of quality against what it costs.

This module knows nothing about how any of it was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit_eval.bench.report import section, table
from gritkit_eval.drawing import COLOURS, figure, save
from gritkit_eval.outcome import Outcome

TITLE = "eval efficiency"
PLOT = Path("plots/eval-efficiency.png")
"""Beside the results file."""
_SHAPES = ((514, "o", "512"), (2048, "^", "2,048"), (4096, "s", "4,096"), (8192, "p", "8,192"), (32768, "h", "32,768"))
"""Largest number of tokens, marker, label: those of the survey's Figure 4 (Cao 2024, arXiv 2406.01607)."""
_LONGER = (0, "*", "more")
_UNORDERED = ("coding", "precision")
"""Curves whose variants differ in kind, not in a number."""
_COSTS = ("parameters", "layers", "dimensions", "max tokens", "bytes per vector", "texts/s", "tokens/s")


@dataclass(frozen=True)
class Report:
    """Everything that one call measured."""

    tasks: list[str]
    limit: int | None
    outcomes: list[Outcome]
    title: str = TITLE

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(one.model for one in self.outcomes))

    def of(self, model: str, *curves: str) -> list[Outcome]:
        """The whole model and the variants on these curves."""
        wanted = {"", *curves}
        return [one for one in self.outcomes if one.model == model and one.settings["variant"]["curve"] in wanted]

    def tables(self) -> str:
        """Costs and average, then the average of each type of task."""
        types = [name for name in self.outcomes[0].scores if name not in ("average", *_COSTS)]
        costs, kinds = [], []
        for one in self.outcomes:
            (whole,) = self.of(one.model)
            names = [one.model, one.task]
            ratio = one.score / whole.score if whole.score else float("nan")
            costs.append(
                [*names, *(f"{one.scores[name]:,.0f}" for name in _COSTS), _percent(one.score), f"{ratio:.3f}"]
            )
            kinds.append([*names, *(_percent(one.scores[name]) for name in types)])
        head = table(["model", "variant", *_COSTS, "average", "of the whole"], costs)
        return f"{head}\n\nBy type of task:\n\n{table(['model', 'variant', *types], kinds)}"

    def section(self, command: str) -> str:
        kept = "" if self.limit is None else f", {self.limit:,} examples of each"
        about = (
            f"Average: of the main scores of {len(self.tasks)} tasks ({', '.join(self.tasks)}){kept}. Each variant "
            "departs from the whole model (float32, its own dimensions and tokens) in one thing. Coded vectors are "
            "coded on both sides. Texts and tokens a second: median of three rounds over texts of the tasks, after a "
            "warm-up, tokenising included; cutting and coding vectors afterwards is not counted. Fewer layers are "
            "the first ones under the final norm (2D Matryoshka, Li et al. 2024); a checkpoint does not say whether it "
            "was trained to be read there."
        )
        picture = f"![Average score against parameters, layers, dimensions, tokens, bytes and speed]({PLOT.as_posix()})"
        return section(TITLE, command, self.outcomes[0].versions, "\n\n".join([about, picture, self.tables()]))

    def plot(self, results: Path) -> Path:
        """Figure 4 of the survey for these models, and a curve for each cost, beside the results file."""
        drawn = figure(16, 8)
        (first, dims, layers), (stored, lengths, speed) = drawn.subplots(2, 3)
        self._models(drawn, first)
        self._curve(dims, "dimensions", "dimension")
        self._curve(layers, "layers", "layers")
        self._curve(stored, "bytes per vector", "dimension", "coding")
        self._curve(lengths, "max tokens", "max tokens")
        self._curve(speed, "texts/s", "layers", "max tokens", "precision")
        save(drawn, results.parent / PLOT)
        return results.parent / PLOT

    def _models(self, drawn: Any, axes: Any) -> None:
        from matplotlib.colors import LogNorm
        from matplotlib.lines import Line2D

        sizes = [one.scores["dimensions"] for model in self.models for one in self.of(model)]
        low, high = min(256, *sizes), max(4096, *sizes)
        norm, shown = LogNorm(low, high), {}
        for model in self.models:
            (whole,) = self.of(model)
            shape = next((one for one in _SHAPES if whole.scores["max tokens"] <= one[0]), _LONGER)
            place = (100 * whole.score, whole.scores["parameters"] / 1e6)
            points = axes.scatter(
                *place, c=[whole.scores["dimensions"]], norm=norm, cmap="YlOrRd", marker=shape[1], s=110,
                edgecolors="#444444",
            )  # fmt: skip
            axes.annotate(model, place, (7, 7), textcoords="offset points", fontsize=8)
            shown[shape[2]] = Line2D(
                [], [], marker=shape[1], linestyle="", color="#888888", label=f"max tokens {shape[2]}"
            )
        colours = drawn.colorbar(points, ax=axes, label="dimensions")
        powers = [1 << power for power in range(20) if low <= 1 << power <= high]
        colours.set_ticks(powers, labels=[f"{power:,}" for power in powers])
        colours.minorticks_off()
        axes.set_yscale("log")
        axes.margins(0.25)
        axes.set_xlabel("average score")
        axes.set_ylabel("parameters, millions")
        axes.legend(handles=list(shown.values()), frameon=False, fontsize=8)
        axes.grid(alpha=0.25)

    def _curve(self, axes: Any, cost: str, *curves: str) -> None:
        """Average against a cost: variants that differ in one number are joined, curve by curve, others stand alone."""
        ordered = [curve for curve in curves if curve not in _UNORDERED]
        for number, model in enumerate(self.models):
            colour = COLOURS[number % len(COLOURS)]
            for style, curve in zip(("o-", "s--"), ordered, strict=False):
                joined = sorted(self.of(model, curve), key=lambda one: one.scores[cost])
                if len(joined) == 1 and curve != ordered[0]:  # the whole model alone stands there already
                    continue
                xs, ys = [one.scores[cost] for one in joined], [100 * one.score for one in joined]
                axes.plot(xs, ys, style, color=colour, label=model if len(ordered) == 1 else f"{model}, {curve}")
            for one in (one for one in self.of(model, *curves) if one.settings["variant"]["curve"] in _UNORDERED):
                place = (one.scores[cost], 100 * one.score)
                axes.plot(*place, "D", color=colour, mfc="none")
                axes.annotate(
                    one.task.split()[0], place, (6, -10), textcoords="offset points", fontsize=7, color=colour
                )
        axes.set_xscale("log", base=2)
        _ticks(axes)
        axes.set_xlabel(cost)
        axes.set_ylabel("average score")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)


def _ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
