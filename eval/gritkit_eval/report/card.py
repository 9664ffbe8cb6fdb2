"""What was measured of a checkpoint, written into its README: a section for people, ``model-index`` for the Hub.

The section stands between two comments and is replaced as a whole; in the front matter only the key ``model-index``
changes, and in it only results that an earlier run put there. Every other byte stays. Into ``model-index`` go figures
that stand beside others' there: of whole tasks of a benchmark, by the model as it is.

This module knows nothing about models: which outcomes are the checkpoint's is told by a fingerprint.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gritkit.errors import InputError
from gritkit.files import write_atomic
from gritkit_eval.outcome import Outcome
from gritkit_eval.report.composition import Report
from gritkit_eval.report.composition import text as in_markdown
from gritkit_eval.report.gathered import Gathered
from gritkit_eval.report.standings import CONTESTS
from gritkit_eval.report.words import plain

START, END = "<!-- gritkit eval -->", "<!-- /gritkit eval -->"
_OURS = "gritkit eval"
_KEY = "model-index"
_CHEAPER = ("dim", "layers")
"""Settings under which less than the model runs."""
_FRONT = re.compile(r"\A(---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.MULTILINE | re.DOTALL)


def own(gathered: Gathered, fingerprint: str, folder: Path) -> Gathered:
    """The outcomes of the model with this fingerprint.

    Raises:
        InputError: where there are none, naming both.
    """
    mine = [one for one in gathered.outcomes if one.fingerprint == fingerprint]
    if not mine:
        others = sorted({f"{plain(one.model)} ({one.fingerprint:.12})" for one in gathered.outcomes})
        raise InputError(
            f"the results are of {', '.join(others[:8])}, none of the model in {folder} ({fingerprint:.12}): "
            "measure this one"
        )
    return Gathered(mine)


def write(gathered: Gathered, folder: Path, name: str) -> Path:
    """Bring the README of a checkpoint up to date with these outcomes, which are all its own.

    Raises:
        InputError: for a README that is not UTF-8, whose front matter is not YAML, or that has one marker alone.
    """
    path = folder / "README.md"
    try:
        before = path.read_bytes().decode("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    mark, text = ("\ufeff", before[1:]) if before.startswith("\ufeff") else ("", before)
    ending = "\r\n" if "\r\n" in text else "\n"
    head, body = _parted(text)
    body = _with_section(body or f"# {name}\n".replace("\n", ending), _section(gathered), ending, path)
    head = _with_results(head, results_of(gathered.outcomes), name, ending, path)
    write_atomic(path, f"{mark}{head}{body}".encode())
    return path


def results_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The main metric of each task in Hugging Face's form of results; one that is not defined is left out, and so are
    those on some examples of a task, of a cheaper form of the model, or of no benchmark."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = []
    for one in outcomes:
        if math.isfinite(one.score) and _is_public(one):
            task = plain(one.task)
            result = EvalResult(
                task_type=plain(one.task_type), task_name=plain(one.task_type), dataset_type=task, dataset_name=task,
                dataset_revision=one.version, dataset_args={"made_by": f"{_OURS} {one.kind}", **one.settings},
                metric_type=one.metric, metric_name=one.metric, metric_value=one.score,
            )  # fmt: skip
            # one call each: the library lays results of one task together, whatever their settings
            results += eval_results_to_model_index("", [result])[0]["results"]
    return results


def _is_public(one: Outcome) -> bool:
    return one.kind in CONTESTS and all(one.settings.get(name) is None for name in ("limit", *_CHEAPER))


def _parted(text: str) -> tuple[str, str]:
    """Front matter with its borders, and the rest."""
    found = _FRONT.match(text)
    return (found[0], text[found.end() :]) if found else ("", text)


def _section(gathered: Gathered) -> str:
    """The report as Markdown, between the markers."""
    report = Report(gathered)
    body = in_markdown(report.chapters(), level=3)
    return f"{START}\n\n## Evaluation\n\nMeasured with gritkit: {report.lead}\n\n{body}\n{END}"


def _with_section(body: str, section: str, ending: str, path: Path) -> str:
    """The text with its section replaced, or added at the end."""
    section = section.replace("\n", ending)
    starts, ends = body.count(START), body.count(END)
    if (starts, ends) == (0, 0):
        gap = "" if not body else ending if body.endswith("\n") else ending * 2
        return f"{body}{gap}{section}{ending}"
    if (starts, ends) != (1, 1) or body.index(END) < body.index(START):
        raise InputError(f"{path} has {starts} times {START} and {ends} times {END}: leave one of each, in this order")
    return body[: body.index(START)] + section + body[body.index(END) + len(END) :]


def _with_results(head: str, results: Sequence[dict[str, Any]], name: str, ending: str, path: Path) -> str:
    """The front matter with these results in place of those that an earlier run put there."""
    found = _FRONT.match(head)
    opening, inner, closing = found.groups() if found else (f"---{ending}", "", f"---{ending}{ending}")
    before = _loaded(inner, path)
    index = _merged(before.get(_KEY) or [], results, name, path)
    block = _dumped({_KEY: index}, ending) if index else ""
    start, end = _span(inner)
    after = inner[:start] + block + inner[end:]
    others = {key: value for key, value in before.items() if key != _KEY}
    if {key: value for key, value in _loaded(after, path).items() if key != _KEY} != others:
        raise InputError(f"{path}: {_KEY} cannot be replaced alone: write it out on lines of its own first")
    return f"{opening}{after}{closing}" if after or found else head


def _loaded(inner: str, path: Path) -> dict[str, Any]:
    yaml = _yaml()
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(inner)):  # a few lines of them fill memory
            raise InputError(f"the front matter of {path} shares parts between keys (YAML aliases): write them out")
        given = yaml.safe_load(inner)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"the front matter of {path} is not YAML: {' '.join(str(error).split())}") from None
    if given is not None and not isinstance(given, dict):
        raise InputError(f"the front matter of {path} is {type(given).__name__}, not keys with values")
    return given or {}


def _dumped(fields: dict[str, Any], ending: str) -> str:
    return str(_yaml().safe_dump(fields, sort_keys=False, allow_unicode=True, line_break=ending))


def _merged(index: Any, results: Sequence[dict[str, Any]], name: str, path: Path) -> list[dict[str, Any]]:
    """The model index with our results in the entry of this name, or its only one; an entry left empty goes."""
    whole = isinstance(index, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("results", []), list) for entry in index
    )
    if not whole:
        raise InputError(f"{_KEY} in the front matter of {path} is not a list of entries with results: mend it")
    kept = [{**entry, "results": [one for one in entry.get("results", []) if not _is_ours(one)]} for entry in index]
    named = [entry for entry in kept if entry.get("name") == name] or (kept if len(kept) == 1 else [])
    if not named:
        named = [{"name": name, "results": []}]
        kept += named
    named[0]["results"] += results
    return [entry for entry in kept if entry["results"]]


def _is_ours(result: Any) -> bool:
    dataset = result.get("dataset") if isinstance(result, dict) else None
    args = dataset.get("args") if isinstance(dataset, dict) else None
    return isinstance(args, dict) and str(args.get("made_by", "")).startswith(f"{_OURS} ")


def _span(inner: str) -> tuple[int, int]:
    """Where the key and its value stand, whole lines; at the end where there is no such key."""
    yaml = _yaml()
    root = yaml.compose(inner, Loader=yaml.SafeLoader)
    for key, value in root.value if root is not None else ():
        if key.value == _KEY:
            line_end = inner.find("\n", _last(value))
            return key.start_mark.index, len(inner) if line_end < 0 else line_end + 1
    return len(inner), len(inner)


def _yaml() -> ModuleType:
    """PyYAML, which huggingface_hub brings; it has no types."""
    return importlib.import_module("yaml")


def _last(node: Any) -> int:
    """Where a value's text ends; a block of YAML claims the comments after it, its last leaf does not."""
    if node.id == "scalar" or node.flow_style:
        return int(node.end_mark.index)
    children = [part for one in node.value for part in (one if isinstance(one, tuple) else (one,))]
    return max(map(_last, children))
