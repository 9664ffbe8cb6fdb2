"""A row that cannot go on ends alone: the others of its step get what they get without it, its slot serves the next."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gritkit import GritModel
from gritkit.errors import GenerationError, InputError
from gritkit.generation.decoder import Decoder, Request
from gritkit.generation.params import Completion, Delta, Failed, Finished, SamplingParams, StepEvent
from gritkit.generation.sampling import Constraint, Sampler
from tests.models import VOCABULARY, grit_model, shared_model

PROMPTS = [[7, 8, 9, 10, 11], list(range(20, 32)), list(range(30, 40))]
BEGINNING = list(range(40, 56))
FAILING = 1
"""The place among them of the one that fails."""


def request(prompt: list[int], **rest: Any) -> Request:
    return Request(prompt, SamplingParams(max_new_tokens=10), **rest)


class FailingSampler(Sampler):
    """Chooses the likeliest tokens, until it has chosen enough."""

    def __init__(self, error: Exception, num_tokens: int) -> None:
        super().__init__(SamplingParams(), ())
        self._error = error
        self._left = num_tokens

    def pick(self, logits_V: Tensor) -> int:
        if not self._left:
            raise self._error
        self._left -= 1
        return super().pick(logits_V)


class Ending:
    """A constraint that allows everything, and after two tokens nothing."""

    num_chosen = 0

    def allowed(self, size: int) -> Tensor:
        return torch.full((size,), self.num_chosen < 2)

    def chosen(self, token_id: int) -> None:
        self.num_chosen += 1


class Refusing(Ending):
    """A constraint that cannot go on with the second token."""

    def chosen(self, token_id: int) -> None:
        super().chosen(token_id)
        if self.num_chosen == 2:
            raise InputError(f"token {token_id} is not of the grammar")


def ends(events: list[StepEvent]) -> dict[int, Completion | Failed]:
    """How each row ended; no row has more than one end."""
    found: dict[int, Completion | Failed] = {}
    for event in events:
        if not isinstance(event, Delta):
            assert event.row not in found
            found[event.row] = event.completion if isinstance(event, Finished) else event
    return found


def alone(model: GritModel, prompt: list[int]) -> Completion:
    (done,) = model.generate([request(prompt)])
    return done


def decoder(model: GritModel, **rest: Any) -> Decoder:
    return model.decoder(**{"num_slots": 3, "max_length": 64, **rest})


def step_all(rows: Decoder, failing: Request, sampler: Sampler | None = None) -> dict[int, Completion | Failed]:
    """The ends of all prompts, of which one is this request."""
    for index, prompt in enumerate(PROMPTS):
        if index == FAILING:
            assert rows.join(failing, sampler) == index
        else:
            assert rows.join(request(prompt)) == index
    return ends(list(rows.run()))


# -- a sampler, a constraint -------------------------------------------------------------------------------------------


def test_a_sampler_that_raises_ends_its_row_alone() -> None:
    model = shared_model()
    expected = [alone(model, prompt) for prompt in PROMPTS]
    rows = decoder(model, share_prefixes=True)
    error = ZeroDivisionError("a secret")
    found = step_all(rows, request(PROMPTS[FAILING]), FailingSampler(error, 2))
    failed = found.pop(FAILING)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, GenerationError)
    assert str(failed.error) == "the answer cannot be continued: ZeroDivisionError"
    assert failed.error.__cause__ is error
    assert found == {index: expected[index] for index in (0, 2)}
    assert rows.num_free == 3
    again = rows.join(request(PROMPTS[FAILING]))
    assert ends(list(rows.run())) == {again: expected[FAILING]}


@pytest.mark.parametrize(
    ("constraint", "said"), [(Ending, "the constraint allows no token"), (Refusing, "is not of the grammar")]
)
def test_a_constraint_that_cannot_go_on_ends_its_row_alone(constraint: type[Ending], said: str) -> None:
    model = shared_model()
    expected = [alone(model, prompt) for prompt in PROMPTS]
    found = step_all(decoder(model), request(PROMPTS[FAILING], constraint=constraint()))
    failed = found.pop(FAILING)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, InputError)
    assert said in str(failed.error)
    assert found == {index: expected[index] for index in (0, 2)}


def test_a_row_that_failed_is_not_running() -> None:
    rows = decoder(shared_model())
    row = rows.join(request([5]), FailingSampler(ValueError(), 0))
    assert [type(event) for event in rows.step()] == [Failed]
    assert not rows.busy
    assert rows.num_produced(row) == 0
    with pytest.raises(InputError, match=f"row {row} is not running"):
        rows.leave(row)


def test_what_shows_as_text_before_it_failed_was_shown() -> None:
    """The others' deltas join to their texts, and the failing row's are the beginning of what it would have said."""
    model = shared_model()
    expected = [alone(model, prompt).text for prompt in PROMPTS]
    rows = decoder(model)
    for index, prompt in enumerate(PROMPTS):
        rows.join(request(prompt), FailingSampler(ValueError(), 5) if index == FAILING else None)
    shown = ["", "", ""]
    for event in rows.run():
        if isinstance(event, Delta):
            shown[event.row] += event.text
    assert [shown[0], shown[2]] == [expected[0], expected[2]]
    assert expected[FAILING].startswith(shown[FAILING])


def test_the_library_raises_what_a_request_fails_with() -> None:
    model = shared_model()

    def both(constraint: Constraint) -> list[Request]:
        return [request(PROMPTS[0]), request(PROMPTS[FAILING], constraint=constraint)]

    with pytest.raises(InputError, match="the constraint allows no token"):
        model.generate(both(Ending()))
    seen = []
    with pytest.raises(InputError, match="is not of the grammar"):
        seen += model.stream_requests(both(Refusing()))


def test_a_request_that_cannot_join_takes_no_slot() -> None:
    """Also where that shows only once it has one."""
    model = shared_model()
    rows = decoder(model, num_slots=1, share_prefixes=True)
    rows.join(request(BEGINNING))
    assert list(rows.run())
    for _ in range(2):
        with pytest.raises(OverflowError):
            rows.join(Request([*BEGINNING, -1]))  # a token that no text has
    assert (rows.num_free, rows.busy) == (1, False)
    row = rows.join(request(PROMPTS[0]))
    assert ends(list(rows.run())) == {row: alone(model, PROMPTS[0])}


# -- a pass ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefill_chunk", [2, 512])
@pytest.mark.parametrize("failing", [0, 1, 4, 8])
def test_a_step_that_raised_can_be_repeated(prefill_chunk: int, failing: int) -> None:
    """As when memory ran out and was made free: nothing counts as computed that was not, also with a row more."""
    model = grit_model()
    expected = [alone(model, prompt) for prompt in PROMPTS]
    rows = decoder(model, prefill_chunk=prefill_chunk)
    passes = itertools.count()

    def fail(*_: Any) -> None:
        if next(passes) == failing:
            raise torch.OutOfMemoryError

    model.lm.get_decoder().layers[1].register_forward_pre_hook(fail)
    numbers = [rows.join(request(prompt)) for prompt in PROMPTS[:2]]
    events = []
    for _ in range(failing):
        events += rows.step()
    with pytest.raises(torch.OutOfMemoryError):
        rows.step()
    numbers.append(rows.join(request(PROMPTS[2])))
    found = ends([*events, *rows.run()])
    assert [found[number] for number in numbers] == expected


# -- logits that are no numbers ----------------------------------------------------------------------------------------


def all_finite(rows: Decoder, num_slots: int = 3) -> bool:
    """Whether every slot holds nothing but numbers."""
    layers = range(rows._backbone.num_layers)
    return all(
        buffer.isfinite().all() for layer in layers for buffer in rows._store.get_many(layer, 0, num_slots, 0, 64)
    )


def poisoned(model: GritModel) -> int:
    """A token whose embedding is no number from now on; no prompt here has it, and no answer to one."""
    prompts = [*PROMPTS, BEGINNING]
    used = {token for prompt in prompts for token in (*prompt, *alone(model, prompt).token_ids)}
    token = min(set(range(50, VOCABULARY)) - used)
    with torch.no_grad():
        model.lm.get_input_embeddings().weight[token] = float("nan")
    return token


@pytest.mark.parametrize("prefill_chunk", [2, 512])
def test_a_row_whose_logits_are_no_numbers_fails_and_leaves_none_behind(prefill_chunk: int) -> None:
    model = grit_model()
    expected = [alone(model, prompt) for prompt in (*PROMPTS, BEGINNING)]
    bad = poisoned(model)
    rows = decoder(model, prefill_chunk=prefill_chunk, share_prefixes=True)
    found = step_all(rows, request([*BEGINNING, bad, 44]))
    failed = found.pop(FAILING)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, GenerationError)
    assert str(failed.error) == "the model's logits after 0 tokens of the answer are not finite"
    assert found == {index: expected[index] for index in (0, 2)}
    assert all_finite(rows)
    again = rows.join(request(BEGINNING))  # which the failed row had read too
    assert ends(list(rows.run())) == {again: expected[-1]}


def test_one_that_leaves_before_its_logits_could_tell_leaves_none_behind_either() -> None:
    model = grit_model()
    expected = alone(model, BEGINNING)
    bad = poisoned(model)
    rows = decoder(model, prefill_chunk=2, share_prefixes=True)
    leaving = rows.join(request([*([bad] * 40), 44]))
    for _ in range(3):
        rows.step()
    assert rows._store.get(0, rows._rows[leaving].slot, 0, 24)[0].isnan().all()
    rows.leave(leaving)
    assert all_finite(rows)
    again = rows.join(request(BEGINNING))
    assert ends(list(rows.run())) == {again: expected}


@pytest.mark.parametrize("leaves", [False, True])
def test_one_whose_answer_no_longer_sees_what_is_no_number_leaves_none_behind(leaves: bool) -> None:
    """All the layers' windows together do not reach back to it; the answer is one, and nobody starts from its slot."""
    model = grit_model("mistral_window")
    expected = [alone(model, prompt) for prompt in PROMPTS]
    bad = poisoned(model)
    rows = decoder(model, num_slots=2, prefill_chunk=1, share_prefixes=True)
    prompt = [bad, *BEGINNING]
    row = rows.join(request(prompt))
    if leaves:
        while not rows.num_produced(row):
            assert not any(isinstance(event, Failed) for event in rows.step())
        assert rows.leave(row).token_ids
    else:
        assert isinstance(ends(list(rows.run()))[row], Completion)
    assert all_finite(rows, 2)
    assert rows._rows[rows.join(request(prompt))].num_shared == 0
    rows.leave(max(rows._rows))
    numbers = [rows.join(request(PROMPTS[index])) for index in (0, 1)]  # a short one beside a longer one
    assert ends(list(rows.run())) == dict(zip(numbers, expected, strict=False))


def test_a_windows_slot_of_numbers_is_started_from() -> None:
    model = shared_model("mistral_window")
    rows = decoder(model, share_prefixes=True)
    rows.join(request(BEGINNING))
    assert list(rows.run())
    again = rows.join(request([*BEGINNING, 44]))
    done = ends(list(rows.run()))[again]
    assert isinstance(done, Completion)
    assert done.usage.cached_tokens == len(BEGINNING)
    assert done.token_ids == alone(model, [*BEGINNING, 44]).token_ids


def test_logits_that_become_no_numbers_while_it_decodes() -> None:
    """Its slot is poisoned between two steps: after so many tokens, the next one is a failure and no token."""
    model = grit_model()
    expected = [alone(model, prompt) for prompt in PROMPTS]
    rows = decoder(model, share_prefixes=True)
    for prompt in PROMPTS:
        rows.join(request(prompt))
    events = [*rows.step(), *rows.step()]
    keys, _ = rows._store.get(0, rows._rows[FAILING].slot, 0, 1)
    with torch.inference_mode():
        keys.fill_(float("nan"))
    found = ends([*events, *rows.run()])
    failed = found.pop(FAILING)
    assert isinstance(failed, Failed)
    assert "after 2 tokens of the answer" in str(failed.error)
    assert found == {index: expected[index] for index in (0, 2)}
    again = rows.join(request(PROMPTS[FAILING]))
    assert ends(list(rows.run())) == {again: expected[FAILING]}


def test_a_token_that_cannot_be_is_no_failure() -> None:
    """Some models give tokens that are never to come -inf."""
    model = grit_model()
    (prompt, *_), (first, *_) = PROMPTS, alone(model, PROMPTS[0]).token_ids
    head = model.lm.get_output_embeddings()
    head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([first]), float("-inf")))
    done = alone(model, prompt)
    assert first not in done.token_ids
    assert len(done.token_ids) == 10
