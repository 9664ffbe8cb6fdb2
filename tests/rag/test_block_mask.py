"""A cached answer is the same tokens run without any cache, under the mask that says who saw whom.

The reference is one forward of plain transformers, eager attention, over every token that was ever seen: the documents
as they were read (also the beginning-of-text of the later ones, which only their own block saw), the question, and the
answer so far. Tolerance: 1e-5 of the norm of the logits, fp32; the largest seen is 6e-7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.generation.sampling import Sampler
from gritkit.kv.dockv import DocKV, Join
from gritkit.model import GritModel
from gritkit.rag import Answer, Rag
from tests.models import CONTEXT, MOVABLE, WINDOW, WINDOWED, grit_model, language_model, tokenizer

TOLERANCE = 1e-5
STEPS = 8
TEXTS = ("a fox jumps over the lazy dog", "documents are read once", "café 🦊 seen from 東京, twice")
QUESTION = "what is read?"


def reference_row(documents: Sequence[DocKV], join: Join, tail: Sequence[int]) -> tuple[Tensor, Tensor, list]:
    """(ids, positions, block number of each token) of all documents and the tail; -1 is the tail.

    A later document stands so that its first joined token follows what was joined before it, hence what it leaves out
    shares positions with the end of the document before.
    """
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[tuple[int, bool]] = []  # (block, joined)
    end = 0
    for number, document in enumerate(documents):
        left_out = {"no-bos": document.num_bos, "text": document.num_prompt, "whole": 0}[join] if number else 0
        start = end - left_out
        ids += document.ids
        positions += range(start, start + len(document))
        blocks += [(number, place >= left_out) for place in range(len(document))]
        end = start + len(document)
    ids += tail
    positions += range(end, end + len(tail))
    blocks += [(-1, True)] * len(tail)
    return torch.tensor(ids), torch.tensor(positions), blocks


def reference_mask(
    positions: Tensor, blocks: list[tuple[int, bool]], window: int | None, rule: str, *, causal_blocks: bool
) -> Tensor:
    """True where a query may see a key."""
    size = len(blocks)
    reach = {"exclusive": (window or size) - 1, "inclusive": window or size, "full": size}[rule] if window else size
    distance = positions[:, None] - positions[None]
    block = torch.tensor([number for number, _ in blocks])
    joined = torch.tensor([is_joined for _, is_joined in blocks])
    back = (distance >= 0) & (distance < (window or size))
    # question and answer: causal over what was joined, in (q - window, q]; a document: itself alone
    tail = (block[:, None] == -1) & joined[None] & back
    own = (block[:, None] == block[None]) & (block[:, None] != -1)
    return tail | (own & (back if causal_blocks else distance.abs() <= reach))


def reference_logits(name: str, row: tuple[Tensor, Tensor, list], rule: str, *, causal_blocks: bool = False) -> Tensor:
    """Logits of every token by a model with no gritkit in it."""
    ids, positions, blocks = row
    model = language_model(name)
    assert model.config._attn_implementation == "eager"

    def additive(window: int | None) -> Tensor:
        seen = reference_mask(positions, blocks, window, rule, causal_blocks=causal_blocks)
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]

    mask: Any = additive(WINDOW if name == "mistral_window" else None)
    if name == "gemma3":
        mask = {"full_attention": mask, "sliding_attention": additive(WINDOW)}
    with torch.inference_mode():
        out = model(input_ids=ids[None], position_ids=positions[None], attention_mask=mask, use_cache=False)
    return out.logits[0]


Asked = tuple[Tensor, list[int]]
"""Logits [steps, V] that an answer's tokens were picked from, and the tokens."""


@contextmanager
def picked() -> Iterator[dict[Sampler, tuple[list[Tensor], list[int]]]]:
    """What each row's sampler was given and chose, in the order in which the rows joined."""
    rows: dict[Sampler, tuple[list[Tensor], list[int]]] = {}
    made, pick = Sampler.__init__, Sampler.pick

    def begin(self: Sampler, *args: Any) -> None:
        rows[self] = ([], [])
        made(self, *args)

    def tap(self: Sampler, logits_V: Tensor) -> int:
        logits, tokens = rows[self]
        logits.append(logits_V.clone())
        tokens.append(pick(self, logits_V))
        return tokens[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "__init__", begin)
        patch.setattr(Sampler, "pick", tap)
        yield rows


def answered(model: GritModel, requests: Sequence[Request], num_slots: int) -> list[Asked]:
    """The answers to requests that share slots: some wait until others have left."""
    with picked() as rows:
        decoder = model.decoder(num_slots=num_slots, max_length=CONTEXT, prefill_chunk=7)
        waiting = list(requests)[::-1]
        while waiting or decoder.busy:
            while waiting and decoder.num_free:
                decoder.join(waiting.pop())
            decoder.step()
        return [(torch.stack(logits), tokens) for logits, tokens in rows.values()]


def read(model: GritModel, count: int) -> list[DocKV]:
    """So many documents of unequal lengths; with the windows of 4, shorter and longer ones, and one of its own size."""
    texts = [TEXTS[index % len(TEXTS)][: (7 * index + 3) % 40 + 1] + "." * index for index in range(count)]
    return model.read(texts)[1]


def expected_logits(
    model: GritModel, name: str, documents: Sequence[DocKV], join: Join, question: Sequence[int], tokens: list[int]
) -> Tensor:
    row = reference_row(documents, join, [*question, *tokens])
    rule, causal = model.embedding_config.embedding_window, model.embedding_config.embedding_attention == "causal"
    return reference_logits(name, row, rule, causal_blocks=causal)[-len(tokens) - 1 : -1]


def worst(got: Tensor, expected: Tensor) -> float:
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def check(name: str, model: GritModel, orders: Sequence[Sequence[int]], join: Join = "no-bos") -> None:
    """Answers from documents in these orders, generated together, each as its reference has it."""
    documents = read(model, max(max(order) for order in orders) + 1)
    params = SamplingParams(max_new_tokens=STEPS)
    questions = [model.tokens.question_prompt(QUESTION[: 4 + 3 * number]) for number in range(len(orders))]
    requests = [
        Request(question, params, [documents[index] for index in order], join)
        for question, order in zip(questions, orders, strict=True)
    ]
    for request, (logits, tokens) in zip(requests, answered(model, requests, num_slots=3), strict=True):
        expected = expected_logits(model, name, request.documents, join, request.prompt_ids, tokens)
        assert expected.argmax(-1).tolist() == tokens
        assert worst(logits, expected) < TOLERANCE


@pytest.mark.parametrize("name", MOVABLE)
def test_cached_answers_equal_the_block_mask(name: str) -> None:
    """One to eight documents, in order and shuffled, of unequal lengths, all answers in one decoder."""
    orders = [
        [0],
        [0, 1],
        [2, 0, 1],
        [1, 3, 0, 2],
        [4, 2, 0, 3, 1],
        [3, 5, 0, 4],
        [6, 1, 5, 2, 0, 4, 3],
        [*range(8)][::-1],
    ]
    check(name, grit_model(name), orders)


@pytest.mark.parametrize("join", ["whole", "text"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_documents_leave_out_is_left_out(name: str, join: Join) -> None:
    check(name, grit_model(name, prompt_format="grit"), [[0, 1, 2], [2, 1, 0], [1]], join)


@pytest.mark.parametrize("rule", ["exclusive", "inclusive", "full"])
@pytest.mark.parametrize("name", WINDOWED)
def test_the_windows_of_documents_follow_the_rule_of_the_checkpoint(name: str, rule: str) -> None:
    check(name, grit_model(name, embedding_window=rule), [[0, 1], [5], [3, 2, 4]])


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3"])
def test_causal_documents_are_blocks_too(name: str) -> None:
    check(name, grit_model(name, embedding_attention="causal"), [[0, 1], [2, 0, 3]])


def test_a_sliding_window_keeps_what_can_still_be_seen() -> None:
    (document,) = grit_model("gemma3").read("documents are read once")[1]
    assert [keys.shape[1] for keys in document.keys] == [WINDOW - 1, len(document), WINDOW - 1]


@pytest.mark.parametrize(("offset", "tolerance"), [(256, 1e-5), (1024, 2e-5), (4096, 1e-4)])
def test_tolerance_grows_with_the_offset(offset: int, tolerance: float) -> None:
    """Keys are turned by angles in fp32, whose rounding grows with the place; here that of a second document."""
    model = GritModel.from_parts(language_model("llama", max_position_embeddings=8192), tokenizer())
    model.embedding_config = model.embedding_config.override(max_length=8192)
    text = "documents are read once and answered from many times "
    long = text * (offset // len(model.tokens.encode(text)) + 1)
    documents = model.read([long, TEXTS[0]], max_length=offset, truncate=True)[1]
    question = model.tokens.question_prompt(QUESTION)
    params = SamplingParams(max_new_tokens=2)
    with picked() as rows:
        decoder = model.decoder(num_slots=1, max_length=8192)
        decoder.join(Request(question, params, documents))
        list(decoder.run())
        ((logits, tokens),) = rows.values()
    expected = expected_logits(model, "llama", documents, "no-bos", question, tokens)
    assert worst(torch.stack(logits), expected) < tolerance


# -- through a knowledge base --------------------------------------------------------------------------------------


def asked(model: GritModel, folder: Path, count: int, **options: Any) -> tuple[Answer, Tensor, list[int]]:
    """(answer, its logits [steps, V], its tokens) from a knowledge base of ``count`` documents."""
    with Rag.open(folder, model, codec="exact") as rag, picked() as rows:
        rag.add(TEXTS[:count])
        answer = rag.ask(QUESTION, top_k=count, max_new_tokens=STEPS, **options)
        ((logits, tokens),) = rows.values()
    return answer, torch.stack(logits), tokens


def found_documents(model: GritModel, answer: Answer) -> list[DocKV]:
    """The documents in the order of the prompt: the best last."""
    return model.read([hit.text for hit in answer.sources][::-1])[1]


@pytest.mark.parametrize("name", MOVABLE)
def test_an_answer_of_a_knowledge_base_equals_the_block_mask(name: str, tmp_path: Path) -> None:
    model = grit_model(name)
    answer, logits, tokens = asked(model, tmp_path / "kb", 3)
    assert answer.reuse == "cached"
    documents, question = found_documents(model, answer), model.tokens.question_prompt(QUESTION)
    expected = expected_logits(model, name, documents, "no-bos", question, tokens)
    assert expected.argmax(-1).tolist() == tokens
    assert worst(logits, expected) < TOLERANCE
    assert answer.usage.cached_tokens == sum(map(len, documents)) - 2 * len(model.tokens.bos_ids)
    assert answer.usage.prompt_tokens - answer.usage.cached_tokens == len(question)


def test_one_causal_document_is_the_whole_prompt(tmp_path: Path) -> None:
    model = grit_model("llama", embedding_attention="causal")
    cached, cached_logits, tokens = asked(model, tmp_path / "kb", 1)
    plain, plain_logits, same_tokens = asked(model, tmp_path / "kb", 1, reuse="off")
    assert (cached.reuse, plain.reuse) == ("prefix", "off")
    assert tokens == same_tokens
    assert worst(cached_logits, plain_logits) < TOLERANCE
    assert plain.usage.cached_tokens == 0
    assert plain.usage.prompt_tokens == cached.usage.prompt_tokens


@pytest.mark.parametrize("name", MOVABLE)
def test_a_kept_prefix_is_the_whole_prompt(name: str, tmp_path: Path) -> None:
    model = grit_model(name)
    plain, plain_logits, tokens = asked(model, tmp_path / "kb", 3, reuse="off")
    with Rag.open(tmp_path / "kb", model, codec="exact") as rag, picked() as rows:
        first, second = (rag.ask(QUESTION, top_k=3, max_new_tokens=STEPS, reuse="prefix") for _ in range(2))
    assert (plain.reuse, first.reuse, second.reuse) == ("off", "off", "prefix")
    assert first.usage.cached_tokens == 0
    assert second.usage.prompt_tokens - second.usage.cached_tokens == len(model.tokens.question_prompt(QUESTION))
    for logits, same_tokens in rows.values():
        assert same_tokens == tokens
        assert worst(torch.stack(logits), plain_logits) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gpt2"])
def test_reuse_off_is_one_plain_prompt(name: str, tmp_path: Path) -> None:
    model = grit_model(name)
    answer, logits, tokens = asked(model, tmp_path / "kb", 3, reuse="off")
    texts = [hit.text for hit in answer.sources][::-1]
    first, *later = (one.ids.tolist() for one in model.tokens.to_embed(texts, "passage", None, CONTEXT, truncate=False))
    ids = [*first, *(i for document in later for i in document[1:]), *model.tokens.question_prompt(QUESTION), *tokens]
    assert answer.usage.prompt_tokens == len(ids) - len(tokens)
    with torch.inference_mode():
        expected = language_model(name)(torch.tensor([ids]), use_cache=False).logits[0, -len(tokens) - 1 : -1]
    assert worst(logits, expected) < TOLERANCE


def test_documents_in_another_order_are_another_prompt() -> None:
    """The references above would not see a wrong order if order did not matter."""
    model = grit_model("llama")
    documents, question = read(model, 3), model.tokens.question_prompt(QUESTION)
    one, other = (
        reference_logits("llama", reference_row(order, "no-bos", question), "exclusive")[-1:]
        for order in (documents, documents[::-1])
    )
    assert worst(one, other) > 100 * TOLERANCE
