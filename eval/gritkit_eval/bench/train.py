"""One training step: gritkit against sentence-transformers, and against the padded step that one writes by hand.

Same weights, same batch of triples and examples of mixed length, forward, loss and backward; tokenising and the
optimizer are in nobody's time. Every contestant's gradient is checked against a plain float64 one of the whole batch
before any figure is reported.

This module knows nothing about how processes are run, texts are chosen or a section is published.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gritkit_eval.bench import train_memory
from gritkit_eval.bench.embed import check_device
from gritkit_eval.bench.harness import Contestant, Running, Timing, fastest, interleave
from gritkit_eval.bench.report import machine, section, table, title_of
from gritkit_eval.bench.train_material import batch_of, choose, described, num_tokens, part_of, save_model
from gritkit_eval.bench.train_memory import MemoryRow
from gritkit_eval.bench.train_result import Agreement, Result, agreement, check_loss, growth_of, loss_of, result_of

TITLE = "bench train"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    data: Sequence[Path] = ()
    """Files of records; none: those of the shared folder, or docstrings."""
    shared: Path | None = None
    model: Path | None = None
    size: str = "small"
    num: int = 256
    """Triples of the batch."""
    num_examples: int = 64
    num_checked: int = 16
    """Triples (and a quarter as many examples) of the batch whose gradient is checked in float64, as one graph."""
    max_length: int = 512
    rounds: int = 5
    bf16: bool = False
    memory: bool = False
    device: str = "cpu"
    peer_python: str | None = None


@dataclass(frozen=True)
class Row:
    """One contestant's figures, or why there are none."""

    part: str
    precision: str
    contestant: str
    skipped: str = ""
    seconds: tuple[float, ...] = ()
    tokens_per_second: float | None = None
    gritkit_is: float | None = None
    """How many times as fast."""
    growth: int | None = None
    """Bytes of memory above weights and data."""
    loss: float | None = None
    agreement: Agreement | None = None


@dataclass(frozen=True)
class Report:
    """All that one run measured."""

    command: str
    about: str
    versions: dict[str, str]
    rows: list[Row]
    memory: list[MemoryRow]
    device: str

    def section(self) -> str:
        """The section for the results file."""
        parts = [f"{self.about}\n\n{_table_of(self.rows)}\n\n{_ABOUT_ROWS}"]
        if self.memory:
            parts.append(f"Memory of one step\n\n{_table_of_memory(self.memory)}\n\n{_ABOUT_MEMORY}")
        return section(title_of(TITLE, self.device), self.command, self.versions, "\n\n".join(parts))

    def json(self) -> str:
        return json.dumps({"machine": machine(), **asdict(self)}, indent=2, ensure_ascii=False)


_ABOUT_ROWS = (
    "Memory is what the process rose by above weights and data, gradients included. The gradient's error and cosine "
    "are against a padded float64 step of one graph, over the batch's first triples and examples."
)
_ABOUT_MEMORY = (
    f"Pairs are of texts of {train_memory.LENGTH} tokens each, so that all rows are alike, and each size takes as many "
    "steps as make the same number of pairs. Relative: to the contestant's own first row, or to full logits."
)


@dataclass(frozen=True)
class _Entry:
    """A way to do the step, perhaps with a setting whose best value is looked for."""

    name: str
    worker: str
    tries: tuple[dict[str, int], ...] = ({},)
    is_peer: bool = False


_ST = "train_sentence_transformers.py"
_GRITKIT = _Entry("gritkit", "train_gritkit.py")
_REFERENCE = {"dtype": "float64", "cached": False, "micro_batch": 8}
_ENTRIES: dict[str, tuple[_Entry, ...]] = {
    "contrastive": (
        _GRITKIT,
        _Entry("sentence-transformers, defaults", _ST, is_peer=True),
        _Entry("sentence-transformers", _ST, tuple({"mini_batch_size": n} for n in (8, 16, 64)), is_peer=True),
        _Entry(
            "sentence-transformers", _ST, tuple({"mini_batch_num_tokens": n} for n in (1024, 4096, 8192)), is_peer=True
        ),
    ),
    "unified": (
        _GRITKIT,
        _Entry("transformers, padded", "train_padded.py", tuple({"micro_batch": n} for n in (4, 8, 16, 32))),
    ),
}


@dataclass
class _Run:
    """One run of the benchmark in a folder of its own."""

    place: Path
    settings: Settings
    num_tokens: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def options(self, part: str, dtype: str, batch: str = "batch") -> dict[str, Any]:
        return {
            "folder": str(self.place / "model"),
            "batch": str(self.place / f"{part}-{batch}.json"),
            "dtype": dtype,
            "device": self.settings.device,
        }

    @property
    def peer(self) -> dict[str, str]:
        return {"python": self.settings.peer_python} if self.settings.peer_python else {}

    def prepare(self) -> tuple[str, int]:
        """Write batches and model. Returns (what the batch is, words of the vocabulary)."""
        given = self.settings
        material = choose(given.data, given.shared, given.num, given.num_examples)
        model = save_model(self.place / "model", material, model=given.model, size=given.size, shared=given.shared)
        batch = batch_of(material, model.tokens, given.max_length)
        checked = part_of(batch, given.num_checked, max(1, given.num_checked // 4))
        for name, one in (("batch", batch), ("checked", checked)):
            for part, content in (("contrastive", {**one, "examples": []}), ("unified", one)):
                (self.place / f"{part}-{name}.json").write_text(json.dumps(content), encoding="utf-8")
                if name == "batch":
                    self.num_tokens[part] = num_tokens(content)
        size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        return f"{described(batch)}. {type(model.lm).__name__} of {size:.0f}M parameters", len(model.tokenizer)

    def compare(self, part: str, dtype: str, reference: Result) -> list[Row]:
        """Rows of one half in one precision: settings looked for, gradients checked, then time."""
        chosen: list[Contestant] = []
        agreements: dict[str, Agreement] = {}
        rows: list[Row] = []
        for entry in _ENTRIES[part]:
            scout = Running(self._contestant(entry, {**self.options(part, dtype), **entry.tries[0]}, entry.name))
            try:
                if scout.missing:
                    rows.append(Row(part, dtype, entry.name, f"no {scout.missing}"))
                    continue
                best = entry.tries[0]
                if len(entry.tries) > 1:
                    found = fastest(scout, [{**self.options(part, dtype), **one} for one in entry.tries])
                    best = {name: found[name] for name in best}
                name = ", ".join([entry.name, *(f"{key}={value}" for key, value in best.items())])
                scout.ask(load={**self.options(part, dtype, "checked"), **best})
                made = self._result(scout)
                agreements[name] = agreement(name, dtype, made, reference)
            finally:
                scout.close()
            chosen.append(self._contestant(entry, {**self.options(part, dtype), **best}, name))
        return self._timed(part, dtype, chosen, agreements) + rows

    def reference(self, part: str) -> Result:
        """The plain float64 step of the checked part of the batch."""
        options = {**self.options(part, "", "checked"), **_REFERENCE}
        running = Running(Contestant("the float64 reference", "train_padded.py", options))
        try:
            return self._result(running)
        finally:
            running.close()

    def _contestant(self, entry: _Entry, options: dict[str, Any], name: str) -> Contestant:
        return Contestant(name, entry.worker, options, **(self.peer if entry.is_peer else {}))

    def _result(self, running: Running) -> Result:
        running.ask(run=True)
        path = self.place / "checked.safetensors"
        running.ask(save=str(path))
        return result_of(path)

    def _timed(
        self, part: str, dtype: str, chosen: Sequence[Contestant], agreements: dict[str, Agreement]
    ) -> list[Row]:
        running = [Running(contestant) for contestant in chosen]
        paths = {each.contestant.name: self.place / f"{place}.safetensors" for place, each in enumerate(running)}
        try:
            timings = interleave(running, self.settings.rounds)
            for each in running:
                self.versions.update(each.versions)
                each.ask(save=str(paths[each.contestant.name]))
        finally:
            for each in running:
                each.close()
        ours = timings[_GRITKIT.name]
        loss = loss_of(paths[_GRITKIT.name])
        for name, path in paths.items():
            check_loss(name, dtype, loss_of(path), loss, "gritkit")
        return [
            self._row(part, dtype, name, timing, ours, paths[name], agreements[name])
            for name, timing in timings.items()
        ]  # fmt: skip

    def _row(
        self, part: str, dtype: str, name: str, timing: Timing, ours: Timing, path: Path, agrees: Agreement
    ) -> Row:
        return Row(
            part,
            dtype,
            name,
            seconds=timing.seconds,
            tokens_per_second=self.num_tokens[part] / timing.median,
            gritkit_is=None if timing is ours else ours.ratio_to(timing),
            growth=growth_of(path),
            loss=loss_of(path),
            agreement=agrees,
        )


def run(settings: Settings) -> Report:
    """The whole benchmark. Raises GritkitError where steps differ, InputError where there is no such device."""
    check_device(settings.device)
    with tempfile.TemporaryDirectory() as name:
        this = _Run(Path(name), settings)
        about, vocabulary = this.prepare()
        rows: list[Row] = []
        for part in _ENTRIES:
            reference = this.reference(part)
            for dtype in ("float32", "bfloat16") if settings.bf16 else ("float32",):
                rows += this.compare(part, dtype, reference)
        memory: list[MemoryRow] = []
        if settings.memory:
            options = this.options("contrastive", "float32")
            memory += train_memory.of_pairs(this.place, options, this.peer, vocabulary)
            memory += train_memory.of_head(this.place, settings.device, settings.rounds)
    about += (
        f", {settings.device}; median of {settings.rounds} interleaved rounds, each contestant in its own process; "
        "bfloat16 is autocast over float32 weights."
    )
    return Report(_command(settings), about, this.versions, rows, memory, settings.device)


def _command(settings: Settings) -> str:
    """What one types to get this again."""
    words = ["gritkit eval bench train"]
    words += [f"--data {path}" for path in settings.data]
    words += [f"--model {settings.model}"] if settings.model is not None else [f"--size {settings.size}"]
    words += [f"--num {settings.num} --num-examples {settings.num_examples} --rounds {settings.rounds}"]
    words += [f"--max-length {settings.max_length} --device {settings.device}"]
    words += [flag for flag, is_on in (("--bf16", settings.bf16), ("--memory", settings.memory)) if is_on]
    return " ".join(words)


def _table_of(rows: Sequence[Row]) -> str:
    header = [
        "step", "passes", "contestant", "tokens/s", "seconds (min - max)", "gritkit is", "memory", "gradient error",
        "1 - cosine",
    ]  # fmt: skip
    return table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    start = [row.part, row.precision, row.contestant]
    if row.agreement is None or row.tokens_per_second is None:
        return [*start, f"skipped: {row.skipped}", *[""] * 5]
    timing = Timing(row.seconds)
    low, high = timing.spread
    return [
        *start,
        f"{row.tokens_per_second:,.0f}",
        f"{timing.median:.2f} ({low:.2f} - {high:.2f})",
        "" if row.gritkit_is is None else f"{row.gritkit_is:.2f}x as fast",
        _mebibytes(row.growth),
        f"{row.agreement.gradient_error:.0e}",
        f"{row.agreement.one_minus_cosine:.0e}",
    ]


def _table_of_memory(rows: Sequence[MemoryRow]) -> str:
    return table(
        ["what", "contestant", "size", "memory", "relative", "seconds"],
        [
            [
                row.what,
                row.contestant,
                row.size,
                f"skipped: {row.skipped}" if row.skipped else _mebibytes(row.growth),
                "" if row.relative is None else f"{row.relative:.3f}",
                "" if row.seconds is None else f"{row.seconds:.2f}",
            ]
            for row in rows
        ],
    )


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f} MiB"
