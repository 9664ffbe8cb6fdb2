from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gritkit.errors import InputError
from gritkit.losses import summed_nll

K, H, V = 11, 6, 23


def inputs(
    dtype: torch.dtype = torch.float64, *, k: int = K, h: int = H, v: int = V, seed: int = 0
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """((hidden, weight, bias) that ask for gradients, targets, shares)."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((k, h), (v, h), (v,))]
    hidden, weight, bias = (x.to(dtype).requires_grad_() for x in made)
    targets = torch.randint(v, (k,), generator=generator)
    return (hidden, weight, bias), targets, torch.rand(k, generator=generator, dtype=torch.float64)


def full(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, share: Tensor | None) -> Tensor:
    """The plain twin: full logits, cross-entropy in at least fp32."""
    logits = linear(hidden, weight, bias)
    nll = cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
    return (nll if share is None else nll * share).sum()


@given(
    k=st.integers(0, 9),
    v=st.integers(1, 9),
    chunk=st.none() | st.integers(1, 10),
    with_bias=st.booleans(),
    with_share=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_it_is_cross_entropy_over_full_logits(
    k: int, v: int, chunk: int | None, with_bias: bool, with_share: bool, seed: int
) -> None:
    (hidden, weight, bias), targets, share = inputs(k=k, v=v, seed=seed)
    asked = [hidden, weight, bias] if with_bias else [hidden, weight]
    arguments: tuple[Any, ...] = (hidden, weight, bias if with_bias else None, targets, share if with_share else None)
    ours, theirs = summed_nll(*arguments, chunk=chunk), full(*arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    factor = torch.tensor(-0.37, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(ours, asked, factor), torch.autograd.grad(theirs, asked, factor), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    asked, targets, share = inputs()
    assert torch.autograd.gradcheck(lambda *x: 3 * summed_nll(*x, targets, share, chunk=4), asked)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    loss = summed_nll(hidden, weight, None, torch.tensor([0, 0]))
    assert loss.item() == 2e4
    loss.backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.0], [-2.0]]))


@pytest.mark.parametrize("asking", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_gradient_alone(asking: tuple[bool, ...]) -> None:
    asked, targets, share = inputs()
    alone = [x.detach().requires_grad_(asks) for x, asks in zip(asked, asking, strict=True)]
    summed_nll(alone[0], alone[1], alone[2], targets, share, chunk=3).backward()
    full(*asked, targets, share).backward()
    for x, reference, asks in zip(alone, asked, asking, strict=True):
        if asks:
            torch.testing.assert_close(x.grad, reference.grad, rtol=1e-12, atol=1e-12)
        else:
            assert x.grad is None


def test_a_retained_graph_gives_the_same_gradients_again() -> None:
    asked, targets, share = inputs()
    loss = summed_nll(*asked, targets, share) / 7
    first = torch.autograd.grad(loss, asked, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, asked), strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused() -> None:
    (hidden, weight, bias), targets, _ = inputs()
    loss = summed_nll(hidden, weight, bias, targets)
    with pytest.raises(InputError, match="differentiated twice"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_a_chunk_below_one_is_refused() -> None:
    (hidden, weight, _), targets, _ = inputs()
    with pytest.raises(InputError, match="chunk=0"):
        summed_nll(hidden, weight, None, targets, chunk=0)


# -- precision -------------------------------------------------------------------------------------------------------


def distance(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True)]


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_as_exact_as_linear_and_cross_entropy(autocast: bool) -> None:
    """Either with bf16 inputs or with fp32 inputs under autocast; the reference is fp64 on the same numbers."""
    asked, targets, share = inputs(torch.float32 if autocast else torch.bfloat16, k=300, h=32, v=50)
    share = share.float()
    exact = [x.detach().double().requires_grad_() for x in asked]
    reference = full(exact[0], exact[1], exact[2], targets, share.double())
    expected = torch.autograd.grad(reference, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours, plain = summed_nll(*asked, targets, share, chunk=20), full(*asked, targets, share)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(ours, asked)
    assert [x.dtype for x in gradients] == [x.dtype for x in asked]
    for mine, theirs in zip(
        distance(gradients, expected), distance(torch.autograd.grad(plain, asked), expected), strict=True
    ):
        assert mine < 1.1 * theirs < 0.02


def test_many_small_chunks_add_up_in_fp32() -> None:
    """In bf16, adding 1 to 256 changes nothing; over 2,000 chunks of one position nearly everything would be lost."""
    k = 2000
    hidden = torch.ones(k, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    summed_nll(hidden, weight, bias, torch.zeros(k, dtype=torch.long), chunk=1).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.flatten().tolist() == bias.grad.tolist() == [-1000.0, 1000.0]


def test_the_product_is_in_autocasts_dtype_but_for_fp64() -> None:
    for dtype, expected in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        (hidden, weight, _), targets, _ = inputs(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16), Made() as made:
            summed_nll(hidden, weight, None, targets)
        assert set(made.dtypes("aten::mm")) == {expected}


# -- memory ----------------------------------------------------------------------------------------------------------


class Made(TorchDispatchMode):
    """Notes what each operation makes, apart from views and what it changes in place: (operation, size, dtype)."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[tuple[str, int, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(x.alias_info is None for x in func._schema.returns):
            self.tensors += [(func.name(), x.numel(), x.dtype) for x in tree_leaves(result) if isinstance(x, Tensor)]
        return result

    @property
    def largest(self) -> int:
        return max(size for _, size, _ in self.tensors)

    def dtypes(self, operation: str) -> list[torch.dtype]:
        return [dtype for name, _, dtype in self.tensors if name == operation]


def test_no_tensor_is_larger_than_a_chunk_or_an_input() -> None:
    k, h, v, chunk = 64, 4, 100, 5
    (hidden, weight, bias), targets, share = inputs(torch.float32, k=k, h=h, v=v)
    with Made() as made:
        summed_nll(hidden, weight, bias, targets, share, chunk=chunk).backward()
    assert made.largest == max(chunk * v, v * h, k * h)
    of_chunk = [name for name, size, _ in made.tensors if size == chunk * v]
    assert len(of_chunk) == 2 * (k // chunk)  # logits and their log-softmax, of which all else is made in place
    with Made() as plain:
        full(hidden, weight, bias, targets, share).backward()
    assert plain.largest == k * v


def test_a_chunk_takes_64_mb_by_default_whatever_the_vocabulary() -> None:
    v = 128_000
    weight = torch.zeros(v, 1)
    with Made() as made, torch.no_grad():
        summed_nll(torch.zeros(300, 1), weight, None, torch.zeros(300, dtype=torch.long))
    assert 0.99 < made.largest * 4 / (64 << 20) <= 1


def test_a_frozen_head_costs_no_buffer_of_its_size_and_no_product() -> None:
    k, h, v = 8, 64, 100
    (hidden, weight, _), targets, _ = inputs(torch.float32, k=k, h=h, v=v)
    with Made() as made:
        summed_nll(hidden, weight.detach(), None, targets, chunk=2).backward()
    assert made.largest == k * h
    assert len(made.dtypes("aten::mm")) == 2 * 4  # logits and the gradient of hidden, for each of 4 chunks


def test_without_gradients_to_make_there_are_the_logits_alone() -> None:
    (hidden, weight, _), targets, share = inputs()
    with Made() as made, torch.no_grad():
        loss = summed_nll(hidden, weight, None, targets, share, chunk=K)
    assert len(made.dtypes("aten::mm")) == 1
    frozen = summed_nll(hidden.detach(), weight.detach(), None, targets, share)
    assert not loss.requires_grad
    assert not frozen.requires_grad
    torch.testing.assert_close(frozen, full(hidden, weight, None, targets, share).detach())
