"""complete, chat, stream, score and rerank as a user calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gritkit import GritModel
from gritkit.errors import InputError, UnsupportedModelError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Completion, Delta, Finished, SamplingParams
from tests.models import CONTEXT, grit_model, language_model

PROMPTS = ["the quick brown fox", "a", "documents are read once and answered"]
CHATS = [[{"role": "user", "content": text}] for text in PROMPTS]
SAMPLED: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.3, "seed": 5}


@pytest.fixture(scope="module")
def model() -> GritModel:
    return grit_model("llama", prompt_format="grit")


def streamed(events: Any) -> tuple[str, Completion]:
    *deltas, last = list(events)
    assert all(isinstance(event, Delta) and event.row == 0 for event in deltas)
    assert isinstance(last, Finished)
    return "".join(event.text for event in deltas), last.completion


@pytest.mark.parametrize("options", [{"max_new_tokens": 10}, SAMPLED, {"max_new_tokens": 10, "stop": ["e", "a"]}])
def test_stream_equals_whole_equals_batch(model: GritModel, options: dict[str, Any]) -> None:
    """Invariant 9."""
    completions = [model.complete(prompt, **options) for prompt in PROMPTS]
    chats = [model.chat(messages, **options) for messages in CHATS]
    assert model.complete_batch(PROMPTS, **options) == completions
    assert model.chat_batch(CHATS, **options) == chats
    for prompt, messages, completion, chat in zip(PROMPTS, CHATS, completions, chats, strict=True):
        assert streamed(model.stream_complete(prompt, **options)) == (completion.text, completion)
        assert streamed(model.stream(messages, **options)) == (chat.text, chat)
    assert completions != chats


def test_seeds(model: GritModel) -> None:
    once, again, other = (model.complete("the", **{**SAMPLED, "seed": seed}) for seed in (5, 5, 6))
    assert once == again
    assert once != other


def test_more_requests_than_rows(model: GritModel) -> None:
    many = model.complete_batch(PROMPTS * 7, max_new_tokens=3)
    assert many[:3] == many[18:] == [model.complete(prompt, max_new_tokens=3) for prompt in PROMPTS]
    assert model.complete_batch([]) == []


def test_what_cannot_be_continued(model: GritModel) -> None:
    for call, said in (
        (lambda: model.complete("a", max_token=3), "unknown generation option 'max_token'; known are max_new_tokens"),
        (lambda: model.complete("a", temperature=-1), "temperature=-1 must be between 0 and 100"),
        (lambda: model.complete("\ud800"), "lone surrogate"),
        (lambda: model.complete(None), "text is NoneType"),  # type: ignore[arg-type]
        (lambda: model.chat("hello"), "messages must be a non-empty list"),  # type: ignore[arg-type]
        (lambda: model.complete("word " * CONTEXT), f"the context holds {CONTEXT}"),
        (lambda: grit_model("llama").chat(CHATS[0]), "no chat template: use complete"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_one_prompt_or_conversation_is_no_batch(model: GritModel) -> None:
    with pytest.raises(InputError, match="complete_batch needs a list"):
        model.complete_batch("a prompt")
    with pytest.raises(InputError, match="chat_batch needs a list"):
        model.chat_batch(CHATS[0])  # type: ignore[arg-type]


def test_a_batch_with_a_prompt_that_does_not_fit_starts_nothing(model: GritModel) -> None:
    events = model.stream_requests(
        [
            Request(model.tokens.raw_prompt(text), SamplingParams(max_new_tokens=1))
            for text in ("fits", "a b " * CONTEXT)
        ]
    )
    with pytest.raises(InputError, match="tokens and the context holds"):
        next(events)


def test_a_beginning_alone_is_continued(model: GritModel) -> None:
    done = model.complete("", max_new_tokens=3)
    assert done.usage.prompt_tokens == 1


def test_the_context_ends_an_answer(model: GritModel) -> None:
    prompt = "e" * 700
    size = len(model.tokens.raw_prompt(prompt))
    while size > CONTEXT - 4:
        prompt = prompt[:-1]
        size = len(model.tokens.raw_prompt(prompt))
    done = model.complete(prompt, max_new_tokens=1000)
    assert done.finish_reason in ("length", "stop")
    assert done.usage.prompt_tokens + done.usage.completion_tokens <= CONTEXT


def test_an_embedding_only_model_says_so() -> None:
    model = grit_model("llama", prompt_format="grit")
    model.writes = False
    for call in (lambda: model.complete("a"), lambda: model.chat(CHATS[0]), lambda: model.score("a", ["b"])):
        with pytest.raises(UnsupportedModelError, match="no language-model head"):
            call()


# -- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["grit", "plain"])
@pytest.mark.parametrize("name", ["llama", "mistral_window", "gpt2"])
def test_scores_are_mean_probabilities(name: str, form: str) -> None:
    """Against a plain transformers forward of each pair."""
    model, plain = grit_model(name, prompt_format=form), language_model(name)
    query, documents = "brown fox?", [*PROMPTS, "naïve 🦊 café " * 9]
    template = model.tokens.format.score
    expected = []
    for document in documents:
        opening = model.tokens.raw_prompt(template.replace("{document}", document))
        whole = model.tokens.raw_prompt(template.replace("{document}", document) + query)
        if whole[: len(opening)] != opening:  # the first word took the space before it
            opening = model.tokens.raw_prompt(template.replace("{document}", document).rstrip(" "))
        assert whole[: len(opening)] == opening
        ids = torch.tensor([whole])
        with torch.no_grad():
            logs = plain(ids).logits[0].double().log_softmax(-1)
        targets = logs[torch.arange(len(opening) - 1, len(whole) - 1), ids[0, len(opening) :]]
        expected.append(float(targets.mean().exp()))
    scores = model.score(query, documents)
    assert scores == pytest.approx(expected, rel=1e-4)
    assert all(0 <= score <= 1 for score in scores)
    assert model.score(query, documents[::-1]) == pytest.approx(scores[::-1], rel=1e-5)


def test_rerank(model: GritModel) -> None:
    documents = [*PROMPTS, PROMPTS[0]]
    scores = model.score("fox?", documents)
    ranked = model.rerank("fox?", documents)
    assert [one.score for one in ranked] == sorted(scores, reverse=True)
    assert all(one.score == scores[one.index] for one in ranked)
    assert sorted(one.index for one in ranked) == list(range(4))
    assert model.rerank("fox?", documents, top_n=2) == ranked[:2]
    assert model.rerank("fox?", documents, top_n=99) == ranked
    assert model.score("fox?", []) == []
    with pytest.raises(InputError, match="top_n=0 must be at least 1"):
        model.rerank("fox?", documents, top_n=0)
    with pytest.raises(InputError, match="documents must be"):
        model.score("fox?", "one document")


def test_long_documents_are_cut_when_asked(model: GritModel) -> None:
    long = "words and more words " * CONTEXT
    with pytest.raises(InputError, match=r"document 1 and the query are \d+ tokens long and the context is"):
        model.score("fox?", ["a", long])
    first, second = model.score("fox?", ["a", long], truncate=True)
    assert first == pytest.approx(model.score("fox?", ["a"])[0], rel=1e-4)
    assert 0 < second < 1
