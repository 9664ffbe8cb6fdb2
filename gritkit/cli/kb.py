"""``gritkit kb``: look at knowledge bases, check them, clean them up, and carry them elsewhere.

Only the commands of ``kb_model`` need the model. This module knows nothing about how any of it is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritkit.cli import kb_model, options
from gritkit.cli.output import note, to_json, write

if TYPE_CHECKING:
    from gritkit.rag.base import KnowledgeBase

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]}, help="Look after knowledge bases.",
)  # fmt: skip

Base = Annotated[
    str,
    typer.Argument(metavar="KB", help="Folder of the knowledge base, or its s3://, gs://, az:// or postgresql://."),
]
Form = Annotated[options.Report, typer.Option("--format", help="Text to read, or one JSON object.")]


@app.callback()
def _group() -> None:
    """Keeps ``kb`` a group of commands."""


@app.command()
def stats(kb: Base, format: Form = options.Report.text) -> None:
    """Say what it holds, what it was made with, and how much of the disk it takes."""
    with _opened(kb) as base:
        facts = dataclasses.asdict(base.stats())
    _report({"kb": base.where, **facts}, format)


@app.command()
def verify(kb: Base, format: Form = options.Report.text) -> None:
    """Read everything and set right what can be; exit with 1 when damage is left.

    A damaged block of key-values is removed: it is computed again when it is next needed. Damaged rows are listed.
    """
    with _opened(kb) as base:
        report = base.verify()
    facts = dataclasses.asdict(report)
    if format is options.Report.json:
        write(to_json({"kb": base.where, **facts}) + "\n")
    else:
        counts = {name: value for name, value in facts.items() if isinstance(value, int)}
        _report({"kb": base.where, **counts, "repaired": len(report.repaired), "damaged": len(report.damaged)}, format)
        write("".join(f"repaired: {line}\n" for line in report.repaired))
        write("".join(f"damaged: {line}\n" for line in report.damaged))
    if report.damaged:
        note(f"Error: {len(report.damaged)} damages of {base.where} are left: index those documents again")
        raise typer.Exit(1)


@app.command()
def gc(
    kb: Base,
    min_age: Annotated[
        float, typer.Option("--min-age", min=0, metavar="SECONDS", help="Leave younger blocks alone.")
    ] = 3600.0,
    format: Form = options.Report.text,
) -> None:
    """Remove key-values that no document needs, and what crashes left behind."""
    with _opened(kb) as base:
        report = base.gc(min_age_s=min_age)
    _report({"kb": base.where, **dataclasses.asdict(report)}, format)


@app.command()
def compact(kb: Base, format: Form = options.Report.text) -> None:
    """Rewrite many small files as few, drop old versions, and bring the search indices up to date."""
    with _opened(kb) as base:
        before = base.stats().bytes
        base.compact()
        after = base.stats().bytes
    _report({"kb": base.where, "bytes_before": before, "bytes": after}, format)


@app.command("export")
def export(
    kb: Base,
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to write; replaced when it exists.")],
    blocks: Annotated[
        bool, typer.Option("--blocks", help="With the key-values, which are large and can be computed again.")
    ] = False,
) -> None:
    """Write everything into one portable file."""
    with _opened(kb) as base:
        base.export(file, with_blocks=blocks)
    note(f"wrote {file}")


@app.command("import")
def import_(
    kb: Annotated[str, typer.Argument(metavar="KB", help="The new knowledge base; nothing may be there yet.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="File that 'gritkit kb export' wrote.")],
) -> None:
    """Make a new knowledge base from an exported file: whole, or not at all."""
    from gritkit.rag.base import KnowledgeBase

    with KnowledgeBase.import_(file, kb) as base:
        size = base.store.size()
    note(f"{kb} holds {size.documents} documents, {size.chunks} chunks")


app.command()(kb_model.gate)
app.command()(kb_model.reindex)


def _opened(kb: str) -> KnowledgeBase:
    """Raises StoreError where there is none: only indexing and importing make one."""
    from gritkit.rag.base import KnowledgeBase

    return KnowledgeBase.open(kb)


def _report(facts: Mapping[str, Any], format: options.Report) -> None:
    if format is options.Report.json:
        write(to_json(dict(facts)) + "\n")
        return
    width = max(map(len, facts)) + 2
    write("".join(f"{name.replace('_', ' '):<{width}}{_shown(name, value)}\n" for name, value in facts.items()))


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if not isinstance(value, int):
        return str(value)
    if "bytes" not in name or value < 1024:
        return f"{value:,}"
    size, unit = value / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{value:,} ({size:.1f} {unit})"
