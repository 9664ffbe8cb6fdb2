from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from gritkit import attention
from gritkit.errors import InputError
from gritkit.losses import RouterBalance
from gritkit.plan import Plan
from tests.models import VOCABULARY, grit_model, language_model

E = 6


def logits(tokens: int, layers: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, E, generator=generator, dtype=torch.float64) for _ in range(layers)]


def theirs(layers: list[Tensor], lengths: list[int], top_k: int) -> Tensor:
    """transformers' function, given one sequence and one layer at a time; it counts choices per token."""
    parts = [
        load_balancing_loss_func((sequence,), layer.shape[-1], top_k) / top_k
        for layer in layers
        for sequence in layer.split(lengths)
    ]
    return torch.stack(parts).sum() / len(layers)


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), top_k=st.integers(1, E), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_it_is_transformers_loss_of_each_sequence_and_layer(lengths: list[int], top_k: int, seed: int) -> None:
    layers = [x.float().requires_grad_() for x in logits(sum(lengths), seed=seed)]
    ours, reference = RouterBalance(E, top_k)(layers, torch.tensor(lengths)), theirs(layers, lengths, top_k)
    torch.testing.assert_close(ours, reference)
    for a, b in zip(torch.autograd.grad(ours, layers), torch.autograd.grad(reference, layers), strict=True):
        torch.testing.assert_close(a, b)


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), cut=st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_rows_add_up_however_a_batch_is_cut(lengths: list[int], cut: int) -> None:
    layers, loss = logits(sum(lengths)), RouterBalance(E, 2)
    whole = loss(layers, torch.tensor(lengths))
    place, parts = sum(lengths[:cut]), []
    for rows, row_lengths in (
        ([x[:place] for x in layers], lengths[:cut]),
        ([x[place:] for x in layers], lengths[cut:]),
    ):
        if row_lengths:
            parts.append(loss(rows, torch.tensor(row_lengths)))
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_it_is_1_when_balanced_and_e_over_k_when_collapsed(top_k: int) -> None:
    turns = torch.stack([torch.eye(E).roll(i, 0) for i in range(top_k)]).sum(0)  # each expert is chosen top_k times
    loss = RouterBalance(E, top_k)
    balanced = torch.cat([turns, turns]) * 3
    assert loss([balanced], torch.tensor([E, E])).item() == pytest.approx(2)
    collapsed = torch.cat([torch.full((4, top_k), 50.0), torch.zeros(4, E - top_k)], 1)
    assert loss([collapsed], torch.tensor([4])).item() == pytest.approx(E / top_k)
    assert loss([balanced[: 2 * E], collapsed.repeat(3, 1)], torch.tensor([2 * E])).item() == pytest.approx(
        (1 + E / top_k) / 2
    )


def test_half_precision_logits_are_summed_in_fp32() -> None:
    layers = [x.bfloat16() for x in logits(2000)]
    loss = RouterBalance(E, 2)(layers, torch.tensor([2000]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), RouterBalance(E, 2)([x.double() for x in layers], torch.tensor([2000])))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_mixtrals_routers_under_a_plan_are_those_of_a_padded_batch(checkpointing: bool) -> None:
    lengths = [5, 9, 3]
    sequences = [torch.arange(3, VOCABULARY)[7 * i :][:n] for i, n in enumerate(lengths)]
    plain, model = language_model("mixtral"), grit_model("mixtral")
    top_k, num_experts = model.config.num_experts_per_tok, model.config.num_local_experts

    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=1)
    mask = (torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]).long()
    given_BE = plain.get_decoder()(padded, attention_mask=mask, output_router_logits=True).router_logits
    expected = theirs([x[mask.flatten().bool()] for x in given_BE], lengths, top_k)
    expected.backward()

    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.cat(sequences)
    out = model.lm.get_decoder()(  # type: ignore[operator]
        input_ids=ids[None],
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        attention_mask=attention.no_mask(len(ids), ids.device),
        plan=Plan.of(lengths, causal=True),
        use_cache=False,
        output_router_logits=True,
    )
    loss = RouterBalance(num_experts, top_k)(out.router_logits, torch.tensor(lengths))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    theirs_by_name = dict(plain.named_parameters())
    compared = 0
    for name, parameter in model.lm.named_parameters():
        reference = theirs_by_name[name].grad
        if reference is None:
            assert parameter.grad is None
            continue
        torch.testing.assert_close(parameter.grad, reference, rtol=1e-4, atol=1e-6)
        compared += "gate.weight" in name and float(reference.abs().max()) > 1e-4
    assert compared == model.config.num_hidden_layers


def test_probabilities_and_other_nonsense_are_refused() -> None:
    loss, layers, lengths = RouterBalance(E, 2), logits(4), torch.tensor([3, 1])
    with pytest.raises(InputError, match="are probabilities"):
        loss([x.softmax(-1).bfloat16() for x in layers], lengths)
    with pytest.raises(InputError, match="no router logits"):
        loss([], lengths)
    with pytest.raises(InputError, match=r"router logits 0 have the shape \(4, 6\), not \(5, 6\)"):
        loss(layers, torch.tensor([3, 2]))
    with pytest.raises(InputError, match="top_k=7"):
        RouterBalance(E, 7)
