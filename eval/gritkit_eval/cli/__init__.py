"""Measure: tasks of embedding and generation, RAG, benchmarks against peers.

One file a command: arguments in, one evaluation, a table out. None of them knows how anything is measured, and what
measures is imported when a command runs.
"""

from __future__ import annotations

import typer

from gritkit_eval.cli import bench
from gritkit_eval.cli.compare import compare
from gritkit_eval.cli.crash import crash
from gritkit_eval.cli.efficiency import efficiency
from gritkit_eval.cli.generation import generation
from gritkit_eval.cli.instructions import instructions
from gritkit_eval.cli.mteb import mteb
from gritkit_eval.cli.overlap import overlap
from gritkit_eval.cli.rag import rag
from gritkit_eval.cli.report import report
from gritkit_eval.cli.similarity import similarity

app = typer.Typer(
    name="eval", help="Measure: tasks, RAG, benchmarks against peers.", no_args_is_help=True, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(bench.app)
for command in (compare, crash, efficiency, generation, instructions, mteb, overlap, rag, report, similarity):
    app.command(command.__name__)(command)
