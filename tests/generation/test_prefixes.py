"""Beginnings of prompts that are shared: which slot is chosen, and that answers stay those of a prompt read whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gritkit.generation.decoder import Decoder, Request
from gritkit.generation.params import Completion, Finished, SamplingParams
from gritkit.generation.prefixes import Choice, FreeSlots, Held
from gritkit.model import GritModel
from tests.models import shared_model

LONG = list(range(2, 42))


def held(ids: list[int], salt: str = "") -> Held:
    return Held(np.array(ids), salt)


def decoder(model: GritModel, *, num_slots: int = 3, share: bool = True) -> Decoder:
    return model.decoder(num_slots=num_slots, max_length=200, share_prefixes=share)


def request(ids: list[int], salt: str = "", **params: int) -> Request:
    return Request(ids, SamplingParams(max_new_tokens=params.get("new", 6)), salt=salt)


def run(rows: Decoder, *requests: Request) -> list[Completion]:
    numbers = [rows.join(one) for one in requests]
    done = {event.row: event.completion for event in rows.run() if isinstance(event, Finished)}
    return [done[number] for number in numbers]


# -- which slot ------------------------------------------------------------------------------------------------------


def test_a_continuation_joins_the_slot_that_holds_it() -> None:
    slots = FreeSlots()
    slots.left(1, held(LONG))
    assert slots.choose([0, 1, 2], {}, [*LONG, 7, 8], "") == Choice(1, None, len(LONG))


def test_a_sibling_gets_a_copy_and_leaves_the_original() -> None:
    slots = FreeSlots()
    slots.left(1, held(LONG))
    assert slots.choose([0, 1], {}, [*LONG[:20], 99, 98], "") == Choice(0, 1, 20)
    assert slots.choose([1], {}, [*LONG, 5], "") == Choice(1, None, len(LONG))


def test_the_only_free_slot_is_cut_back_instead_of_copied() -> None:
    slots = FreeSlots()
    slots.left(1, held(LONG))
    assert slots.choose([1], {}, [*LONG[:20], 99, 98], "") == Choice(1, None, 20)


def test_a_running_row_is_copied_from() -> None:
    assert FreeSlots().choose([2], {0: held(LONG)}, [*LONG, 7], "") == Choice(2, 0, len(LONG))


def test_another_salt_shares_nothing() -> None:
    slots = FreeSlots()
    slots.left(1, held(LONG, "a"))
    assert slots.choose([0, 1], {2: held(LONG, "a")}, [*LONG, 7], "b").length == 0


def test_what_was_left_first_is_written_over_first() -> None:
    slots = FreeSlots()
    for slot in (2, 0, 1):
        slots.left(slot, held([slot + 50] * 30))
    assert [slots.choose([0, 1, 2], {}, [7] * 20, "").slot for _ in range(1)] == [2]
    assert slots.choose([0, 1], {}, [7] * 20, "").slot == 0


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.lists(st.integers(0, 2), max_size=30), max_size=4))
def test_what_is_shared_is_a_beginning_of_both(prompt: list[int], others: list[list[int]]) -> None:
    slots = FreeSlots()
    for slot, ids in enumerate(others):
        slots.left(slot, held(ids))
    choice = slots.choose(list(range(5)), {}, prompt, "")
    assert choice.slot in range(5)
    assert 0 <= choice.length < max(len(prompt), 1)
    if choice.length:
        source = others[choice.slot if choice.source is None else choice.source]
        assert source[: choice.length] == prompt[: choice.length]


# -- in the decoder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_the_next_turn_is_that_of_a_prompt_read_whole(name: str) -> None:
    """Rows of a mistral and a gemma3 see through windows of a few tokens, and the slot has more of them."""
    model = shared_model(name)
    rows = decoder(model)
    first = run(rows, request(LONG))[0]
    turn = [*LONG, *first.token_ids, 5, 6, 7]
    second = run(rows, request(turn))[0]
    whole = run(decoder(model, share=False), request(turn))[0]
    assert second.token_ids == whole.token_ids
    assert second.text == whole.text
    assert second.usage.cached_tokens == len(LONG) + len(first.token_ids) - 1
    assert whole.usage.cached_tokens == 0


def test_a_copy_of_a_running_row_does_not_disturb_it() -> None:
    model = shared_model("llama")
    rows = decoder(model)
    one = rows.join(request(LONG, new=12))
    rows.step()
    rows.step()
    other = rows.join(request([*LONG[:30], 9, 8, 7], new=12))
    done = {event.row: event.completion for event in rows.run() if isinstance(event, Finished)}
    assert done[other].usage.cached_tokens == 30
    for number, ids in ((one, LONG), (other, [*LONG[:30], 9, 8, 7])):
        alone = run(decoder(model, share=False), request(ids, new=12))[0]
        assert done[number].token_ids == alone.token_ids


def test_a_row_that_is_still_read_is_not_copied_from() -> None:
    model = shared_model("llama")
    rows = decoder(model)
    both = run(rows, request(LONG), request([*LONG, 5]))
    assert [one.usage.cached_tokens for one in both] == [0, 0]


def test_slots_hold_nothing_for_others_by_default() -> None:
    rows = decoder(shared_model("llama"), share=False)
    assert [run(rows, request(LONG))[0].usage.cached_tokens for _ in range(2)] == [0, 0]


def test_documents_are_neither_shared_nor_shared_from() -> None:
    model = shared_model("llama")
    _, (document,) = model.read("attention sees what the plan shows it")
    behind = Request(LONG, SamplingParams(max_new_tokens=4), [document])
    rows = decoder(model)
    first, second = run(rows, behind)[0], run(rows, behind)[0]
    assert first.token_ids == second.token_ids
    assert first.usage == second.usage
    assert run(rows, request([*LONG, 5]))[0].usage.cached_tokens == 0
