"""A Ray cluster to index on: the one that is given, or one that is started here and ends with the call.

One that is started here listens on the loopback address, reports to nobody and has no dashboard. What goes wrong in it
comes as exceptions; its logs are its own.

This module knows nothing about models, documents or stores.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gritkit.errors import InputError, MissingExtraError, StoreError

BATCH_SIZE = 16
_SHORT_TEMPORARY = "/tmp"  # Ray's sockets are below it, and the path of a socket has 104 bytes on some systems
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_server_port_wait_time_s": "300",  # a busy machine starts slowly
    "RAY_raylet_start_wait_time_s": "120",
}
_PATIENCE_S = 10.0

_log = logging.getLogger("gritkit")


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How the work is spread."""

    address: str | None = None
    """Of a running cluster that this machine is a part of ("auto" finds it); None starts one here, for this call."""
    num_actors: int | None = None
    """Models at work; by default one for each GPU's worth, or for each machine where they run on CPUs."""
    gpus_per_actor: float | None = None
    """By default 1 where the cluster has GPUs and the model is to run on one, else 0."""
    batch_size: int = BATCH_SIZE
    """Documents that an actor gets at a time, and that are lost with it. Long ones make smaller batches."""

    def __post_init__(self) -> None:
        for name in ("num_actors", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{name}={value!r} must be a whole number of at least 1")
        if self.gpus_per_actor is not None and not 0 <= self.gpus_per_actor < math.inf:
            raise InputError(f"gpus_per_actor={self.gpus_per_actor!r} must be 0 or more")
        if self.address in (None, "auto"):
            return
        host, _, port = self.address.rpartition(":")
        if "://" in self.address or not host or not port.isdigit() or int(port) > 65535:
            raise InputError(
                f"address={self.address!r} is neither host:port of a cluster that this machine is a part of nor 'auto' "
                "(a client's ray:// address will not do: run this on a machine of the cluster)"
            )


@dataclass(frozen=True)
class Pool:
    """Actors and what each of them holds."""

    num_actors: int
    cpus: int
    gpus: float
    device: str


def pool_of(ray: Any, device: str | None, options: RayOptions) -> Pool:
    """As many actors as are asked for and the machines that are there now have room for."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wants_gpu = device is None or device.startswith("cuda")
    gpus = options.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if wants_gpu and any(machine.get("GPU", 0) >= 1 for machine in machines) else 0.0
    if gpus:
        cpus, room = 1, sum(int(machine.get("GPU", 0) / gpus + 1e-9) for machine in machines)
        most = room if options.num_actors is None else options.num_actors
    else:
        sizes = [int(machine.get("CPU", 0)) for machine in machines if machine.get("CPU", 0) >= 1]
        most = len(sizes) if options.num_actors is None else options.num_actors
        cpus = max(1, min(sizes, default=1) // math.ceil(most / max(1, len(sizes))))
        room = sum(size // cpus for size in sizes)
    if not room:
        raise StoreError(
            f"no machine of the Ray cluster has {gpus or cpus:g} {'GPUs' if gpus else 'CPUs'} to read with"
        )
    if most > room:
        _log.warning("the Ray cluster has room for %d actors: num_actors=%d is more", room, most)
    return Pool(min(most, room), cpus, gpus, "cuda" if gpus else device or "cpu")


def ray_module() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("ray", "scale") from None
    return ray


@contextlib.contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    """A cluster to work on: the caller's own connection, the one at an address, or one that ends with this.

    One that is started here listens on this machine alone, reports to nobody and has no dashboard.
    """
    if ray.is_initialized():
        if address is not None:
            raise InputError(f"address={address!r}: this process is connected to Ray already; leave the address out")
        yield
        return
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    with contextlib.ExitStack() as stack, _environment(_VARIABLES), quiet("ray"):
        try:
            if address is not None:
                _check_answers(address)
                stack.callback(ray.shutdown)
                ray.init(address=address, **options)
            else:
                root = _SHORT_TEMPORARY if os.path.isdir(_SHORT_TEMPORARY) else None
                folder = tempfile.mkdtemp(prefix="gritkit-ray-", dir=root)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                stack.callback(ray.shutdown)
                inside = os.path.join(folder, "r")  # Ray lets everybody write to its own; nobody else gets there
                with _alone(ray):
                    ray.init(address="local", include_dashboard=False, _temp_dir=inside, **options)
        except Exception as error:  # Ray raises all kinds, and plain ones
            where = "here" if address is None else f"at {address!r:.100}"
            raise StoreError(f"cannot use a Ray cluster {where}: {first_line(error)}") from error
        yield


def _check_answers(address: str) -> None:
    """Raises OSError where nobody listens; Ray would try again for a quarter of an hour."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()


@contextlib.contextmanager
def _alone(ray: Any) -> Iterator[None]:
    """A cluster that is started now listens on the loopback address: Ray's own way where it supports no other.

    It has no process that would add machines, and none that reads the others' logs. They are of no use here, and keep
    those waiting that the cluster cannot start without: it gives up when one of them takes 15 s
    (https://github.com/ray-project/ray/issues/65983).
    """
    constants, parameter = ray._private.ray_constants, ray._private.parameter
    before = constants.ENABLE_RAY_CLUSTER, parameter.RayParams
    constants.ENABLE_RAY_CLUSTER = False
    parameter.RayParams = functools.partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER, parameter.RayParams = before


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """What goes wrong comes as exceptions, or is said here."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
