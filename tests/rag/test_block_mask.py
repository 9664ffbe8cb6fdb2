"""A cached answer is the same tokens run without any cache, under the mask that says who saw whom.

The reference is one forward of plain transformers, eager attention, over every token that was ever seen: the documents
as they were read (also the beginning-of-text of the later ones, which only their own block saw), the question, and the
answer so far. Tolerance: 1e-5 of the norm of the logits, fp32; the largest seen is 6e-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gritkit.generation.sampling import Sampler
from gritkit.model import GritModel
from gritkit.rag import Answer, Rag
from tests.models import MOVABLE, WINDOW, WINDOWED, grit_model, language_model

TOLERANCE = 1e-5
STEPS = 8
TEXTS = ("a fox jumps over the lazy dog", "documents are read once", "café 🦊 seen from 東京, twice")
QUESTION = "what is read?"


def reference_row(documents: Sequence[Sequence[int]], num_bos: int, tail: Sequence[int]) -> tuple[Tensor, Tensor, list]:
    """(ids, positions, block number of each token) of all documents and the tail; -1 is the tail.

    A later document stands so that its first token after the beginning follows what was joined before it, hence its
    beginning shares a position with the end of the document before.
    """
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[tuple[int, bool]] = []  # (block, joined)
    end = 0
    for number, document in enumerate(documents):
        left_out = num_bos if number else 0
        start = end - left_out
        ids += document
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
    """True where a query may see a key, one pair at a time."""
    place, size = positions.tolist(), len(blocks)
    reach = {"exclusive": (window or size) - 1, "inclusive": window or size, "full": size}[rule] if window else size
    seen = torch.zeros(size, size, dtype=torch.bool)
    for q, (query_block, _) in enumerate(blocks):
        for k, (key_block, joined) in enumerate(blocks):
            distance = place[q] - place[k]
            if query_block == -1:  # question and answer: causal over what was joined, in (q - window, q]
                seen[q, k] = joined and 0 <= distance < (window or size)
            elif query_block == key_block:
                seen[q, k] = 0 <= distance < (window or size) if causal_blocks else abs(distance) <= reach
    return seen


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


def asked(model: GritModel, folder: Path, count: int, **options: Any) -> tuple[Answer, Tensor, list[int]]:
    """(answer, its logits [steps, V], its tokens) from a knowledge base of ``count`` documents."""
    logits: list[Tensor] = []
    tokens: list[int] = []
    pick = Sampler.pick

    def tap(self: Sampler, logits_V: Tensor) -> int:
        logits.append(logits_V.clone())
        tokens.append(pick(self, logits_V))
        return tokens[-1]

    with Rag.open(folder, model) as rag, pytest.MonkeyPatch.context() as patch:
        rag.add(TEXTS[:count])
        patch.setattr(Sampler, "pick", tap)
        answer = rag.ask(QUESTION, top_k=count, max_new_tokens=STEPS, **options)
    return answer, torch.stack(logits), tokens


def joined_tokens(model: GritModel, answer: Answer) -> list[list[int]]:
    """The documents as they were read, in the order of the prompt: the best last."""
    texts = [hit.text for hit in answer.sources][::-1]
    return [one.ids.tolist() for one in model.tokens.to_embed(texts, "passage", None, 512, truncate=False)]


def worst(got: Tensor, expected: Tensor) -> float:
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def check(name: str, folder: Path, count: int, **config: Any) -> float:
    model = grit_model(name, **config)
    answer, logits, tokens = asked(model, folder, count)
    assert answer.reuse == "cached"
    assert len(answer.sources) == count
    assert len(tokens) >= 2
    documents = joined_tokens(model, answer)
    question = model.tokens.question_prompt(QUESTION)
    num_bos = len(model.tokens.bos_ids)
    assert num_bos == 1
    row = reference_row(documents, num_bos, [*question, *tokens])
    causal = config.get("embedding_attention") == "causal"
    reference = reference_logits(name, row, config.get("embedding_window", "exclusive"), causal_blocks=causal)
    expected = reference[-len(tokens) - 1 : -1]
    assert expected.argmax(-1).tolist() == tokens
    assert worst(logits, expected) < TOLERANCE
    assert answer.usage.cached_tokens == sum(map(len, documents)) - num_bos * (count - 1)
    assert answer.usage.prompt_tokens - answer.usage.cached_tokens == len(question)
    return worst(logits, expected)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", MOVABLE)
def test_cached_answer_equals_the_block_mask(name: str, count: int, tmp_path: Path) -> None:
    check(name, tmp_path / "kb", count)


@pytest.mark.parametrize("rule", ["exclusive", "inclusive", "full"])
@pytest.mark.parametrize("name", WINDOWED)
def test_the_windows_of_documents_follow_the_rule_of_the_checkpoint(name: str, rule: str, tmp_path: Path) -> None:
    check(name, tmp_path / "kb", 2, embedding_window=rule)


@pytest.mark.parametrize("name", ["llama", "mistral_window"])
def test_causal_documents_are_blocks_too(name: str, tmp_path: Path) -> None:
    check(name, tmp_path / "kb", 2, embedding_attention="causal")


def test_one_causal_document_is_the_whole_prompt(tmp_path: Path) -> None:
    model = grit_model("llama", embedding_attention="causal")
    cached, cached_logits, tokens = asked(model, tmp_path / "kb", 1)
    plain, plain_logits, same_tokens = asked(model, tmp_path / "kb", 1, reuse="off")
    assert (cached.reuse, plain.reuse) == ("cached", "off")
    assert tokens == same_tokens
    assert worst(cached_logits, plain_logits) < TOLERANCE
    assert plain.usage.cached_tokens == 0
    assert plain.usage.prompt_tokens == cached.usage.prompt_tokens


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gpt2"])
def test_reuse_off_is_one_plain_prompt(name: str, tmp_path: Path) -> None:
    model = grit_model(name)
    answer, logits, tokens = asked(model, tmp_path / "kb", 3, reuse="off")
    first, *later = joined_tokens(model, answer)
    ids = [*first, *(i for document in later for i in document[1:]), *model.tokens.question_prompt(QUESTION), *tokens]
    assert answer.usage.prompt_tokens == len(ids) - len(tokens)
    with torch.inference_mode():
        expected = language_model(name)(torch.tensor([ids]), use_cache=False).logits[0, -len(tokens) - 1 : -1]
    assert worst(logits, expected) < TOLERANCE


def test_documents_in_another_order_are_another_prompt(tmp_path: Path) -> None:
    """The reference above would not see a wrong order if order did not matter."""
    model = grit_model("llama")
    documents = joined_tokens(model, asked(model, tmp_path / "kb", 3)[0])
    question = model.tokens.question_prompt(QUESTION)
    rows = [reference_row(order, 1, question) for order in (documents, documents[::-1])]
    one, other = (reference_logits("llama", row, "exclusive")[-1:] for row in rows)
    assert worst(one, other) > 100 * TOLERANCE
