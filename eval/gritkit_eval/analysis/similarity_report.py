"""The section of ``eval similarity``: one table for each file, models side by side, and a plot.

This module knows nothing about how any of it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gritkit_eval.bench.report import section, table
from gritkit_eval.drawing import COLOURS, figure, save
from gritkit_eval.outcome import Outcome
from gritkit_eval.report.words import markdown

TITLE = "eval similarity"
PLOT = Path("plots/eval-similarity.png")
"""Beside the results file."""
_VARIANT = "cosine "
_MEANING = {
    "texts": "", "pairs": "", "long texts": "of 8 words or more", "isotropy": "1 is isotropic",
    "mean cosine": "of all pairs; 0 is isotropic", "effective rank": "directions in use", "effective rank / dim": "",
    "uniformity": "lower is more even", "alignment": "of pairs; lower is closer",
    "hubness": "skewness of N_k; 0 has no hubs", "anti-hubs": "texts near to none", "largest hub": "largest N_k",
    "asymmetry": "mean difference of s(a, b) and s(b, a)", "largest asymmetry": "",
    "asymmetry / spread": "of s over all pairs",
    "own cosine": "a text as query with itself as passage", "triangles of 1 - cosine": "share violated",
    "excess of 1 - cosine": "mean, where violated", "triangles of angle": "must be 0: a check", "excess of angle": "",
    "length correlation": "of cosine and difference in length",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Everything that one call measured."""

    limit: int
    outcomes: list[Outcome]
    title: str = TITLE

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(one.task for one in self.outcomes))

    def tables(self) -> str:
        """One for each file."""
        return "\n\n".join(part for task in self.tasks for part in (f"{markdown(task)}:", _table(self._of(task))))

    def section(self, command: str) -> str:
        about = (
            f"{self.limit:,} texts (and pairs) of each file at most, in the passage role. Isotropy by the partition "
            "function (Mu and Viswanath 2018), effective rank of the covariance (Roy and Vetterli 2007), alignment and "
            "uniformity (Wang and Isola 2020), N_k by cosine (Radovanovic et al. 2010). Symmetry between a text as "
            "query and as passage. Triangle inequality over all or 200,000 random triples. The last rows: the mean "
            "cosine of a text with itself changed in length."
        )
        picture = f"![Isotropy, hubs and the effect of length]({PLOT.as_posix()})"
        return section(TITLE, command, self.outcomes[0].versions, "\n\n".join([about, picture, self.tables()]))

    def plot(self, results: Path) -> Path:
        """For each file the cosines with changed texts, by model, beside the results file."""
        tasks = self.tasks
        drawn = figure(8, 1 + 2.9 * len(tasks))
        grid = drawn.subplots(len(tasks), 1, squeeze=False)[:, 0]
        for axes, task in zip(grid, tasks, strict=True):
            made = self._of(task)
            for number, one in enumerate(made):
                names = [name for name in one.scores if name.startswith(_VARIANT)]
                heights = [one.scores["mean cosine"], *(one.scores[name] for name in names)]
                places = [place + 0.8 / len(made) * number for place in range(len(heights))]
                width = 0.72 / len(made)
                axes.bar(places, heights, width, color=COLOURS[number % len(COLOURS)], label=one.model)
                labels = ["any two texts", *(name.removeprefix(_VARIANT) for name in names)]
                axes.set_xticks(
                    [place + 0.4 - 0.4 / len(made) for place in range(len(labels))], labels, rotation=18, fontsize=8
                )
            axes.set_title(task, fontsize=10)
            axes.set_ylabel("cosine with the text")
            axes.grid(axis="y", alpha=0.25)
        grid[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        save(drawn, results.parent / PLOT)
        return results.parent / PLOT

    def _of(self, task: str) -> list[Outcome]:
        return [one for one in self.outcomes if one.task == task]


def _table(outcomes: Sequence[Outcome]) -> str:
    names = list(dict.fromkeys(name for one in outcomes for name in one.scores))
    rows = [
        [name, *(f"{one.scores.get(name, float('nan')):.4g}" for one in outcomes), _MEANING.get(name, "")]
        for name in names
    ]
    return table(["figure", *(one.model for one in outcomes), ""], rows)
