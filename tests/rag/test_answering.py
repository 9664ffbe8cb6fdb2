"""The ways of reuse against explicit masks in plain transformers, and what fits into a prompt.

A token that is computed again is a second token at the same place in the reference: what follows sees that one, and no
longer the one that its document had on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gritkit.errors import InputError, StoreError
from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.kv.dockv import DocKV, Join, left_out
from gritkit.model import GritModel
from gritkit.rag import Hit, Rag
from gritkit.rag.answering import Found, fitting, joined_tokens, num_left_out, tokens_of
from gritkit.rag.store import Row
from tests.models import CONTEXT, TEXTS, WINDOW, grit_model, language_model, shared_model
from tests.rag.test_block_mask import STEPS, TOLERANCE, answered, expected_logits, picked, read, worst

NAMES = ("llama", "mistral_window", "gemma3", "qwen3")
QUESTION = "what is read?"


@dataclass(frozen=True)
class Token:
    """One token of the reference; ``document`` -1 is question and answer."""

    id: int
    place: int
    document: int
    again: bool
    """Computed in context: sees what stands before it."""
    shown: bool
    """Whether what follows sees it."""


def linked_row(documents: Sequence[DocKV], join: Join, link_tokens: int, tail: Sequence[int]) -> list[Token]:
    row: list[Token] = []
    end = 0
    for number, document in enumerate(documents):
        out = left_out(document, join) if number else 0
        start = end - out
        links = link_tokens if number else 0
        for index, token in enumerate(document.ids):
            row.append(Token(token, start + index, number, again=False, shown=index >= out + links))
        if not number:
            row = [Token(one.id, one.place, 0, again=False, shown=True) for one in row]
        for index, token in enumerate(document.ids[out : out + links], out):
            row.append(Token(token, start + index, number, again=True, shown=True))
        end = start + len(document)
    return row + [Token(token, end + index, -1, again=True, shown=True) for index, token in enumerate(tail)]


def linked_mask(row: Sequence[Token], window: int | None) -> Tensor:
    seen = torch.zeros(len(row), len(row), dtype=torch.bool)
    for q, query in enumerate(row):
        for k, key in enumerate(row):
            distance = query.place - key.place
            if query.again:
                seen[q, k] = key.shown and 0 <= distance < (window or len(row))
            else:
                seen[q, k] = query.document == key.document and not key.again and abs(distance) < (window or len(row))
    return seen


def linked_logits(name: str, row: Sequence[Token]) -> Tensor:
    def additive(window: int | None) -> Tensor:
        seen = linked_mask(row, window)
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]

    mask: Any = additive(WINDOW if name == "mistral_window" else None)
    if name == "gemma3":
        mask = {"full_attention": mask, "sliding_attention": additive(WINDOW)}
    ids, places = torch.tensor([[one.id for one in row]]), torch.tensor([[one.place for one in row]])
    with torch.inference_mode():
        out = language_model(name)(input_ids=ids, position_ids=places, attention_mask=mask, use_cache=False)
    return out.logits[0]


@pytest.mark.parametrize("join", ["no-bos", "text", "whole"])
@pytest.mark.parametrize("name", NAMES)
def test_linked_documents_equal_the_reference(name: str, join: Join) -> None:
    """The first tokens of every document but the first are computed again over what stands before them."""
    model = grit_model(name, prompt_format="grit")
    documents = read(model, 4)
    cases = [([0, 1], 1), ([2, 0, 3], 3), ([1, 2, 0], 100), ([0], 5), ([3, 1], 0)]
    requests = [
        Request(
            model.tokens.question_prompt(QUESTION[: 4 + number]),
            SamplingParams(max_new_tokens=STEPS),
            [documents[index] for index in order],
            join,
            link_tokens,
        )
        for number, (order, link_tokens) in enumerate(cases)
    ]
    for request, (logits, tokens) in zip(requests, answered(model, requests, num_slots=2), strict=True):
        row = linked_row(request.documents, join, request.link_tokens, [*request.prompt_ids, *tokens])
        expected = linked_logits(name, row)[-len(tokens) - 1 : -1]
        assert expected.argmax(-1).tolist() == tokens
        assert worst(logits, expected) < TOLERANCE


def test_linking_changes_the_answer_and_all_of_it_is_the_plain_prompt() -> None:
    """The reference would not see missing links if they did not matter. With all tokens linked, and the first document
    read causally, nothing is left of reuse."""
    model = grit_model("llama", embedding_attention="causal")
    documents = read(model, 3)
    question = model.tokens.question_prompt(QUESTION)
    logits = {}
    for links in (0, 2, CONTEXT):
        with picked() as rows:
            decoder = model.decoder(num_slots=1, max_length=CONTEXT)
            decoder.join(Request(question, SamplingParams(max_new_tokens=1), documents, "no-bos", links))
            list(decoder.run())
            (((first,), _),) = rows.values()
        logits[links] = first
    ids = [*documents[0].ids, *(i for document in documents[1:] for i in document.ids[1:]), *question]
    with torch.inference_mode():
        plain = language_model("llama")(torch.tensor([ids]), use_cache=False).logits[0, -1]
    assert worst(logits[CONTEXT][None], plain[None]) < TOLERANCE
    assert worst(logits[2][None], plain[None]) > 100 * TOLERANCE
    assert worst(logits[0][None], logits[2][None]) > 100 * TOLERANCE


# -- through a knowledge base --------------------------------------------------------------------------------------


def asked(model: GritModel, folder: Path, **options: Any) -> tuple[Any, Tensor, list[int], list[DocKV]]:
    """(answer, its logits, its tokens, the documents in the order of the prompt)."""
    with Rag.open(folder, model, codec="exact") as rag, picked() as rows:
        rag.add(list(TEXTS[:3]))
        answer = rag.ask(QUESTION, top_k=3, max_new_tokens=STEPS, **options)
        ((logits, tokens),) = rows.values()
    documents = model.read([hit.text for hit in answer.sources][::-1])[1]
    return answer, torch.stack(logits), tokens, documents


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_linked_answer_of_a_knowledge_base(name: str, tmp_path: Path) -> None:
    model = grit_model(name)
    answer, logits, tokens, documents = asked(model, tmp_path / "kb", reuse="linked", link_tokens=5)
    question = model.tokens.question_prompt(QUESTION)
    expected = linked_logits(name, linked_row(documents, "no-bos", 5, [*question, *tokens]))[-len(tokens) - 1 : -1]
    assert worst(logits, expected) < TOLERANCE
    assert answer.reuse == "linked"
    laid = sum(map(len, documents)) - 2
    assert answer.usage.prompt_tokens == laid + len(question)
    assert answer.usage.cached_tokens == laid - 10


@pytest.mark.parametrize("mode", ["query", "query_doc", "doc_query"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_modes_of_the_paper(name: str, mode: str, tmp_path: Path) -> None:
    """The key-values of the question's own embedding stand before, or behind, those of the documents."""
    model = grit_model(name, prompt_format="grit")
    answer, logits, tokens, documents = asked(model, tmp_path / "kb", reuse=mode)
    assert (answer.reuse, answer.reason) == (mode, "asked for")
    (query,) = model.read([QUESTION], role="query")[1]
    texts = "\n\n".join(hit.text for hit in answer.sources[::-1])
    laid, prompt = {
        "query": (
            [query],
            f"\n<|user|>\n{texts}\n\nOptionally using the prior context answer the query prior to it\n<|assistant|>\n",
        ),
        "query_doc": (
            [query, *documents],
            "\n<|user|>\nOptionally using the prior context answer the query prior to it\n<|assistant|>\n",
        ),
        "doc_query": (
            [*documents, query],
            "\n<|user|>\nAnswer the prior query while optionally using the context prior to it\n<|assistant|>\n",
        ),
    }[mode]
    ids = model.tokens.encode(prompt)
    expected = expected_logits(model, name, laid, "no-bos", ids, tokens)
    assert expected.argmax(-1).tolist() == tokens
    assert worst(logits, expected) < TOLERANCE
    assert answer.usage.cached_tokens == sum(map(len, laid)) - (len(laid) - 1)
    assert answer.usage.prompt_tokens == answer.usage.cached_tokens + len(ids)


@pytest.mark.parametrize("format_name", ["plain", "e5", "grit", "instruct-query"])
@pytest.mark.parametrize("join", ["no-bos", "text", "whole"])
def test_off_reads_the_very_tokens_that_cached_lays(format_name: str, join: Join, tmp_path: Path) -> None:
    """Wherever a text's own tokens begin: "passage: fox" may be one token less of prompt than "passage: " alone."""
    model = grit_model("llama", prompt_format=format_name)
    with Rag.open(tmp_path / "kb", model, codec="exact") as rag:
        rag.add(list(TEXTS))
        cached, off = (
            rag.ask(QUESTION, top_k=5, join=join, reuse=reuse, max_new_tokens=1) for reuse in ("cached", "off")
        )
        assert cached.usage.prompt_tokens == off.usage.prompt_tokens
        question = rag.find(QUESTION, top_k=5, join=join)
        request = rag.prepare(question, "cached", join).request
        ids = [t for i, one in enumerate(request.documents) for t in one.ids[left_out(one, join) if i else 0 :]]
        assert joined_tokens(question.rows, num_left_out(model, join, question.rows)) == ids


# -- what fits -----------------------------------------------------------------------------------------------------


def found(size: int, name: str = "a") -> Found:
    row = Row(name, 0, 1, name, "{}", (), "", tuple(range(size)), "", "")
    return Found(Hit(name, name, 1.0, {}), row)


def sizes(some: Sequence[Found]) -> list[int]:
    return [len(one.row.token_ids) for one in some]


@pytest.mark.parametrize(
    ("given", "needed", "out", "used", "dropped"),
    [
        ([30, 30, 30], 10, 0, [30, 30, 30], []),
        ([30, 30, 31], 10, 0, [30, 30], [31]),
        ([30, 30, 32], 10, 1, [30, 30, 32], []),
        ([30, 30, 33], 10, 1, [30, 30], [33]),
        ([91, 30, 60], 10, 1, [30, 60], [91]),
        ([90, 1], 10, 1, [90, 1], []),
        ([50, 60, 40], 10, 0, [50, 40], [60]),
    ],
)
def test_the_best_that_fit_are_taken(
    given: list[int], needed: int, out: int, used: list[int], dropped: list[int]
) -> None:
    taken, left = fitting([found(size) for size in given], needed, out, 100)
    assert (sizes(taken), sizes(left)) == (used, dropped)
    total = sum(used) - out * (len(used) - 1)
    assert total + needed <= 100


def test_nothing_that_fits_is_an_error_with_the_figures() -> None:
    with pytest.raises(InputError, match="take 71 of the context's 100 tokens and the shortest document found has 30"):
        fitting([found(40), found(30)], 71, 1, 100)


def test_a_chunk_of_another_prompt_format_is_refused() -> None:
    model = shared_model("llama")
    row = Row("a", 0, 1, TEXTS[0], "{}", (), "", (0, 5, 6), "", model.fingerprint)
    with pytest.raises(StoreError, match="document 'a' was read in another prompt format"):
        tokens_of(model, row)
