"""What a report says and in which order, written as a page or as Markdown.

This module knows nothing about how averages are taken or plots are drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from gritkit.errors import InputError
from gritkit.files import resolve, write_atomic
from gritkit_eval.report import grids, markdown, page, plots
from gritkit_eval.report.gathered import Gathered, Run
from gritkit_eval.report.grids import Grid
from gritkit_eval.report.marks import Drawing
from gritkit_eval.report.notes import left_out, made_of, missing
from gritkit_eval.report.standings import CONTESTS, groups_of
from gritkit_eval.report.words import count, name_html, plain, text_html
from gritkit_eval.report.words import markdown as in_markdown

KINDS: Mapping[str, str] = {
    "mteb": "Embedding tasks", "generation": "Generation", "rag": "Answers from documents", "efficiency": "Efficiency",
    "instructions": "Instructions", "similarity": "Geometry of similarity", "overlap": "Overlap with evaluation data",
}  # fmt: skip
_FEW = 12
_AVERAGES = (
    "An average is over the tasks that every averaged run has, asked on the same examples: one set of tasks for each "
    "column. A run with fewer than half of a column's tasks has no average."
)


@dataclass
class Block:
    """A heading, and what stands under it in this order."""

    title: str = ""
    sentences: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Grid] = ()
    bullets: Callable[[Callable[[str], str]], Sequence[str]] = field(default=lambda shown: ())
    """Sentences about names, which are to be written through the function that is given."""


@dataclass
class Chapter:
    """A part of the report under one heading."""

    title: str
    blocks: list[Block]


class Report:
    """Everything in a set of outcomes; ``baseline`` names the run that others are divided by."""

    def __init__(self, gathered: Gathered, *, title: str = "Evaluation", baseline: str | None = None) -> None:
        self.title = title
        self.gathered = gathered
        self.baseline = None if baseline is None else gathered.run(baseline)
        self.groups = groups_of(gathered)
        found = dict.fromkeys(group.kind for group in self.groups)
        self.kinds = sorted(found, key=lambda kind: [*KINDS, kind].index(kind))

    @property
    def lead(self) -> str:
        """How much there is, in one line."""
        tasks = len({(one.kind, one.task) for one in self.gathered.measures})
        days = sorted(one.made[:10] for one in self.gathered.outcomes)
        when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
        against = f", against {self.baseline.name}" if self.baseline is not None else ""
        models = len({run.model for run in self.gathered.runs})
        runs = f" in {count(len(self.gathered.runs), 'run')}" if models < len(self.gathered.runs) else ""
        asked = list(dict.fromkeys(one.asked for one in self.gathered.measures if one.data))
        whole = ["all data"] * any(not one.data for one in self.gathered.measures)
        of = f" ({'; '.join(asked + whole)})" if asked else ""
        return f"{count(models, 'model')}{runs}, {count(tasks, 'task')}{of}, measured {when}{against}."

    def summary(self) -> Chapter:
        """The table of each kind alone, and what it does not hold."""
        return self._summary({kind: [] for kind in self.kinds})

    def chapters(self) -> list[Chapter]:
        """Everything. Kinds whose types make a score stand together at the top, others each in a chapter of its own."""
        numbers = plots.numbered(self.gathered)
        drawn = {kind: plots.by_type([one for one in self.groups if one.kind == kind], numbers) for kind in self.kinds}
        first = [kind for kind in self.kinds if kind in CONTESTS] or self.kinds
        summary = self._summary({kind: [one] if (one := drawn[kind]) else [] for kind in first})
        chapters = [self._of_kind(kind, numbers, apart=kind not in first) for kind in self.kinds]
        made = Block(tables=[grids.made(made_of(self.gathered))], bullets=self._replaced)
        return [summary, *chapters, Chapter("How it was made", [made])]

    def _summary(self, kinds: Mapping[str, Sequence[Drawing]]) -> Chapter:
        blocks = [
            Block(
                _kind(kind) if len(kinds) > 1 else "",
                drawings=drawn,
                tables=grids.summaries(self.groups, kind, self.baseline),
            )
            for kind, drawn in kinds.items()
        ]
        return Chapter("Summary", [*blocks, Block(sentences=[_AVERAGES + self._about_ratios], bullets=self._gaps)])

    @property
    def _about_ratios(self) -> str:
        if self.baseline is None:
            return ""
        return f" 1.234x is the ratio to {plain(self.baseline.name)} in the same column."

    def _gaps(self, shown: Callable[[str], str]) -> list[str]:
        return missing(self.gathered, self.groups, shown) or ["Every run has all tasks of its columns."]

    def _replaced(self, shown: Callable[[str], str]) -> list[str]:
        return left_out(self.gathered, shown)

    def _of_kind(self, kind: str, numbers: dict[Run, int], *, apart: bool) -> Chapter:
        """All groups of a kind; its averages too where it stands ``apart`` from the summary."""
        blocks = []
        for group in (group for group in self.groups if group.kind == kind):
            costs = plots.costs(group) if _has_costs(kind) else []
            drawn = [plots.against(group, cost, numbers) for cost in costs]
            if not costs or len(group.runs) <= _FEW:  # of many ways the plots against costs say more
                drawn.append(plots.by_run(group, numbers))
            tables = [grids.detail(group, self.baseline)] if len(group.measures) > 1 or kind in CONTESTS else []
            if tables or any(drawn):
                blocks.append(Block(group.name, drawings=[one for one in drawn if one], tables=tables))
        if apart:
            blocks.append(Block("Averages", tables=grids.summaries(self.groups, kind, self.baseline)))
        figures = grids.figures(self.gathered, kind)
        if figures is not None:
            blocks.append(Block("All figures", tables=[figures]))
        return Chapter(_kind(kind), blocks)


def html(title: str, lead: str, chapters: Sequence[Chapter]) -> str:
    """A page that needs nothing else."""
    sections = [page.Section(one.title, "\n".join(_block_html(block) for block in one.blocks)) for one in chapters]
    return page.page(title, lead, sections, "Made by gritkit eval report.")


def text(chapters: Sequence[Chapter], plot: Callable[[Drawing], str] | None = None, *, level: int = 2) -> str:
    """Markdown, headings from ``level`` on; ``plot`` puts a plot somewhere and says under which address."""
    parts = []
    for chapter in chapters:
        parts.append(f"{'#' * level} {in_markdown(chapter.title)}")
        for block in chapter.blocks:
            parts += _block_text(block, plot, level + 1)
    return "\n\n".join(part for part in parts if part) + "\n"


def write_html(path: Path, title: str, lead: str, chapters: Sequence[Chapter]) -> Path:
    """Raises InputError for a path that is a folder's."""
    path = _file(path)
    write_atomic(path, html(title, lead, chapters).encode("utf-8"))
    return path


def write_markdown(path: Path, title: str, lead: str, chapters: Sequence[Chapter]) -> Path:
    """The text, and its plots in a folder of its name beside it. Raises InputError for a path that is a folder's."""
    path = _file(path)
    style, numbers = page.plot_style(), itertools.count(1)

    def put(drawing: Drawing) -> str:
        file = Path(f"{path.stem}-plots") / f"{next(numbers)}.svg"
        write_atomic(path.parent / file, drawing.svg(style).encode("utf-8"))
        return quote(file.as_posix())

    whole = f"# {in_markdown(title)}\n\n{in_markdown(lead)}\n\n{text(chapters, put)}"
    write_atomic(path, whole.encode("utf-8"))
    return path


def _file(path: Path) -> Path:
    found = resolve(path)
    if found.is_dir():
        raise InputError(f"{found} is a folder: name a file in it")
    return found


def _block_html(block: Block) -> str:
    parts = [f"<h3>{name_html(block.title)}</h3>"] if block.title else []
    parts += [f"<p>{text_html(one)}</p>" for one in block.sentences]
    parts += [page.plots(block.drawings), *(page.grid(one) for one in block.tables)]
    bullets = block.bullets(name_html)
    return "\n".join([*parts, page.notes(bullets) if bullets else ""])


def _block_text(block: Block, plot: Callable[[Drawing], str] | None, level: int) -> list[str]:
    parts = [f"{'#' * level} {in_markdown(block.title)}"] if block.title else []
    parts += [in_markdown(one) for one in block.sentences]
    for one in block.drawings if plot else ():
        assert plot is not None
        parts += [f"![{in_markdown(one.title)}]({plot(one)})", in_markdown(one.caption) if one.caption.strip() else ""]
    parts += [markdown.grid(one) for one in block.tables]
    return [*parts, markdown.bullets(block.bullets(in_markdown))]


def _kind(kind: str) -> str:
    return KINDS.get(kind, kind)


def _has_costs(kind: str) -> bool:
    """Quality is drawn against costs where both were measured of one run on purpose."""
    return kind in ("efficiency", "rag")
