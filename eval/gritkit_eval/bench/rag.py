"""Time to the first token of an answer: from documents that were read before, against reading them again.

Two processes, one with gritkit and one with transformers alone, answer the same question from the same documents in
turn. Finding the documents is in nobody's time; loading, checking, decoding and rotating their key-values is, from a
disk that has them in memory and from one that has not. Before any figure is reported, the logits of cached answers are
compared with those of one pass of transformers under the mask that says who saw whom.

This module knows nothing about how processes are run or a section is published.
"""

from __future__ import annotations

import json
import shlex
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer

from gritkit.errors import GritkitError, InputError
from gritkit_eval.bench.harness import Contestant, Running
from gritkit_eval.bench.rag_material import Case, Material, make
from gritkit_eval.bench.rag_store import BLOCK_MB, CodecRow, LoadRow, codecs, cold, load_rates

TITLE = "bench rag"
TOLERANCE = 1e-4
"""Largest ||logits - reference|| / ||reference|| of a codec that keeps the model's own numbers."""
FULL = ("gritkit, off", "transformers, one pass")
"""Ways that read the documents."""
_CODECS = ("exact", "int4")
"""Measured beside int8, on a part of the cases."""
_KEPT = "transformers, key-values in memory"
_LINK = "linked, first 16 tokens of later documents computed"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    sizes: Sequence[int] = (256, 1024, 4096, 16384)
    """Tokens of the documents."""
    num_documents: int = 4
    """Of the case with several, which are ``several`` tokens together."""
    several: int = 4096
    question_tokens: int = 32
    rounds: int = 7
    size: str = "28M"
    block_mb: Sequence[float] = BLOCK_MB
    codec_tokens: int = 4096
    """Tokens that codecs are timed on."""
    shared: Path | None = None
    """Where a trained model is, for what the codecs lose."""
    folder: Path | None = None

    @property
    def cases(self) -> list[Case]:
        many = [Case(self.num_documents, self.several)] if self.num_documents > 1 else []
        return [*(Case(1, size) for size in self.sizes), *many]

    def full_rounds(self, case: Case) -> int:
        """Counted passes over a whole prompt, which take a minute each at the longest."""
        return min(self.rounds, 2 if case.num_tokens > 8192 else 3 if case.num_tokens > 2048 else self.rounds)

    @property
    def command(self) -> str:
        given = ["gritkit", "eval", "bench", "rag", "--size", self.size, "--rounds", str(self.rounds)]
        given += ["--sizes", ",".join(map(str, self.sizes)), "--several", str(self.several)]
        given += ["--num-documents", str(self.num_documents)]
        return shlex.join([*given, "--question-tokens", str(self.question_tokens)])


@dataclass(frozen=True)
class Row:
    """One way to the first token."""

    case: Case
    way: str
    codec: str
    seconds: tuple[float, ...]
    load: float | None = None
    """Median seconds until the key-values were in memory, coded."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Check:
    """Logits of a cached answer's first token against one pass under an explicit mask."""

    case: Case
    codec: str
    error: float
    same_token: bool


@dataclass(frozen=True)
class Report:
    """All that one run measured."""

    settings: Settings
    num_parameters: int
    versions: dict[str, str]
    rows: list[Row]
    checks: list[Check]
    loads: list[LoadRow]
    codecs: list[CodecRow]
    codec_model: str

    def faster_full(self, case: Case) -> Row:
        """The quicker of the ways that read the documents: what ratios are to."""
        return min((row for row in self.rows if row.case == case and row.way in FULL), key=lambda row: row.median)

    def ratio(self, row: Row) -> float:
        return self.faster_full(row.case).median / row.median


@dataclass(frozen=True)
class _Way:
    """One row to be: who runs it, with which options."""

    name: str
    codec: str
    who: Running
    options: dict[str, Any]
    rounds: int
    cold: tuple[Path, ...] = ()
    is_long: bool = False
    """Of a pass that feels no warm-up and is too long to be run for nothing."""


@dataclass
class _Run:
    place: Path
    settings: Settings
    material: Material
    ours: Running
    theirs: Running
    tokens: dict[str, Path] = field(default_factory=dict)
    """By case: what the question and its documents are in ids."""

    def base(self, codec: str) -> Path:
        return self.place / f"kb-{codec}"

    def of_gritkit(self, codec: str, tier: str = "disk", **rest: Any) -> dict[str, Any]:
        return {
            "folder": str(self.place / "model"), "base": str(self.base(codec)), "codec": codec, "tier": tier,
            "chunk_tokens": self.material.chunk_tokens, **rest,
        }  # fmt: skip

    def asked(self, case: Case, reuse: str, codec: str = "int8", tier: str = "disk", **rest: Any) -> dict[str, Any]:
        return self.of_gritkit(
            codec, tier, question=self.material.question, case=case.name, num_documents=case.num_documents,
            reuse=reuse, **rest,
        )  # fmt: skip

    def of_transformers(self, case: Case, way: str) -> dict[str, Any]:
        return {
            "folder": str(self.place / "model"), "tokens": str(self.tokens[case.name]), "way": way,
            "file": str(self.place / f"paper-{case.num_tokens}.safetensors"),
        }  # fmt: skip

    def saved(self, who: Running, options: dict[str, Any], name: str) -> Path:
        """What one run of a worker saves."""
        path = self.place / name
        who.ask(load=options)
        who.ask(run=True)
        who.ask(save=str(path))
        return path


def lengths(text: str) -> list[int]:
    """Numbers by comma. Raises InputError for anything else."""
    try:
        found = [int(one) for one in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 16:
        raise InputError(f"sizes={text!r} must be numbers of at least 16, by comma")
    return found


def run(settings: Settings) -> Report:
    """Raises GritkitError where cached answers are not what they should be, or a cold read cannot be had."""
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix="bench-rag-") as name:
        place = Path(name)
        material = make(place / "model", settings.cases, question_tokens=settings.question_tokens, shape=settings.size)
        ours = Running(Contestant("gritkit", "rag_gritkit.py", {}))
        theirs = Running(Contestant("transformers", "rag_transformers.py", {}))
        current = _Run(place, settings, material, ours, theirs)
        try:
            _index(current)
            checks = _check(current)
            rows = [row for case in settings.cases for row in _case(current, case)]
            versions = {**theirs.versions, **ours.versions}
        finally:
            for each in (ours, theirs):
                each.close()
        typer.echo("store and codecs", err=True)
        loads = load_rates(place, settings.rounds, settings.block_mb)
        real, codec_model = _codec_model(settings, place)
        by_codec = codecs(
            real,
            material.documents[settings.cases[0].name][0],
            num_tokens=settings.codec_tokens,
            rounds=settings.rounds,
        )
    return Report(settings, material.num_parameters, versions, rows, checks, loads, by_codec, codec_model)


def _index(current: _Run) -> None:
    """A knowledge base for each codec; all documents in the default one's, which is the dear part."""
    for codec in ("int8", *_CODECS):
        cases = [
            one
            for one in current.settings.cases
            if codec == "int8" or _is_checked(one) or one.num_tokens == current.settings.several
        ]
        texts = {case.name: current.material.documents[case.name] for case in cases}
        typer.echo(f"reading documents for the codec {codec}", err=True)
        current.saved(current.ours, current.of_gritkit(codec, add=texts), f"added-{codec}")


def _is_checked(case: Case) -> bool:
    """A pass under an explicit mask over more tokens would take longer than all the rest."""
    return case.num_tokens <= 4096


def _check(current: _Run) -> list[Check]:
    """Every codec's logits against the reference; the exact codec's must be equal to it."""
    checks = []
    typer.echo("comparing logits", err=True)
    for case in current.settings.cases:
        options = current.asked(case, "cached", logits=True)
        current.tokens[case.name] = current.saved(current.ours, options, f"tokens-{case.name}.npz")
        if not _is_checked(case):
            continue
        reference = np.load(
            current.saved(current.theirs, current.of_transformers(case, "reference"), f"reference-{case.name}.npy")
        )
        for codec in ("exact", "int8", "int4"):
            made = np.load(current.saved(current.ours, current.asked(case, "cached", codec, logits=True), "made.npz"))[
                "logits"
            ]
            error = float(np.linalg.norm(made - reference) / np.linalg.norm(reference))
            same = bool(made.argmax() == reference.argmax())
            if codec == "exact" and not (error <= TOLERANCE and same):
                raise GritkitError(
                    f"{case.name} tokens: cached logits differ from one pass under the block mask by {error:.1e} "
                    f"(at most {TOLERANCE:.0e} is the same answer), so no figure counts"
                )
            checks.append(Check(case, codec, error, same))
        _check_kept(current, case)
    return checks


def _check_kept(current: _Run, case: Case) -> None:
    """transformers with kept key-values against transformers without: else the row would be of another job."""
    full, kept = (
        np.load(current.saved(current.theirs, current.of_transformers(case, way), f"{way}.npy"))
        for way in ("full", "memory")
    )
    error = float(np.linalg.norm(kept - full) / np.linalg.norm(full))
    if error > TOLERANCE:
        raise GritkitError(f"{case.name} tokens: {_KEPT}: logits differ by {error:.1e}, so no figure counts")


def _ways(current: _Run, case: Case) -> list[_Way]:
    settings, ours, theirs = current.settings, current.ours, current.theirs
    full, rounds, is_long = settings.full_rounds(case), settings.rounds, case.num_tokens > 8192

    def cached(
        name: str, reuse: str = "cached", codec: str = "int8", tier: str = "disk", is_cold: bool = False
    ) -> _Way:
        files = tuple(sorted(current.base(codec).rglob("*.kv"))) if is_cold else ()
        held = "float32" if reuse == "prefix" else codec
        return _Way(name, held, ours, current.asked(case, reuse, codec, tier), rounds, files)

    ways = [
        _Way(FULL[0], "", ours, current.asked(case, "off"), full, is_long=is_long),
        _Way(FULL[1], "", theirs, current.of_transformers(case, "full"), full, is_long=is_long),
        _Way(_KEPT, "float32", theirs, current.of_transformers(case, "memory"), rounds),
        cached("cached, warm"),
        cached("cached, cold disk", is_cold=True),
        cached("cached, in memory", tier="memory"),
        cached("cached, on the device", tier="device"),
        cached("prefix", "prefix", tier="memory"),
    ]
    if case.num_documents > 1:
        ways.append(cached(_LINK, "linked"))
    if case.num_tokens == settings.several:
        for codec in _CODECS:
            ways.append(cached("cached, warm", codec=codec))
            ways.append(cached("cached, cold disk", codec=codec, is_cold=True))
    if case.num_documents == 1 and case.num_tokens == settings.several:
        options = current.of_transformers(case, "paper")
        ways.append(_Way("the paper's scheme, warm", "fp32", theirs, options, rounds))
        files = (Path(options["file"]),)
        ways.append(_Way("the paper's scheme, cold disk", "fp32", theirs, options, rounds, files))
    return ways


def _case(current: _Run, case: Case) -> list[Row]:
    """All ways in turn, round after round in rotating order, after one uncounted run each."""
    ways = _ways(current, case)
    typer.echo(f"{case.name} document tokens: {len(ways)} ways, {current.settings.rounds} rounds", err=True)
    seconds: list[list[float]] = [[] for _ in ways]
    loads: list[list[float]] = [[] for _ in ways]
    for number in range(current.settings.rounds + 1):
        turn = number % len(ways)
        for index in [*range(turn, len(ways)), *range(turn)]:
            way = ways[index]
            if number > way.rounds or (number == 0 and way.is_long):
                continue
            way.who.ask(load=way.options)
            if way.cold:
                cold(way.cold)
            took = float(way.who.ask(run=True)["seconds"])
            if way.who is current.ours:
                path = current.place / "answer.json"
                way.who.ask(save=str(path))
                answer = json.loads(path.read_text(encoding="utf-8"))
                _check_answer(way, case, answer, current.settings, is_first=number == 0)
                took = answer["seconds"]
                if number:
                    loads[index].append(answer["load"])
            if number:
                seconds[index].append(took)
    return [
        Row(case, way.name, way.codec, tuple(taken), statistics.median(load) if load and way.name not in FULL else None)
        for way, taken, load in zip(ways, seconds, loads, strict=True)
    ]


def _check_answer(way: _Way, case: Case, answer: dict[str, Any], settings: Settings, *, is_first: bool) -> None:
    """A row must be what its name says: no damaged block, no other way, no other length."""
    wanted = way.options["reuse"]
    if is_first and wanted == "prefix":  # it is read, and kept for the next one
        wanted = "off"
    if answer["counts"].get("damaged") or answer["counts"].get("lost"):
        raise GritkitError(f"{way.name}: blocks were missing or damaged, so no figure counts")
    if answer["reuse"] != wanted:
        raise GritkitError(f"{way.name}: answered by {answer['reuse']!r}, so no figure counts")
    longest = case.num_tokens + settings.question_tokens
    if not longest - case.num_documents <= answer["prompt_tokens"] <= longest:
        raise GritkitError(f"{way.name}: a prompt of {answer['prompt_tokens']} tokens instead of {longest}")


def _codec_model(settings: Settings, place: Path) -> tuple[Any, str]:
    """A model that was trained where there is one: what it reads has outliers, which random weights do not make."""
    from gritkit import GritModel

    real = settings.shared / "models" / "stories260K-hf" if settings.shared is not None else None
    if real is not None and real.is_dir():
        return GritModel.from_pretrained(real, device="cpu"), real.name
    return GritModel.from_pretrained(place / "model", device="cpu"), "the model of random weights"
