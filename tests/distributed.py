"""Several processes of a test, as ``torchrun`` starts them but forked: nothing is imported again.

They talk over gloo on the CPU and through a file; what each returns comes back to the test.
"""

from __future__ import annotations

import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState


def in_processes(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(*args)`` in ``world_size`` processes of one group; what they return, by rank.

    A process that fails or stays away longer than a minute fails the test with its traceback.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [_forked(folder, rank, world_size, function, args) for rank in range(world_size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        problems = [file.read_text() for file in sorted(folder.glob("*.error"))]
        assert not any(codes), f"exit codes {codes}\n" + "\n".join(problems)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def forked() -> int:
    """``os.fork`` without the warning that Python 3.12 has for processes with threads: those of a test that wait hold
    no lock that its child needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _forked(folder: Path, rank: int, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]) -> int:
    child = forked()
    if child:
        return child
    code = 1
    try:
        # what torchrun says, for libraries that look there
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, of one process
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        result = function(*args)
        torch.save(result, folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
        code = 0
    except BaseException:
        (folder / f"{rank}.error").write_text(f"process {rank}:\n{traceback.format_exc()}")
    finally:
        os._exit(code)
