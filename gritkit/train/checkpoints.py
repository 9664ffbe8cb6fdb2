"""Checkpoints that many processes write together: one folder, whole or absent; and weights that are spread over them.

This module knows nothing about what is trained or how.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor

from gritkit.errors import GritkitError
from gritkit.files import staged_folder
from gritkit.train.world import World


@contextmanager
def staged_by_all(target: Path, world: World) -> Iterator[Path]:
    """A folder that all processes fill; it takes the place of ``target`` when all are done, or never.

    Every process must enter, on a file system that all of them share.

    Raises:
        GritkitError: in the others, when one process fails inside; nothing is left behind.
    """
    with ExitStack() as stack:
        stage = stack.enter_context(staged_folder(target)) if world.rank == 0 else None
        failed = True
        try:
            yield Path(world.told(str(stage)))
            failed = False
        finally:
            others_failed = world.summed([failed])[0] - failed > 0
        if others_failed:
            raise GritkitError(f"{target} was not written: another process failed while it was")
    world.wait()  # nobody reads it before it stands


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds a part of the weights only (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_state(model: nn.Module) -> dict[str, Any] | None:
    """All weights on the CPU of the first process (nothing on others), or None where each holds them whole anyway.

    All processes must ask."""
    if not is_sharded(model):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))


def load_whole_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Weights that every process has whole, into a model that may be spread over them."""
    if is_sharded(model):
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(state)
