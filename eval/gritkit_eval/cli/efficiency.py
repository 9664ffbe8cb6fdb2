"""``gritkit eval efficiency``: arguments in, tables out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

from typing import Annotated

import typer

from gritkit_eval.cli.options import Data, Form, Format, Limit, Models, Output, Results, Seed, Shared, Tasks, Types
from gritkit_eval.cli.quiet import quiet_mteb


def efficiency(
    context: typer.Context,
    model: Models,
    data: Data = None,
    shared: Shared = None,
    tasks: Tasks = "",
    types: Types = "",
    dims: Annotated[
        str, typer.Option(help="First numbers of a vector, by comma; default: those trained for, else halves.")
    ] = "",
    layers: Annotated[
        str, typer.Option(help="First layers of the model, by comma; default: half and a quarter of them.")
    ] = "",
    max_tokens: Annotated[str, typer.Option(help="Tokens that texts are cut to, by comma.")] = "",
    dtypes: Annotated[str, typer.Option(help="Beside float32, by comma: bfloat16, float16.")] = "bfloat16",
    limit: Limit = None,
    seed: Seed = 0,
    output: Output = None,
    results: Results = None,
    format: Format = Form.table,
) -> None:
    """Quality against parameters, layers, dimensions, tokens, precision, bytes of a vector and speed."""
    quiet_mteb()
    from gritkit_eval.analysis.efficiency import Settings, run
    from gritkit_eval.analysis.publishing import outcome_folder, publish_report
    from gritkit_eval.arguments import listed, needed_data_folder, whole_numbers

    settings = Settings(
        models=tuple(model), data=needed_data_folder(data, shared), tasks=listed(tasks), types=listed(types),
        dims=whole_numbers("dims", dims), layers=whole_numbers("layers", layers),
        max_lengths=whole_numbers("max_tokens", max_tokens), dtypes=listed(dtypes), limit=limit, seed=seed,
    )  # fmt: skip
    with outcome_folder(output) as outcomes:
        publish_report(run(settings, outcomes), context, results, as_json=format is Form.json)
