"""A benchmark's Markdown section: the machine, the versions, the table; and the file that it goes to.

This module knows nothing about contestants.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from gritkit.errors import InputError
from gritkit.files import resolve, write_atomic
from gritkit_eval.report.words import markdown

_BOLD = re.compile(r"\*\*([^*]+)\*\*")


def machine() -> str:
    """Processor, cores, memory, GPU and system, in one line."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        cpu = found.group(1).strip() if found else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{cpu}, {cores} cores, {memory:.0f} GiB, {gpu}{platform.system()}, Python {platform.python_version()}"


class Marked(str):
    """A cell that is Markdown already: made here, of no name that comes from outside."""

    __slots__ = ()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Cells may hold anything, names of files too, and are written as text; bold stays bold."""
    lines = [[_cell(cell) for cell in header], ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    if isinstance(text, Marked) or not text.strip():
        return text
    bold = _BOLD.fullmatch(text)
    return f"**{markdown(bold[1])}**" if bold else markdown(text)


def title_of(name: str, device: str) -> str:
    """Of a benchmark's section: what was measured on a GPU stands beside what was measured without one."""
    return name if device == "cpu" else f"{name}, {device}"


def section(title: str, command: str, versions: Mapping[str, str], body: str) -> str:
    """The section of one benchmark, headed by what made it."""
    made = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return f"## {title}\n\nMade on {today} by `{command}`.\n{machine()}.\n{made}.\n\n{body}\n"


def publish(report: str, title: str, results: Path | None) -> None:
    """Replace the section ``title`` of the results file (or append it); nothing where none was named.

    Raises:
        InputError: for a results file that cannot be read.
    """
    if results is None:
        return
    path = resolve(results)
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(before):
        after = pattern.sub(lambda _: report + "\n", before)
    else:
        after = before.rstrip("\n") + "\n\n" + report
    write_atomic(path, (after.rstrip("\n") + "\n").encode("utf-8"))
    typer.echo(f"Wrote the section {title!r} of {path}", err=True)
