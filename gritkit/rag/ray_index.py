"""Index a corpus that is larger than one machine: Ray Data carries what ``parcels`` makes.

    feed       processes of this machine: files are read, what did not change is passed over
      | batches of documents, as many at a time as Ray's object store has room for
    actors     on any machine: each holds the model, loaded there from its folder or id
      | parcels of rows and blocks
    intake     this process: blocks, then rows, to this machine's disk or to the server

One process writes, so blocks end up on the machine that is to serve, and what it has acknowledged is on the disk. A
batch that is lost with its actor or its machine is not tried again by Ray (an actor that finds no room to restart would
hold its batches for ever): the corpus is fed once more, in which everything that was written is passed over, and what
remains is read one document a batch, so that a document that kills its reader is found and listed alone.

Machines that join need the same gritkit, and the model at the same place. Files and store are opened here only. Of two
documents with the same id in one corpus the one that is read last stays, and which one that is, is not said.

This module knows nothing about how documents are cut, read or stored.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from gritkit.errors import GritkitError, StoreError
from gritkit.kv.codecs import DEFAULT_CODEC, check_codec
from gritkit.model import GritModel
from gritkit.rag.adding import OnError
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.coding import BlockCoder
from gritkit.rag.documents import AddReport
from gritkit.rag.manifest import Manifest
from gritkit.rag.parcels import Intake, Share, Worker, feed
from gritkit.rag.place import place_of
from gritkit.rag.ray_cluster import BATCH_SIZE, RayOptions, connected, first_line, pool_of, quiet, ray_module
from gritkit.rag.reader import Reader, manifest_of
from gritkit.rag.sources import Failure

if TYPE_CHECKING:
    import pyarrow as pa

_PASSES = 10
_LOST_AT_ONCE = 100
"""Batches that may be lost in one pass; with more of them the cluster is sick."""
_FAILED_LOADS = 3
"""Actors in a row that could not load the model."""
_COLUMN = "parcel"

_log = logging.getLogger("gritkit")


@dataclass(frozen=True)
class ModelSource:
    """Where each actor loads the model from, and the other arguments of :meth:`GritModel.from_pretrained`."""

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, device: str | None) -> GritModel:
        return GritModel.from_pretrained(self.source, **{**self.options, "device": device})

    def on_workers(self) -> ModelSource:
        """The same model, whatever folder a process is in."""
        is_folder = os.path.isdir(self.source)
        return dataclasses.replace(self, source=os.path.abspath(self.source)) if is_folder else self


def add_on_ray(
    where: str | os.PathLike[str],
    model: ModelSource,
    shares: Sequence[Share],
    *,
    options: RayOptions | None = None,
    codec: str = DEFAULT_CODEC,
    chunk_tokens: int | None = None,
    chunk_overlap: int | None = None,
    tenant: str = "",
    max_block_bytes: int | None = None,
    on_error: OnError | None = None,
    progress: bool = False,
) -> AddReport:
    """As :meth:`gritkit.rag.Rag.add`, with the model on the actors of a Ray cluster.

    Each share is read by a process of its own on this machine, in this folder; shares must pickle. What was committed
    stays, whatever comes after it. ``max_block_bytes`` of None is half of the free disk, as for ``Rag``.

    Raises:
        InputError: naming the document, for one that cannot be taken, unless ``on_error`` takes its id and the reason.
        StoreError: for a knowledge base of another model, when the disk refuses, or when the cluster fails for good.
        MissingExtraError: without Ray.
    """
    ray = ray_module()
    options = options or RayOptions()
    place_of(where)  # an address that cannot be is no reason to start a cluster
    with connected(ray, options.address):
        source = model.on_workers()
        asked = {"codec": codec, "chunk_tokens": chunk_tokens, "chunk_overlap": chunk_overlap}
        manifest = _ask(ray, source, asked)
        with (
            KnowledgeBase.open(where, manifest=manifest) as base,
            tqdm(unit=" docs", disable=None if progress else True, smoothing=0.05) as bar,
        ):
            base.blocks.max_bytes = _half_of_disk(base) if max_block_bytes is None else max_block_bytes
            intake = Intake(base, len(shares), on_error=on_error, on_done=bar.update)
            _Job(ray, base, source, shares, options, os.fspath(where), tenant, intake).run()
        return intake.report


@dataclass
class _Job:
    """One call's passes over the corpus."""

    ray: Any
    base: KnowledgeBase
    model: ModelSource
    shares: Sequence[Share]
    options: RayOptions
    where: str
    tenant: str
    intake: Intake

    def run(self) -> None:
        for number in range(_PASSES):
            before = self.intake.written
            self.intake.begin()
            failure = self._pass(isolated=number > 0)
            self.intake.commit()
            if self.intake.whole:
                return
            if number > 0 and self.intake.written == before:
                if failure is not None:
                    raise StoreError(
                        f"the Ray cluster fails ({first_line(failure)}): {before} documents are indexed; "
                        "set it right and run this again"
                    ) from failure
                break
            _log.warning("workers were lost with what they were reading: what is missing is read again")
        self._list_missing()

    def _pass(self, *, isolated: bool) -> Exception | None:
        """Feed everything and take what comes of it; returns why it ended early."""
        import ray.data

        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = 1  # bytes: every batch and every parcel is a block of its own, sized by us
        context.max_errored_blocks = _LOST_AT_ONCE
        context.max_consecutive_actor_init_deaths = _FAILED_LOADS
        with ray.data.DataContext.current(context), quiet("ray.data"), warnings.catch_warnings():
            # Ray 2.60 has no other way yet to say how often something is retried
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            try:
                for bundle in self._dataset(isolated).iter_internal_ref_bundles():
                    for ref in bundle.block_refs:
                        self._take(ref)
            except self.ray.exceptions.RayError as error:
                failure: Exception = error
                return failure
        return None

    def _take(self, ref: Any) -> None:
        try:
            table = self.ray.get(ref)
        except self.ray.exceptions.RayError:
            return  # lost with the machine that made it
        for parcel in _unpack(table):
            self.intake.take(parcel)

    def _dataset(self, isolated: bool) -> Any:
        import ray.data

        pool = pool_of(self.ray, self.model.options.get("device"), self.options)
        batch_size = 1 if isolated else self.options.batch_size
        numbers: Any = ray.data.from_items(
            [{"share": number} for number in range(len(self.shares))], override_num_blocks=len(self.shares)
        )
        fed = numbers.map_batches(
            _feed_stage,
            batch_size=None,
            batch_format="pyarrow",
            fn_args=[list(self.shares), self.where, os.getcwd(), batch_size, frozenset(self.intake.refused)],
            num_cpus=0,
            concurrency=min(len(self.shares), max(1, (os.cpu_count() or 1) // 2)),
            # begun again it would pass over what was written meanwhile, and number its batches otherwise
            scheduling_strategy=_here(self.ray, soft=False),
            max_retries=0,
        )
        return fed.map_batches(
            _ReadStage,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=[self.model, pool.device, self.base.manifest, self.tenant],
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=pool.num_actors,
                initial_size=pool.num_actors,
                max_tasks_in_flight_per_actor=1 if isolated else 2,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            # restarts are bounded by the batches that may be lost
            max_restarts=-1,
            max_task_retries=0,
        )

    def _list_missing(self) -> None:
        """What was fed more than once, the last time alone, and never came back."""
        leave_out = frozenset(self.intake.refused)
        for number, share in enumerate(self.shares):
            for batch in feed(share, number, self.base, batch_size=BATCH_SIZE, leave_out=leave_out):
                for document in batch.documents:
                    reason = f"document {document.id!r:.200} could not be read: each worker died that tried"
                    self.intake.refuse(Failure(document.id, reason))


def _feed_stage(
    table: pa.Table, shares: list[Share], where: str, folder: str, batch_size: int, leave_out: frozenset[str]
) -> Iterator[pa.Table]:
    """Batches of the shares whose numbers the table has."""
    os.chdir(folder)  # of whoever gave the paths; this process is the job's own
    with KnowledgeBase.open(where) as base:
        for number in table["share"].to_pylist():
            for batch in feed(shares[number], number, base, batch_size=batch_size, leave_out=leave_out):
                yield _pack(batch)


class _ReadStage:
    """A model, and parcels of the batches that come to it."""

    def __init__(self, source: ModelSource, device: str, manifest: Manifest, tenant: str) -> None:
        import torch

        model = source.load(device)
        if model.fingerprint != manifest.fingerprint:
            raise StoreError(
                f"the model at {source.source!r:.200} on this machine ({model.fingerprint:.12}) is not the one that "
                f"the knowledge base is made with ({manifest.fingerprint:.12})"
            )
        movable = model.writes and model.probe.rope is not None
        coder = BlockCoder(model, check_codec(manifest.codec), tenant) if movable else None
        self._fatal = torch.AcceleratorError
        self._worker = Worker(Reader(model, manifest, coder), fatal=(self._fatal,))

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for batch in _unpack(table):
            try:
                for parcel in self._worker.read(batch):
                    yield _pack(parcel)
            except self._fatal:
                os._exit(1)  # the device fails whatever comes next, and would refuse good documents: begin afresh


def _pack(content: Any) -> pa.Table:
    import pyarrow as pa

    return pa.table({_COLUMN: pa.array([pickle.dumps(content, protocol=5)], pa.large_binary())})


def _unpack(table: pa.Table) -> Iterator[Any]:
    if _COLUMN in table.column_names:  # a stage that gave nothing has no columns
        for scalar in table[_COLUMN]:
            yield pickle.loads(scalar.as_buffer())


def _here(ray: Any, *, soft: bool) -> Any:
    """On this machine; soft: if it has room."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)


def _describe(source: ModelSource, asked: Mapping[str, Any]) -> Manifest:
    return manifest_of(source.load("cpu"), **asked)


def _ask(ray: Any, source: ModelSource, asked: Mapping[str, Any]) -> Manifest:
    """What a knowledge base of the model is to say. A process of the cluster loads the model for it, on a CPU.

    On this machine if it has room: the process then goes on to read the files.
    """
    describe = ray.remote(num_cpus=1, max_retries=2, scheduling_strategy=_here(ray, soft=True))(_describe)
    try:
        manifest: Manifest = ray.get(describe.remote(source, asked))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GritkitError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise StoreError(f"no machine of the Ray cluster could load the model: {first_line(error)}") from error
    return manifest


def _half_of_disk(base: KnowledgeBase) -> int:
    blocks = base.blocks
    existing = next(folder for folder in (blocks.folder, *blocks.folder.parents) if folder.exists())
    taken = sum(blocks.size_of(key) for key in blocks.keys())  # noqa: SIM118 - a store, not a dict
    return shutil.disk_usage(existing).free // 2 + taken
