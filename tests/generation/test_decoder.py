"""Rows that join, decode and leave, against Hugging Face's generate() on the same weights, one row at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from gritkit import GritModel
from gritkit.errors import InputError, UnsupportedModelError
from gritkit.generation.decoder import Decoder, Request
from gritkit.generation.params import Completion, Delta, Finished, SamplingParams
from tests.models import ARCHITECTURES, CONTEXT, VOCABULARY, WINDOWED, grit_model, language_model

NEAR_TIE = 1e-3
LENGTHS = (1, 2, 11, 40)
KINDS = ("llama", "gpt2", "mixtral", *WINDOWED)


def prompts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(2, VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module")
def models() -> Any:
    made: dict[str, GritModel] = {}

    def get(name: str) -> GritModel:
        if name not in made:
            made[name] = grit_model(name)
        return made[name]

    return get


def decoder(model: GritModel, *, num_slots: int = 8, max_length: int = 80, **rest: Any) -> Decoder:
    return Decoder(
        model._backbone, model.tokens.backend, model.eos_ids, num_slots=num_slots, max_length=max_length, **rest
    )


def run(rows: Decoder, requests: list[Request]) -> list[Completion]:
    numbers = [rows.join(request) for request in requests]
    done = {event.row: event.completion for event in rows.run() if isinstance(event, Finished)}
    return [done[number] for number in numbers]


def request(prompt: list[int], **params: Any) -> Request:
    return Request(prompt, SamplingParams(**{"max_new_tokens": 12, **params}))


def alone(model: GritModel, one: Request) -> Completion:
    return run(decoder(model, num_slots=1), [one])[0]


# -- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_generate(models: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Unequal prompts in one batch: generate()'s tokens up to a near-tie, and the same logits beyond it."""
    model, plain = models(name), language_model(name)
    ours: list[tuple[Tensor, list[int]]] = []
    inner = model._backbone.logits

    def tap(ids: Tensor, positions: Tensor, plan: Any, keep: Tensor) -> Tensor:
        logits = inner(ids, positions, plan, keep)
        slots = [next(s.slot for s in plan.segments if s.start <= at < s.end) for at in keep.tolist()]
        ours.append((logits, slots))
        return logits

    monkeypatch.setattr(model._backbone, "logits", tap)
    given = prompts()
    rows = decoder(model, num_slots=len(given))
    slots = []
    for prompt in given:
        slots.append(rows._rows[rows.join(request(prompt))].slot)
    done = {event.row: event.completion for event in rows.run() if isinstance(event, Finished)}
    for number, prompt in enumerate(given):
        tokens = list(done[number].token_ids)
        with torch.no_grad():
            forced_TV = plain(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        mine_TV = torch.stack([logits[on.index(slots[number])] for logits, on in ours if slots[number] in on])
        torch.testing.assert_close(mine_TV, forced_TV, atol=2e-4, rtol=1e-4)
        top_T2 = forced_TV.topk(2).values
        ties = (top_T2[:, 0] - top_T2[:, 1] < NEAR_TIE).nonzero()
        until = int(ties[0]) if len(ties) else len(tokens)
        theirs = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, use_cache=True)
        assert tokens[:until] == theirs[0, len(prompt) :].tolist()[:until]
        if until == len(tokens):
            assert len(theirs[0]) == len(prompt) + len(tokens)


# -- rows do not see each other --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("name", KINDS)
def test_prompts_in_chunks_of_any_size(models: Any, name: str, chunk: int) -> None:
    model = models(name)
    requests = [request(prompt) for prompt in prompts()]
    expected = [alone(model, one) for one in requests]
    assert run(decoder(model, prefill_chunk=chunk), requests) == expected


def test_a_long_prompt_is_read_in_small_pieces_only_where_a_row_waits(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models("llama")
    rows = decoder(model, num_slots=2, prefill_chunk=3)
    fed: list[int] = []
    logits = rows._backbone.logits

    def tap(ids: Tensor, positions: Tensor, plan: Any, keep: Tensor) -> Tensor:
        fed.append(len(ids))
        return logits(ids, positions, plan, keep)

    monkeypatch.setattr(rows._backbone, "logits", tap)
    first, second = (request(prompt, max_new_tokens=20) for prompt in prompts((13, 7)))
    rows.join(first)
    rows.step()
    rows.step()
    rows.join(second)
    for _ in range(4):
        rows.step()
    assert fed == [12, 1, 1 + 3, 1 + 3, 1 + 1, 2]


@pytest.mark.parametrize("name", KINDS)
def test_joining_and_leaving_in_any_order(models: Any, name: str) -> None:
    """Three slots, many rows, greedy and sampled: each as though alone, whoever came and went beside it."""
    model, draw = models(name), random.Random(name)
    requests = [
        request(prompt, max_new_tokens=draw.randrange(1, 14), **options)
        for prompt in prompts(tuple(draw.randrange(1, 30) for _ in range(6)), seed=1)
        for options in ({}, {"temperature": 1.5, "top_k": 40, "seed": draw.randrange(99)})
    ]
    expected = [alone(model, one) for one in requests]
    rows = decoder(model, num_slots=3, prefill_chunk=9)
    waiting, running, done, left = list(range(len(requests))), {}, {}, {}
    while waiting or running:
        while waiting and rows.num_free and draw.random() < 0.6:
            index = waiting.pop()
            running[rows.join(requests[index])] = index
        if running and len(left) < 3 and draw.random() < 0.1:
            number = draw.choice(sorted(running))
            index = running.pop(number)
            left[index] = rows.leave(number)
        for event in rows.step():
            if isinstance(event, Finished):
                done[running.pop(event.row)] = event.completion
    assert rows.num_free == 3
    assert not rows.busy
    assert set(done) | set(left) == set(range(len(requests)))
    for index, completion in done.items():
        assert completion == expected[index]
    for index, completion in left.items():
        assert completion.finish_reason == "cancelled"
        count = len(completion.token_ids)
        assert completion.token_ids == expected[index].token_ids[:count]
        assert expected[index].text.startswith(completion.text)


def test_a_slot_used_before_leaves_nothing_behind(models: Any) -> None:
    model = models("llama")
    rows = decoder(model, num_slots=1)
    long, short = (request(prompt) for prompt in prompts((40, 3)))
    run(rows, [long])
    assert run(rows, [short]) == [alone(model, short)]


# -- ends ------------------------------------------------------------------------------------------------------------


def test_limits(models: Any) -> None:
    model = models("llama")
    (prompt,) = prompts((5,))
    done = alone(model, request(prompt, max_new_tokens=3))
    assert (len(done.token_ids), done.finish_reason) == (3, "length")
    assert (done.usage.prompt_tokens, done.usage.cached_tokens, done.usage.completion_tokens) == (5, 0, 3)
    assert run(decoder(model, max_length=7), [request(prompt)])[0].token_ids == done.token_ids[:2]
    (full,) = prompts((CONTEXT - 1,))
    last = run(decoder(model, num_slots=1, max_length=10 * CONTEXT), [request(full)])[0]
    assert (len(last.token_ids), last.finish_reason) == (1, "length")
    with pytest.raises(InputError, match=f"the prompt has {CONTEXT} tokens and the context holds {CONTEXT}"):
        decoder(model, max_length=10 * CONTEXT).join(request([*full, 5]))
    with pytest.raises(InputError, match="the prompt is empty"):
        decoder(model).join(request([]))


def test_every_end_of_text_of_the_generation_config_ends() -> None:
    model = grit_model("llama")
    (prompt,) = prompts((5,))
    free = alone(model, request(prompt))
    ends = free.token_ids[4]
    model = grit_model("llama")
    model._backbone.base.generation_config.eos_token_id = [VOCABULARY - 1, ends]
    done = alone(model, request(prompt))
    count = free.token_ids.index(ends) + 1
    assert done.token_ids == free.token_ids[:count]
    assert done.finish_reason == "stop"
    assert (
        done.text
        == model.tokens.backend.decode([*prompt, *done.token_ids[:-1]])[len(model.tokens.backend.decode(prompt)) :]
        or "\N{REPLACEMENT CHARACTER}" in done.text
    )
    assert model.tokens.eos_id in model.eos_ids


def test_slots_run_out_and_come_back(models: Any) -> None:
    rows = decoder(models("llama"), num_slots=2)
    first, _ = (rows.join(request(prompt)) for prompt in prompts((3, 4)))
    with pytest.raises(InputError, match="all 2 slots are taken"):
        rows.join(request([5]))
    rows.step()
    assert rows.leave(first).token_ids
    assert rows.num_free == 1
    with pytest.raises(InputError, match=f"row {first} is not running"):
        rows.leave(first)
    rows.join(request([5]))
    assert rows.num_free == 0


def test_documents_need_positions_that_move(models: Any) -> None:
    _, (document,) = models("llama").read(["one"])
    model = models("gpt2")
    rows = decoder(model, num_slots=1)
    with pytest.raises(UnsupportedModelError, match="cannot move documents"):
        rows.join(Request([5], SamplingParams(), [document]))
    assert rows.num_free == 1, "a failed join gives its slot back"


def test_events_join_to_the_completion(models: Any) -> None:
    """Invariant 9, with stop strings, in a batch."""
    model = models("llama")
    free = [alone(model, request(prompt, max_new_tokens=30)) for prompt in prompts()]
    stops = [text[len(text) // 2 :][:2] or "zzz" for text in (done.text for done in free)]
    rows = decoder(model)
    for prompt, stop in zip(prompts(), stops, strict=True):
        rows.join(request(prompt, max_new_tokens=30, stop=(stop,)))
    shown: dict[int, str] = dict.fromkeys(range(len(stops)), "")
    for event in rows.run():
        if isinstance(event, Delta):
            assert event.text
            shown[event.row] += event.text
            continue
        done, stop = event.completion, stops[event.row]
        assert shown.pop(event.row) == done.text
        assert stop not in done.text
        whole = free[event.row].text
        assert done.text == (whole[: whole.find(stop)] if stop in whole else whole)
        assert done.finish_reason == ("stop" if stop in whole else free[event.row].finish_reason)
    assert not shown
