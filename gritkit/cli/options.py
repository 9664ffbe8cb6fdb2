"""The options that several commands share, declared once so that they are spelled and explained alike.

This module knows nothing about what they lead to.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(str, Enum):
    """How results are written to stdout."""

    json = "json"
    jsonl = "jsonl"
    npy = "npy"
    table = "table"


class Listing(str, Enum):
    """:class:`Format` without arrays."""

    json = "json"
    jsonl = "jsonl"
    table = "table"


class Report(str, Enum):
    """Text to read, or everything as an object."""

    text = "text"
    json = "json"


class Role(str, Enum):
    """What a text to embed is."""

    query = "query"
    passage = "passage"


Model = Annotated[
    str | None,
    typer.Option("--model", "-m", envvar="GRITKIT_MODEL", metavar="MODEL", help="Model folder or hub id."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cuda, cuda:1, mps or cpu; the best one there if not given.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto (as saved), float32, bfloat16 or float16.")]
PromptFormat = Annotated[
    str | None, typer.Option("--prompt-format", help="Override the checkpoint's: grit, plain, e5, instruct-query.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that a checkpoint brings along.")
]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="Read from FILE, one per line; '-' is stdin.", allow_dash=True),
]
JsonlField = Annotated[
    str | None, typer.Option("--jsonl-field", metavar="NAME", help="Lines are JSON objects; take this field of each.")
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut what is too long instead of refusing it.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens up to this total probability.")]
TopTokens = Annotated[int, typer.Option("--top-k", help="Keep this many likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option("--min-p", help="Keep tokens this likely relative to the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 discourages repeating.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be given again.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes a sampled answer repeatable.")]


def app_of(command: Any, *, help: str | None = None) -> typer.Typer:
    """A command's ``app``: one function, plain help, no shell-completion options of its own."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=help, context_settings={"help_option_names": ["-h", "--help"]})(command)
    return app
