from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gritkit import GritModel
from gritkit.backbone import Backbone
from gritkit.errors import InputError
from gritkit_eval.generation import scoring
from gritkit_eval.generation.scoring import Pair, Scored, score_pairs
from gritkit_eval.generation.texts import Texts
from tests.models import CONTEXT, TEXTS, exact, grit_model, language_model, shared_model, tokenizer


def alone(model: Any, pair: Pair) -> Scored:
    """By one plain forward pass of transformers over one pair."""
    context, continuation = pair
    ids = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        log_TV = model(ids).logits[0].double().log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    logprob = sum(float(log_TV[place, token]) for place, token in zip(places, continuation, strict=True))
    return Scored(logprob, all(int(log_TV[p].argmax()) == t for p, t in zip(places, continuation, strict=True)))


def pairs_of(model: GritModel) -> list[Pair]:
    """Contexts that are shared and that are not, continuations of one token and of many, one that is greedy."""
    ids = [model.tokens.raw_prompt(text) for text in TEXTS]
    greedy = list(model.complete(TEXTS[0], max_new_tokens=3).token_ids)
    shared: list[Pair] = [(ids[0], ids[1][1:]), (ids[0], ids[2][1:4]), (ids[0], ids[4][1:]), (ids[0], greedy)]
    return [*shared, (ids[3], ids[0][1:]), (ids[4], ids[4][1:]), (ids[0], ids[1][1:]), (ids[1], ids[2][1:3])]


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3", "gpt2", "gpt_neox", "mixtral"])
def test_every_pair_is_scored_as_it_would_be_alone(name: str) -> None:
    model, plain = shared_model(name), language_model(name)
    pairs = pairs_of(model)
    for got, pair in zip(score_pairs(model, pairs), pairs, strict=True):
        want = alone(plain, pair)
        assert got.logprob == pytest.approx(want.logprob, abs=1e-4)
        assert got.greedy == want.greedy
    assert [one.greedy for one in score_pairs(model, pairs)][3]


def test_a_shared_context_changes_nothing_in_float64() -> None:
    model = exact(grit_model("llama", dtype=torch.float64))
    pairs = pairs_of(model)
    together = score_pairs(model, pairs)
    for got, pair in zip(together, pairs, strict=True):
        assert got.logprob == pytest.approx(score_pairs(model, [pair])[0].logprob, abs=1e-10)


def test_a_shared_context_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = shared_model(), []
    logits = Backbone.logits

    def counted(self: Any, ids_T: Any, *rest: Any) -> Any:
        rows.append(len(ids_T))
        return logits(self, ids_T, *rest)

    monkeypatch.setattr(Backbone, "logits", counted)
    context = list(range(5, 45))
    score_pairs(model, [(context, [7]), (context, [8]), (context, [9, 10, 11])])
    assert rows == [40 + 2]


def test_rows_are_bounded_by_tokens_and_by_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model()
    pairs = pairs_of(model)
    want = score_pairs(model, pairs)
    sizes = []
    logits = Backbone.logits

    def counted(self: Any, ids_T: Any, positions_T: Any, plan: Any, keep_K: Any) -> Any:
        sizes.append(len(keep_K))
        return logits(self, ids_T, positions_T, plan, keep_K)

    monkeypatch.setattr(Backbone, "logits", counted)
    monkeypatch.setattr(scoring, "_LOGITS", 40 * model.config.vocab_size)
    for got, one in zip(score_pairs(model, pairs), want, strict=True):
        assert got.logprob == pytest.approx(one.logprob, abs=1e-4)
    assert len(sizes) > 1
    assert max(sizes) <= 40


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    model, plain = shared_model(), language_model("llama")
    context: Sequence[int] = [5 + i % 300 for i in range(CONTEXT + 50)]
    continuation = [9, 10, 11]
    want = alone(plain, (context[-(CONTEXT + 1 - 3) :], continuation))
    assert score_pairs(model, [(context, continuation)])[0].logprob == pytest.approx(want.logprob, abs=1e-4)
    with pytest.raises(InputError, match=f"has {CONTEXT + 1} tokens and the context is {CONTEXT}"):
        score_pairs(model, [([5], [6] * (CONTEXT + 1))])


def test_nothing_to_predict_and_results_that_are_none() -> None:
    model = grit_model()
    with pytest.raises(InputError, match="pair 1 has an empty continuation"):
        score_pairs(model, [([5], [6]), ([5], [])])
    with pytest.raises(InputError, match="pair 0 has an empty context"):
        score_pairs(model, [([], [6])])
    assert score_pairs(model, []) == []
    with torch.no_grad():
        next(model.lm.parameters()).fill_(math.nan)
    with pytest.raises(InputError, match="pair 0 is NaN"):
        score_pairs(model, [([5], [6])])


def test_a_context_of_spaces_belongs_to_what_follows() -> None:
    texts = Texts(tokenizer())
    first, second = texts.pair("the quick ", "brown")
    assert first == texts.encode("the quick")
    assert [*first, *second] == texts.encode("the quick brown")
    assert texts.pair("", "fox") == ([texts.prefix_id], texts.encode("fox", special=False))
    assert texts.pair("", "<s>fox") == ([texts.prefix_id], texts.encode("fox", special=False))
    with pytest.raises(InputError, match="nothing is left to predict of ''"):
        texts.pair("the", "")
    with pytest.raises(InputError, match="surrogate"):
        texts.encode("\ud800")


def test_a_tokenizer_without_any_border_is_refused() -> None:
    bare = tokenizer()
    bare.bos_token = None
    bare.eos_token = None
    with pytest.raises(InputError, match="no beginning and no end of text"):
        Texts(bare)
