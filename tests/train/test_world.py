from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gritkit.train.world import RandomState, World, reduced
from tests.distributed import in_processes

ROWS = [3, 0, 2]  # of every process
WIDTH = 4


def whole() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(ROWS), WIDTH, generator=generator, dtype=torch.float64)
    return rows, torch.randn(sum(ROWS), sum(ROWS), generator=generator, dtype=torch.float64)


def objective(own: Tensor, all_rows: Tensor, weights: Tensor) -> Tensor:
    """Every process's own rows against all rows; the sum over processes is one function of all rows."""
    return ((own @ all_rows.T).sin() * weights).sum()


def test_gathered_rows_have_the_gradient_of_one_process() -> None:
    rows, weights = whole()
    rows.requires_grad_()
    objective(rows, rows, weights).backward()
    assert rows.grad is not None

    def one() -> tuple[Tensor, Tensor | None]:
        world = World.here()
        start = sum(ROWS[: world.rank])
        mine = slice(start, start + ROWS[world.rank])
        rows, weights = whole()
        own = rows[mine].clone().requires_grad_()
        gathered = world.gathered(own, world.counts(len(own)))
        assert torch.equal(gathered.detach(), rows)
        objective(own, gathered, weights[mine]).backward()
        return gathered.detach(), own.grad

    found = in_processes(3, one)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]), rows.grad, rtol=1e-13, atol=1e-13)


def test_what_processes_tell_each_other() -> None:
    def one() -> list[object]:
        world = World.here()
        return [
            world.summed([world.rank, 2**52]),
            world.largest([world.rank, -world.rank]),
            world.counts(10 + world.rank),
            world.told(f"from {world.rank}"),
            world.all_told({"rank": world.rank}),
            world.summed_tensor(torch.tensor(2.5)).item(),
        ]

    expected = [[1.0, 2.0**53], [1, 0], [10, 11], "from 0", [{"rank": 0}, {"rank": 1}], 5.0]
    assert in_processes(2, one) == [expected] * 2


def test_one_process_talks_to_nobody() -> None:
    world = World.here()
    rows = torch.ones(2, 3)
    assert world == World()
    assert world.gathered(rows, [2]) is rows
    assert (world.summed([3]), world.largest([3]), world.counts(3), world.told("a"), world.all_told(1)) == (
        [3.0],
        [3],
        [3],
        "a",
        [1],
    )


def test_gradients_are_reduced_when_told() -> None:
    def one() -> list[float]:
        world = World.here()
        model = DistributedDataParallel(nn.Linear(1, 1, bias=False))
        seen = []
        for now in (False, True):
            with reduced(model, now):
                model(torch.tensor([[float(1 + world.rank)]])).sum().backward()
            seen.append(model.module.weight.grad.item())
        assert model.require_backward_grad_sync
        return seen

    # first each its own; then the mean over processes of both passes' sums
    assert in_processes(2, one) == [[1.0, 3.0], [2.0, 3.0]]


def test_random_numbers_come_again_and_go_on() -> None:
    torch.manual_seed(3)
    state = RandomState(torch.device("cpu"))
    first = torch.rand(4)
    after = torch.get_rng_state()
    with state.again():
        assert torch.equal(torch.rand(4), first)
        torch.rand(100)
    assert torch.equal(torch.get_rng_state(), after)
