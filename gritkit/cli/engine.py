"""``gritkit index --engine ray``: its options, and the files as a Ray process reads them.

This module knows nothing about reports or exit codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritkit.cli.output import note
from gritkit.errors import InputError

if TYPE_CHECKING:
    from gritkit.rag.documents import AddReport, Document
    from gritkit.rag.sources import Failure


class Engine(str, Enum):
    """Where documents are read by the model."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[
    Engine, typer.Option("--engine", help="local: in this process. ray: on the machines of a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Of the cluster that this machine is a part of, or auto; without, one is started here for this run.",
    ),
]
NumActors = Annotated[
    int | None,
    typer.Option("--num-actors", min=1, help="Models at work; one for each GPU, or machine, if not given."),
]
GpusPerActor = Annotated[
    float | None,
    typer.Option("--gpus-per-actor", min=0, help="1 where there are GPUs and the model is to run on one, else 0."),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Documents that an actor gets at a time; 16 if not given.")
]


@dataclass(frozen=True)
class Cluster:
    """What the options say about it."""

    address: str | None
    num_actors: int | None
    gpus_per_actor: float | None
    batch_size: int | None

    def warn_of_no_effect(self) -> None:
        """For the local engine."""
        flags = {
            "--ray-address": self.address,
            "--num-actors": self.num_actors,
            "--gpus-per-actor": self.gpus_per_actor,
            "--batch-size": self.batch_size,
        }
        for flag, value in flags.items():
            if value is not None:
                note(f"Warning: {flag} has no effect without --engine ray")


@dataclass(frozen=True)
class FileShare:
    """Opens the files anew, wherever it is called in the same folder."""

    paths: list[str]
    jsonl_field: str
    max_file_bytes: int

    def __call__(self, on_empty: Callable[[str], None] | None = None) -> Iterator[Document | Failure]:
        from gritkit.rag.documents import Document
        from gritkit.rag.sources import Failure, read_paths

        for found in read_paths(
            self.paths, jsonl_field=self.jsonl_field, max_file_bytes=self.max_file_bytes, on_empty=on_empty
        ):
            if isinstance(found, Failure):
                yield found
                continue
            try:
                yield Document(found.text, id=found.id, metadata=found.metadata, kind=found.kind)
            except InputError as error:
                yield Failure(found.id, str(error))


def add_files_on_ray(
    kb: str,
    model: str | None,
    loading: dict[str, Any],
    files: FileShare,
    cluster: Cluster,
    *,
    chunk_tokens: int | None,
    chunk_overlap: int | None,
    on_error: Callable[[str, str], None],
) -> AddReport:
    """Index the files; ``loading`` are the options of :meth:`GritModel.from_pretrained`."""
    if not model:
        raise typer.BadParameter("no model: give -m/--model FOLDER or set GRITKIT_MODEL")
    from gritkit.rag.ray_cluster import BATCH_SIZE, RayOptions
    from gritkit.rag.ray_index import ModelSource, add_on_ray

    options = RayOptions(
        address=cluster.address,
        num_actors=cluster.num_actors,
        gpus_per_actor=cluster.gpus_per_actor,
        batch_size=cluster.batch_size or BATCH_SIZE,
    )
    return add_on_ray(
        kb,
        ModelSource(model, loading),
        [files],
        options=options,
        chunk_tokens=chunk_tokens,
        chunk_overlap=chunk_overlap,
        on_error=on_error,
        progress=True,
    )
