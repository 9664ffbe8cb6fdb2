"""``gritkit embed``: texts -> vectors, as JSON, an array file, or a table to look at.

This module knows nothing about models beyond ``GritModel.embed``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritkit.cli import options
from gritkit.cli.input import read_texts
from gritkit.cli.loading import open_model
from gritkit.cli.options import Format
from gritkit.cli.output import listing, table, to_json, write

if TYPE_CHECKING:
    from gritkit.model import Vectors


class Precision(str, Enum):
    """Of one component of a vector."""

    float32 = "float32"
    int8 = "int8"
    binary = "binary"


def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts; '-' or none reads stdin.")
    ] = None,
    file: options.File = None,
    jsonl_field: options.JsonlField = None,
    model: options.Model = None,
    role: Annotated[options.Role, typer.Option("--role", help="What the texts are.")] = options.Role.passage,
    instruction: Annotated[str | None, typer.Option("--instruction", help="What the vectors are for.")] = None,
    dim: Annotated[int | None, typer.Option("--dim", help="Keep the first dimensions (Matryoshka models).")] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="Run the first layers (2D Matryoshka).")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Longest text in tokens.")] = None,
    truncate: options.Truncate = False,
    precision: Annotated[Precision, typer.Option("--precision", help="Bytes per component.")] = Precision.float32,
    format: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.json,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file instead of stdout.")] = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Turn texts into vectors: from arguments, from the lines of --file, or from stdin.

    json is one array of what jsonl writes one per line: {"index", "embedding"}; with --precision int8 {"index",
    "scale", "codes"} (embedding = scale * codes), with binary {"index", "bits"} (signs, 8 to a number, first dimension
    in the highest bit). npy is one array with a row per text, with int8 of the fields "scale" and "codes".
    """
    if format is Format.npy and output is None and sys.stdout.isatty():
        raise typer.BadParameter("npy is binary: give --output FILE or redirect stdout")
    given = read_texts(texts, file, jsonl_field)
    grit = open_model(
        model, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
    )
    vectors = grit.embed(
        given,
        role=role.value,
        instruction=instruction,
        dim=dim,
        layers=layers,
        max_length=max_length,
        truncate=truncate,
        progress=True,
    )
    write(render(vectors, given, precision, format), output)


def render(vectors: Vectors, texts: Sequence[str], precision: Precision, format: Format) -> str | bytes:
    """Vectors in the wanted precision and format."""
    import numpy as np

    from gritkit.search import quantize_binary, quantize_int8

    columns: dict[str, Any]
    if precision is Precision.int8:
        codes, scale = quantize_int8(vectors)
        columns = {"scale": scale, "codes": codes}
    else:
        columns = {"embedding": vectors} if precision is Precision.float32 else {"bits": quantize_binary(vectors)}
    if format is Format.npy:
        return _npy(columns)
    if format is Format.table:
        shown = next(array for array in columns.values() if array.ndim == 2)
        rows = [
            (str(i), str(shown.shape[1]), " ".join(f"{x:.4g}" for x in shown[i, :4]) + " ...", text)
            for i, text in enumerate(texts)
        ]
        return table(("index", "size", next(k for k, a in columns.items() if a.ndim == 2), "text"), rows)
    # The shortest digits that give the same float32 back; json.dumps would print those of a float64.
    written = {name: array.astype(str) if array.dtype == np.float32 else array for name, array in columns.items()}
    objects = []
    for index in range(len(texts)):
        fields = [f'"index": {index}']
        for name, array in written.items():
            value = array[index]
            fields.append(f"{to_json(name)}: {value if array.ndim == 1 else '[' + ', '.join(map(str, value)) + ']'}")
        objects.append("{" + ", ".join(fields) + "}")
    return listing(objects, lines=format is Format.jsonl)


def _npy(columns: dict[str, Any]) -> bytes:
    import numpy as np

    (_, first), *rest = columns.items()
    array = first
    if rest:
        fields = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
        array = np.empty(len(first), dtype=fields)
        for name, column in columns.items():
            array[name] = column
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


app = options.app_of(embed)
