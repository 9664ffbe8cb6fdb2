"""Log-probabilities of tokens, against a plain log-softmax of the language model, and bytes against the tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from gritkit.generation.decoder import Request
from gritkit.generation.logprobs import Logprobs
from gritkit.generation.params import Delta, Finished, SamplingParams
from tests.models import TEXTS, language_model, shared_model, tokenizer


def events(top: int | None, **params: Any) -> list[Any]:
    model = shared_model("llama")
    prompt = model.tokens.raw_prompt(TEXTS[0])
    one = Request(prompt, SamplingParams(**{"max_new_tokens": 8, **params}), top_logprobs=top)
    return list(model.stream_requests([one]))


@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "seed": 3, "top_k": 5, "repetition_penalty": 1.3}])
def test_they_are_the_models_own(params: dict[str, Any]) -> None:
    """Whatever the sampling does to the logits afterwards."""
    done = events(3, **params)[-1].completion
    model, plain = shared_model("llama"), language_model("llama")
    ids = [*model.tokens.raw_prompt(TEXTS[0]), *done.token_ids]
    with torch.inference_mode():
        expected_TV = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    assert len(done.logprobs) == len([i for i in done.token_ids if i not in model.eos_ids])
    for at, one in enumerate(done.logprobs, len(ids) - len(done.token_ids) - 1):
        assert one.token_id == ids[at + 1]
        assert one.logprob == pytest.approx(float(expected_TV[at, one.token_id]), abs=1e-5)
        best = expected_TV[at].topk(3)
        assert [top.token_id for top in one.top] == best.indices.tolist()
        assert [top.logprob for top in one.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_streams_deltas_carry_each_of_them_once() -> None:
    seen = events(2)
    streamed = tuple(one for event in seen if isinstance(event, Delta) for one in event.logprobs)
    assert isinstance(seen[-1], Finished)
    assert streamed == seen[-1].completion.logprobs


def test_there_are_none_unless_asked_for() -> None:
    assert events(None)[-1].completion.logprobs == ()
    alone = events(0)[-1].completion.logprobs
    assert alone
    assert all(one.top == () for one in alone)


def test_bytes_join_to_the_text() -> None:
    backend = tokenizer().backend_tokenizer
    logprobs = Logprobs(backend)
    for text in TEXTS:
        ids = backend.encode(text, add_special_tokens=False).ids
        assert b"".join(map(logprobs.bytes_of, ids)).decode() == text


def test_bytes_of_a_vocabulary_with_byte_tokens() -> None:
    """As in Llama 2: a mark for the space, and tokens that are named after their byte."""
    vocabulary = {"\u2581the": 0, "<0xF0>": 1, "<0x9F>": 2, "s": 3, "</s>": 4}
    backend = Tokenizer(BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    logprobs = Logprobs(backend)
    assert [logprobs.bytes_of(i) for i in range(6)] == [b" the", b"\xf0", b"\x9f", b"s", b"</s>", b""]
    assert json.dumps(logprobs.of(torch.zeros(5), 1, 0).token) == '"\\ufffd"'
