"""The options that several commands have, each declared once.

This module knows nothing about what a command does with them.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Form(str, Enum):
    """How figures are written."""

    table = "table"
    json = "json"


Models = Annotated[list[str], typer.Option("--model", "-m", help="Folder or hub id, or name=folder. May be repeated.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder of data files: sts/NAME/test.jsonl.gz and so on; README.md has all kinds.")
]
Shared = Annotated[
    Path | None, typer.Option(envvar="GRITKIT_SHARED", help="Folder whose 'data' is taken without --data.")
]
Tasks = Annotated[str, typer.Option(help="Tasks of the files (sts.stsbenchmark), by comma; default: all.")]
Types = Annotated[str, typer.Option(help="Types of tasks of the files, by comma: STS, Retrieval ...")]
Limit = Annotated[int | None, typer.Option(help="Examples of each task of the files, drawn by --seed.", min=2)]
Seed = Annotated[int, typer.Option(help="Which examples --limit keeps.", min=0)]
Output = Annotated[
    Path | None, typer.Option(help="Folder of results, which a later run goes on from and reports read.")
]
Results = Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced; a plot beside.")]
Format = Annotated[Form, typer.Option("--format", help="What to write to stdout.")]
