"""Invariants 1 to 3 on every architecture, and the gradients of what training packs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from gritkit.batch import Reading, pack, pack_readings
from gritkit.config import EmbeddingConfig, Pooling
from gritkit.embedding import batch_plan, embed_sequences
from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.model import GritModel
from gritkit.plan import Plan, Segment
from gritkit.tokens import TokenSeq, sequence
from tests import padded
from tests.models import (
    ARCHITECTURES,
    MOVABLE,
    TEXTS,
    VOCABULARY,
    WINDOW,
    WINDOWED,
    grit_model,
    language_model,
    shared_model,
    tokenizer,
)

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
MODES = [("causal", "exclusive"), ("bidirectional", "exclusive")]
MODES_OF_WINDOWS = [("bidirectional", "inclusive"), ("bidirectional", "full")]
CASES = [(name, *mode) for name in ARCHITECTURES for mode in MODES]
CASES += [(name, *mode) for name in WINDOWED for mode in MODES_OF_WINDOWS]

# Relative to unit vectors. fp32: sums in another order. bf16: the same roundings (2^-8) in other kernels, three layers.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def settings_of(mode: str, rule: str, pooling: Pooling = "mean") -> EmbeddingConfig:
    return EmbeddingConfig(embedding_attention=mode, embedding_window=rule, pooling=pooling)  # type: ignore[arg-type]


def sequences_of(model: GritModel, instruction: str | None = "find this") -> list[TokenSeq]:
    return model.tokens.to_embed(TEXTS, "query", instruction, 512, truncate=False)


# -- 1: packed = padded = alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode", "rule"), CASES)
def test_packed_is_padded_is_alone(name: str, mode: str, rule: str) -> None:
    model, plain = shared_model(name), language_model(name)
    sequences = sequences_of(model)
    with torch.no_grad():
        states = padded.hidden_states(plain, [s.ids.tolist() for s in sequences], mode == "causal", rule)
    for pooling in POOLINGS:
        expected = torch.stack(
            [padded.pooled(x, s.pool_mask.tolist(), pooling) for x, s in zip(states, sequences, strict=True)]
        )
        for budget in {"mean": (1, 10_000), "last": (10_000,)}.get(pooling, (40,)):
            vectors = embed_sequences(model._backbone, sequences, settings_of(mode, rule, pooling), budget=budget)
            torch.testing.assert_close(vectors, expected, atol=TOLERANCE[torch.float32], rtol=0)


# Not Mixtral: its router may choose other experts after a rounding, which no tolerance covers.
@pytest.mark.parametrize(("name", "mode"), [("llama", "bidirectional"), ("gemma3", "causal"), ("gpt_neox", "causal")])
def test_packed_is_padded_is_alone_in_bf16(name: str, mode: str) -> None:
    model = grit_model(name, dtype=torch.bfloat16)
    plain = language_model(name, dtype=torch.bfloat16)
    sequences = sequences_of(model)
    with torch.no_grad():
        states = padded.hidden_states(plain, [s.ids.tolist() for s in sequences], mode == "causal", "exclusive")
    for pooling in POOLINGS:
        expected = torch.stack(
            [padded.pooled(x, s.pool_mask.tolist(), pooling) for x, s in zip(states, sequences, strict=True)]
        )
        for budget in (1, 10_000):
            vectors = embed_sequences(
                model._backbone, sequences, settings_of(mode, "exclusive", pooling), budget=budget
            )
            assert vectors.dtype == torch.float32
            torch.testing.assert_close(vectors, expected, atol=TOLERANCE[torch.bfloat16], rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=12), st.integers(1, 60))
def test_batch_mates_do_not_matter(mates: list[str], budget: int) -> None:
    model = shared_model("mistral_window")
    sequences = model.tokens.to_embed([TEXTS[0], *mates], "passage", None, 512, truncate=False)
    config = EmbeddingConfig()
    together = embed_sequences(model._backbone, sequences, config, budget=budget)
    for index in (0, len(mates)):
        alone = embed_sequences(model._backbone, [sequences[index]], config, budget=budget)[0]
        torch.testing.assert_close(together[index], alone, atol=TOLERANCE[torch.float32], rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generated_together_is_generated_alone(name: str) -> None:
    model = shared_model(name)
    together = model.complete_batch(list(TEXTS), max_new_tokens=5)
    for text, completion in zip(TEXTS, together, strict=True):
        assert completion.token_ids == model.complete(text, max_new_tokens=5).token_ids


# -- 2: who changes whom -----------------------------------------------------------------------------------------------

LENGTHS = (20, 3, 16)


@pytest.mark.parametrize(("name", "mode", "rule"), [*CASES, *(("all_sliding", *m) for m in MODES + MODES_OF_WINDOWS)])
def test_a_token_changes_exactly_what_may_see_it(name: str, mode: str, rule: str) -> None:
    """Changed by token j are the states that reach j through the layers' windows, one hop a layer, and no others.

    So: the future changes the past in embedding mode and never in generation mode; nothing crosses texts or windows.
    """
    if name == "all_sliding":
        sliding = ["sliding_attention"] * 3
        model = GritModel.from_parts(language_model("gemma3", layer_types=sliding), tokenizer())
    else:
        model = shared_model(name)
    config, causal = model._backbone.config, mode == "causal"
    kinds = config.layer_types if name in ("gemma3", "all_sliding") else [None] * model._backbone.num_layers
    total = sum(LENGTHS)
    reach = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for length in LENGTHS:
        end = start + length
        hops = torch.eye(length)
        for kind in kinds:
            window = WINDOW if kind == "sliding_attention" or name == "mistral_window" else None
            hops = (padded.seen_by(length, causal, window, rule).float() @ hops > 0).float()
        reach[start:end, start:end] = hops.bool()
        start = end

    ids = torch.randint(3, VOCABULARY, (total,), generator=torch.Generator().manual_seed(3))
    positions = torch.cat([torch.arange(n) for n in LENGTHS])

    @torch.no_grad()
    def states(row: Tensor) -> Tensor:
        plan = Plan.of(LENGTHS, causal=causal, window_rule=rule)  # type: ignore[arg-type]
        return model._backbone.hidden(row, positions, plan)

    before = states(ids)
    for changed_at in (0, 7, 12, 19, 21, 30, 38):
        changed = ids.clone()
        changed[changed_at] = 3 + (int(ids[changed_at]) - 3 + 50) % (VOCABULARY - 3)
        difference = (states(changed) - before).abs().amax(1)
        # What hides a token is an exact zero in the softmax, so the rest stays as it was to the last bit; but experts
        # multiply the tokens of all texts together, in another order when one of them is routed elsewhere.
        assert (difference > (1e-5 if name == "mixtral" else 0)).tolist() == reach[:, changed_at].tolist(), (
            f"token {changed_at}"
        )


# -- 3: threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_many_threads_embed_and_generate_on_one_model(name: str) -> None:
    model = grit_model(name)
    texts = [f"{text} {number}" for number in range(3) for text in TEXTS]
    vectors, documents = model.read(texts)
    keys = documents[2].keys[1]
    answers = [c.token_ids for c in model.complete_batch(list(TEXTS), max_new_tokens=6)]
    ids = torch.tensor([model.tokens.raw_prompt(TEXTS[0])])
    with torch.no_grad():
        logits = model.lm(input_ids=ids).logits
    start, wrong = threading.Barrier(8), []

    def embeds() -> bool:
        return np.allclose(model.embed(texts), vectors, atol=1e-5)

    def reads() -> bool:
        again, read = model.read(texts[:6])
        return np.allclose(again, vectors[:6], atol=1e-5) and torch.allclose(read[2].keys[1], keys, atol=1e-5)

    def generates() -> bool:
        return [c.token_ids for c in model.complete_batch(list(TEXTS), max_new_tokens=6)] == answers

    def plain_forward() -> bool:
        with torch.no_grad():
            return torch.allclose(model.lm(input_ids=ids).logits, logits, atol=1e-5)

    def work(tasks: list[Callable[[], bool]], seed: int) -> None:
        order = random.Random(seed)
        start.wait()
        for _ in range(4):
            task = order.choice(tasks)
            try:
                right = task()
            except Exception as error:
                wrong.append(f"{task.__name__}: {error!r}")
            else:
                if not right:
                    wrong.append(task.__name__)

    kinds = [[embeds], [generates], [reads], [embeds, generates, reads, plain_forward]]
    threads = [threading.Thread(target=work, args=(kinds[i % 4], i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- gradients ---------------------------------------------------------------------------------------------------------

EXACT = {"atol": 1e-12, "rtol": 1e-10}
PEFT_ASKS_BY_THE_OLD_NAME = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def in_double(name: str, **changes: Any) -> PreTrainedModel:
    """A model that is float64 throughout; the norms of transformers drop to fp32 on the way."""
    lm = language_model(name, dtype=torch.float64, **changes)
    for module in lm.modules():
        if type(module).__name__.endswith("RMSNorm"):
            plus = 1.0 if "Gemma" in type(module).__name__ else 0.0
            eps = getattr(module, "variance_epsilon", None) or module.eps

            def norm(x: Tensor, weight: Tensor = module.weight, plus: float = plus, eps: float = eps) -> Tensor:
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (weight + plus)

            module.forward = norm
    return lm


def gradients(model: GritModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def examples(count: int = 4) -> list[TokenSeq]:
    generator = np.random.default_rng(0)
    result = []
    for length in [9, 5, 5, 12][:count]:
        masks = generator.random((2, length)) < 0.6
        masks[0, -1], masks[1, 0] = True, False
        result.append(sequence(generator.integers(3, VOCABULARY, length), pool=masks[0], loss=masks[1]))
    return result


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "name", ["llama", "mistral_window", "gemma3", "gpt_neox", "gpt2", "llama+lora", "gpt_neox+lora"]
)
def test_gradients_of_a_packed_row_are_those_of_its_sequences(name: str, checkpointing: bool) -> None:
    name, _, lora = name.partition("+")
    # gpt2 comes with dropout, whose masks differ between a row and its parts
    changes = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if name == "gpt2" else {}
    lm: Any = in_double(name, **changes)
    if lora:
        torch.manual_seed(0)
        lm = get_peft_model(lm, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).double()
    model = GritModel.from_parts(lm, tokenizer()).train()
    sequences = examples()
    weights = torch.randn(len(sequences), model.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(rows: list[list[int]]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            batch = pack([sequences[i] for i in row])
            total = total + (model("embed", batch) * weights[row]).sum() + model("next_token", batch)
        return total

    expected_loss = loss([[0], [1], [2], [3]])
    expected = gradients(model, expected_loss)
    if checkpointing:
        model.gradient_checkpointing_enable()
    packed_loss = loss([[0, 1, 2, 3]])
    assert packed_loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    found = gradients(model, packed_loss)
    assert set(found) == set(expected)
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3"])
def test_gradients_through_an_answer_that_reads_documents(name: str, checkpointing: bool) -> None:
    """Documents pooled, an answer that reads them, one row; against one explicit mask in the plain model."""
    ids = torch.randint(3, VOCABULARY, (27,), generator=torch.Generator().manual_seed(2))
    lengths = (9, 11, 7)
    segments = (Segment(0, 9, False), Segment(9, 20, False), Segment(20, 27, True, reads=((0, 9), (9, 20))))

    def loss(hidden: Tensor, head: torch.nn.Module) -> Tensor:
        vectors = [torch.nn.functional.normalize(x.mean(0), dim=0) for x in hidden.split(lengths)[:2]]
        return vectors[0] @ vectors[1] + torch.nn.functional.cross_entropy(head(hidden[20:26]), ids[21:])

    plain = in_double(name, attention="sdpa")  # eager attention takes its softmax in fp32
    masks = []
    for window in (None, getattr(plain.config, "sliding_window", None)):
        seen = torch.zeros(27, 27, dtype=torch.bool)
        seen[:9, :9], seen[9:20, 9:20] = (padded.seen_by(n, False, window, "exclusive") for n in (9, 11))
        seen[20:] = padded.seen_by(27, True, window, "exclusive")[20:]
        masks.append(padded.additive(seen[None, None], torch.float64))
    hidden = plain.get_decoder()(
        input_ids=ids[None],
        attention_mask=padded.by_layer_type(plain, *masks),
        position_ids=torch.arange(27)[None],
        use_cache=False,
    ).last_hidden_state[0]
    expected_loss = loss(hidden, plain.lm_head)
    expected_loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}

    model = GritModel.from_parts(in_double(name), tokenizer()).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    found_loss = loss(model._backbone.hidden(ids, torch.arange(27), Plan(segments)), model.lm.lm_head)
    assert found_loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    found = {name.removeprefix("lm."): gradient for name, gradient in gradients(model, found_loss).items()}
    torch.testing.assert_close(found, expected, **EXACT)


def test_reentrant_checkpointing_is_refused() -> None:
    model = grit_model()
    with pytest.raises(InputError, match="use_reentrant=False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.gradient_checkpointing_disable()


@PEFT_ASKS_BY_THE_OLD_NAME
def test_embedding_while_set_up_for_training_with_an_adapter() -> None:
    """Checkpointing and adapters stay on between training steps, when an evaluation embeds."""
    lm = get_peft_model(language_model("llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model = GritModel.from_parts(lm, tokenizer())
    expected = model.embed(list(TEXTS))
    model.train().gradient_checkpointing_enable()
    np.testing.assert_allclose(model.embed(list(TEXTS)), expected, atol=1e-6)


def test_a_row_without_targets_has_no_loss() -> None:
    model = grit_model("qwen3").train()
    loss = model("next_token", pack([sequence([5, 6, 7], pool=True)]))
    assert loss.item() == 0.0
    loss.backward()


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="'both' is none of"):
        shared_model()("both", pack(examples(1)))


@pytest.mark.parametrize("name", MOVABLE)
def test_answers_are_trained_on_exactly_what_serving_reads(name: str) -> None:
    """What a model writes greedily from cached documents is the likeliest token everywhere in the row of training."""
    model = shared_model(name)
    texts = [*TEXTS[:3]]
    _, caches = model.read(texts)
    question = model.tokens.question_prompt("what is read?")
    params = SamplingParams(max_new_tokens=6, temperature=0.0)
    written = model.generate([Request(question, params, caches)])[0].token_ids
    documents = model.tokens.to_embed(texts, "passage", None, 64, truncate=False)
    answer = sequence([*question, *written], loss=[False] * len(question) + [True] * len(written))
    row = pack_readings([Reading(documents, answer)], len(model.tokens.bos_ids))
    places = row.loss_mask_T.nonzero()[:, 0]
    with torch.no_grad():
        plan = batch_plan(row, model.embedding_config)
        logits = model._backbone.logits(row.ids_T, row.positions_T, plan, places - 1)
        vectors, nll = model("read", row)
    assert logits.argmax(-1).tolist() == list(written)
    expected = -logits.double().log_softmax(-1)[torch.arange(len(places)), row.ids_T[places]].sum()
    torch.testing.assert_close(nll.double(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(vectors.numpy(), model.embed(texts), atol=1e-5)
