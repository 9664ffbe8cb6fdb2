"""``gritkit eval instructions``: arguments in, tables out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

import typer

from gritkit_eval.cli.options import Data, Form, Format, Limit, Models, Output, Results, Seed, Shared, Tasks, Types
from gritkit_eval.cli.quiet import quiet_mteb


def instructions(
    context: typer.Context,
    model: Models,
    data: Data = None,
    shared: Shared = None,
    tasks: Tasks = "",
    types: Types = "",
    limit: Limit = None,
    seed: Seed = 0,
    output: Output = None,
    results: Results = None,
    format: Format = Form.table,
) -> None:
    """Each task with no instruction, the right one, a wrong one, a vague one, and the right one on documents too."""
    quiet_mteb()
    from gritkit_eval.analysis.instructions import Settings, run
    from gritkit_eval.analysis.publishing import outcome_folder, publish_report
    from gritkit_eval.arguments import listed, needed_data_folder

    settings = Settings(
        models=tuple(model), data=needed_data_folder(data, shared), tasks=listed(tasks), types=listed(types),
        limit=limit, seed=seed,
    )  # fmt: skip
    with outcome_folder(output) as outcomes:
        publish_report(run(settings, outcomes), context, results, as_json=format is Form.json)
