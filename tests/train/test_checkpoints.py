from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gritkit.errors import GritkitError
from gritkit.model import GritModel
from gritkit.train.checkpoints import is_sharded, load_whole_state, staged_by_all, whole_state
from gritkit.train.world import World
from tests.distributed import in_processes
from tests.models import grit_model


def test_all_processes_fill_one_folder(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-1"

    def one() -> list[str]:
        world = World.here()
        with staged_by_all(target, world) as stage:
            assert not target.exists()
            (stage / f"{world.rank}.txt").write_text("whole")
        return sorted(file.name for file in target.iterdir())

    assert in_processes(3, one) == [["0.txt", "1.txt", "2.txt"]] * 3


@pytest.mark.parametrize("failing", [0, 1])
def test_it_is_absent_when_one_process_fails(tmp_path: Path, failing: int) -> None:
    target = tmp_path / "checkpoint-1"

    def one() -> str:
        world = World.here()
        try:
            with staged_by_all(target, world) as stage:
                (stage / f"{world.rank}.txt").write_text("whole")
                if world.rank == failing:
                    raise OSError("no space left on device")
        except (OSError, GritkitError) as error:
            return type(error).__name__
        return "nothing"

    expected = ["GritkitError", "GritkitError"]
    expected[failing] = "OSError"
    assert in_processes(2, one) == expected
    assert not list(tmp_path.iterdir())


def test_weights_that_are_spread_over_processes_are_saved_and_loaded_whole(tmp_path: Path) -> None:
    plain = grit_model("llama")
    assert not is_sharded(plain)
    assert whole_state(plain) is None

    def one() -> Tensor:
        model = grit_model("llama")
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.lm.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert is_sharded(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
        state = whole_state(model.lm)
        if World.here().rank == 0:
            assert state is not None
            model.save_pretrained(tmp_path / "model", state_dict=state)
        load_whole_state(model.lm, plain.lm.state_dict())
        return torch.cat([p.full_tensor().flatten() for p in model.parameters()])  # type: ignore[attr-defined]

    wanted = torch.cat([p.detach().flatten() for p in plain.parameters()])
    for found in in_processes(2, one):
        assert torch.equal(found, wanted)
    saved = GritModel.from_pretrained(tmp_path / "model", device="cpu")
    for name, parameter in saved.lm.named_parameters():
        assert torch.equal(parameter, 2.0 * plain.lm.get_parameter(name)), name
