"""``gritkit eval crash``: arguments in, kills, what was lost out.

This module knows nothing about how anything is killed or checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def crash(
    rounds: Annotated[int, typer.Option(help="Kills.", min=1, max=1_000_000)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the operations and of where they are interrupted.")] = 0,
    store: Annotated[str, typer.Option(help="lance, or postgres (starts a server of its own).")] = "lance",
    folder: Annotated[Path | None, typer.Option(help="Where failed knowledge bases stay; else nothing stays.")] = None,
    jobs: Annotated[int, typer.Option(help="Knowledge bases at a time.", min=1, max=64)] = 2,
) -> None:
    """Kill a process that writes a knowledge base, again and again, and check after each kill that nothing is lost."""
    from gritkit_eval.crash import Settings, run

    outcome = run(Settings(rounds=rounds, seed=seed, store=store, folder=folder, jobs=jobs))
    typer.echo(outcome.text())
    if outcome.failures:
        raise typer.Exit(1)
