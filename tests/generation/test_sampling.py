"""Sampling against transformers' own processors, and against the probabilities themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gritkit.errors import InputError
from gritkit.generation.params import SamplingParams
from gritkit.generation.sampling import Sampler, filtered

VOCABULARY = 97


def logits(seed: int, size: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def theirs(params: SamplingParams, logits_V: torch.Tensor, seen: list[int]) -> torch.Tensor:
    """transformers' processors in the order in which generate() runs them."""
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    return chain(torch.tensor([seen], dtype=torch.long), logits_V[None].clone())[0]


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 1.7, 50.0]),
    top_k=st.sampled_from([0, 1, 5, VOCABULARY, 500]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.013]),
    min_p=st.sampled_from([0.0, 0.05, 0.6, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_the_same_tokens_stay_as_in_transformers(seed: int, penalty: float, **options: Any) -> None:
    params = SamplingParams(repetition_penalty=penalty, **options)
    seen = [3, 5, 5, 90]
    given_V = logits(seed)
    before = given_V.clone()
    ours = filtered(Sampler(params, seen)._penalised(given_V), params)
    torch.testing.assert_close(ours.softmax(-1), theirs(params, given_V, seen).softmax(-1))
    assert torch.equal(ours.isinf(), theirs(params, given_V, seen).isinf())
    assert torch.equal(given_V, before)


def test_greedy_takes_the_likeliest_after_the_penalty() -> None:
    given_V = torch.tensor([1.0, 2.0, 1.9, -5.0])
    assert Sampler(SamplingParams(), [1]).pick(given_V) == 1
    sampler = Sampler(SamplingParams(repetition_penalty=1.5), [1])
    assert [sampler.pick(given_V) for _ in range(3)] == [2, 1, 1], "what was picked is penalised too"
    assert Sampler(SamplingParams(top_k=1, temperature=5.0, seed=0), []).pick(given_V) == 1


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 5e-324])
def test_temperatures_near_zero_are_greedy(temperature: float) -> None:
    assert Sampler(SamplingParams(temperature=temperature, seed=0), []).pick(torch.tensor([1.0, 30.0, -2.0])) == 1


@pytest.mark.parametrize("penalty", [5e-324, 1e-40, 1e-38, 1e-3, 100.0])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0, 100.0])
def test_a_penalty_of_any_size_leaves_numbers(penalty: float, temperature: float) -> None:
    logits = torch.tensor([3.0, 0.0, -2.0, 1.0, 40.0])
    params = SamplingParams(temperature=temperature, repetition_penalty=penalty, seed=0)
    sampler = Sampler(params, [0, 1, 2])
    assert all(sampler.pick(logits) in range(5) for _ in range(5))
    if penalty < 1e-10:
        assert Sampler(params, [0, 1, 2]).pick(logits) == 0  # what was seen and likely is all there is


@pytest.mark.parametrize("option", [{"top_p": 5e-324}, {"min_p": 1.0}, {"top_k": 1}, {"min_p": 5e-324}])
def test_some_token_is_always_left(option: dict[str, Any]) -> None:
    for logits in (torch.tensor([3.0, 0.0, -2.0]), torch.zeros(3)):
        kept = filtered(logits, SamplingParams(temperature=1.0, **option)).softmax(-1)
        assert kept.sum().item() == pytest.approx(1.0)


def test_frequencies_match_the_probabilities() -> None:
    """Chi-square with a fixed seed; 31.3 is the 99.9 % point of 11 degrees of freedom."""
    params = SamplingParams(temperature=1.4, seed=1)
    sampler, given_V, count = Sampler(params, []), logits(4, 12) / 2, 6000
    drawn = torch.tensor([sampler.pick(given_V) for _ in range(count)]).bincount(minlength=12)
    expected = (given_V.double() / 1.4).softmax(-1) * count
    assert expected.min() > 5
    assert float(((drawn - expected) ** 2 / expected).sum()) < 31.3


def test_seeds() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), [])
        return [sampler.pick(torch.zeros(VOCABULARY)) for _ in range(12)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)
    assert draw(-1) == draw(-1)
    assert draw((1 << 64) - 1) == draw((1 << 64) - 1)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("max_new_tokens", 0, "at least 1"),
        ("max_new_tokens", 2.5, "at least 1"),
        ("temperature", -0.1, "between 0 and 100"),
        ("temperature", float("nan"), "between 0 and 100"),
        ("temperature", "hot", "between 0 and 100"),
        ("temperature", None, "between 0 and 100"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("top_k", -1, "0 .off. or more"),
        ("top_k", 1.5, "0 .off. or more"),
        ("min_p", -0.5, "between 0 and 1"),
        ("repetition_penalty", 0.0, "above 0 and at most 100"),
        ("stop", ["a", ""], "up to 16 non-empty texts"),
        ("stop", [7], "up to 16 non-empty texts"),
        ("stop", 7, "up to 16 non-empty texts"),
        ("stop", ["x"] * 17, "up to 16 non-empty texts"),
        ("seed", 1 << 64, "a 64-bit whole number"),
        ("seed", 0.5, "a 64-bit whole number"),
    ],
)
def test_options_out_of_range(option: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^{option}=.* must be {said}") as caught:
        SamplingParams(**{option: value})
    assert "\n" not in str(caught.value)


def test_one_stop_may_be_a_text() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert SamplingParams(stop=None).stop == ()  # type: ignore[arg-type]
