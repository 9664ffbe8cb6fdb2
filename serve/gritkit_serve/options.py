"""The options of ``gritkit serve`` that other commands do not have.

This module knows nothing about what they lead to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gritkit.cli.engine import Engine

Source = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Model folder or hub id.")]
KnowledgeBases = Annotated[
    str | None,
    typer.Option(
        "--kb", metavar="DIR", help="Folder of the knowledge bases, made if not there; or one postgresql:// address."
    ),
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; any but loopback needs an API key.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="FILE", help="API keys, one a line; else the one in GRITKIT_API_KEY."),
]
Adapter = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME=FOLDER", help="LoRA adapter, served as model NAME; may be repeated."),
]
ModelName = Annotated[str | None, typer.Option("--model-name", help="What clients call the model; MODEL if not given.")]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option("--allow-origin", metavar="ORIGIN", help="Web pages that may call from browsers; may be repeated."),
]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Write what users send to the log.")]
Slots = Annotated[
    int | None,
    typer.Option("--slots", min=1, help="Generations that run together, for each adapter anew; 16 if not given."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length", min=2, help="Tokens of a prompt with its answer; every slot holds so many; 4096 if not given."
    ),
]
MaxWaiting = Annotated[
    int | None, typer.Option("--max-waiting", min=1, help="Generations that may wait for a slot; 256 if not given.")
]
MaxRequests = Annotated[
    int,
    typer.Option("--max-requests", min=1, help="Requests worked on at once, waiting ones included; by each replica."),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer where a request names none.")]
MaxBodyMib = Annotated[float, typer.Option("--max-body-mib", help="Largest JSON body.")]
MaxUploadMib = Annotated[float, typer.Option("--max-upload-mib", help="Largest upload of files.")]
RequestSeconds = Annotated[float, typer.Option("--request-seconds", help="A request is cancelled after so long.")]
DrainSeconds = Annotated[float, typer.Option("--drain-seconds", help="After SIGTERM, for requests that run.")]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine", help="local: in this process. ray: in --replicas processes of this machine, on Ray Serve."
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas", min=1, help="Processes with the model, for --engine ray; they share the folder of --kb."
    ),
]
