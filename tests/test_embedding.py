from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from hypothesis import given, settings
from hypothesis import strategies as st

from gritkit.backbone import first_layers
from gritkit.config import EmbeddingConfig
from gritkit.embedding import embed_sequences
from gritkit.errors import InputError, UnsupportedModelError
from gritkit.tokens import sequence
from tests.models import ARCHITECTURES, CONTEXT, TEXTS, WINDOW, grit_model, language_model, shared_model
from tests.padded import additive, pooled, seen_by


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=15), st.integers(1, 64))
def test_the_order_is_restored_and_rows_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    model = shared_model()
    sequences = [sequence([3 + i, *[7] * (n - 1)], pool=True) for i, n in enumerate(lengths)]
    done: list[int] = []
    rows: list[int] = []
    handle = model.lm.get_decoder().register_forward_hook(lambda _m, _a, out: rows.append(out[0].shape[1]))
    config = EmbeddingConfig(pooling="cls", embedding_attention="causal")
    vectors = embed_sequences(model._backbone, sequences, config, budget=budget, progress=done.append)
    handle.remove()
    assert all(row <= max(budget, *lengths) for row in rows)
    assert sum(rows) == sum(lengths)
    assert sum(done) == len(lengths)
    # the first token alone decides a causal cls vector
    firsts = [sequence([3 + i], pool=True) for i in range(len(lengths))]
    expected = torch.cat([embed_sequences(model._backbone, [x], config, budget=1) for x in firsts])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


def test_vectors_are_float32_and_of_length_one() -> None:
    vectors = shared_model().embed(list(TEXTS))
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_a_single_text_gives_a_single_vector() -> None:
    model = shared_model()
    assert model.embed(TEXTS[0]).shape == (32,)
    np.testing.assert_allclose(model.embed(TEXTS[0]), model.embed([TEXTS[0]])[0], atol=1e-6)


def test_a_generator_and_an_empty_list() -> None:
    model = shared_model()
    np.testing.assert_allclose(model.embed(text for text in TEXTS), model.embed(list(TEXTS)), atol=1e-6)
    assert model.embed([]).shape == (0, 32)
    assert model.embed(iter(()), dim=8).shape == (0, 8)
    vectors, documents = model.read([])
    assert (vectors.shape, documents) == ((0, 32), [])


def test_cut_vectors_are_normalised_again() -> None:
    model = shared_model()
    full, cut = model.embed(list(TEXTS)), model.embed(list(TEXTS), dim=8)
    np.testing.assert_allclose(cut, full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True), atol=1e-6)
    for dim in (0, -1, 33):
        with pytest.raises(InputError, match=f"dim={dim} must be between 1 and 32"):
            model.embed("x", dim=dim)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", ""], "text 1 is empty"),
        ([" \n\t"], "text 0 is empty"),
        (["fine", "lone \ud800 surrogate"], "text 1 has a lone surrogate at character 5"),
        (["fine", b"bytes"], "text 1 is bytes"),
        (["fine", None], "text 1 is NoneType"),
        ([["nested"]], "text 0 is list"),
        (b"bytes", "not bytes"),
        (None, "not NoneType"),
        ({"a": 1}, "not dict"),
        (7, "not int"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_its_index(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shared_model().embed(texts)


def test_a_megabyte_of_text_is_refused_or_cut() -> None:
    model, text = shared_model(), "word " * 200_000
    with pytest.raises(InputError, match=r"text 1 is more than 512 tokens long and max_length is 512: .*truncate=True"):
        model.embed(["fine", text])
    vectors = model.embed(["fine", text], truncate=True)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[1], model.embed(text[:5000], truncate=True), atol=1e-5)


def test_max_length_has_bounds() -> None:
    model = shared_model()
    for limit in (0, CONTEXT + 1):
        with pytest.raises(InputError, match=f"max_length={limit} must be between 1 and the context of {CONTEXT}"):
            model.embed("x", max_length=limit)
    with pytest.raises(InputError, match=r"text 0 is .* tokens long and max_length is 3"):
        model.embed(TEXTS[1], max_length=3)
    assert model.embed(TEXTS[1], max_length=3, truncate=True).shape == (32,)
    with pytest.raises(InputError, match="no token left"):
        model.embed("x", max_length=1, truncate=True)


def test_the_index_in_an_error_counts_over_chunks() -> None:
    taken = []

    def texts() -> Iterator[str]:
        for number in range(5000):
            taken.append(number)
            yield "" if number == 4100 else "a"

    with pytest.raises(InputError, match="text 4100 is empty"):
        shared_model().embed(texts())
    assert len(taken) == 5000


def test_ten_thousand_short_texts_are_quick_and_keep_their_order() -> None:
    model = shared_model()
    texts = [f"text {number % 97}" for number in range(10_000)]
    begin = time.process_time()
    vectors = model.embed(texts)
    assert time.process_time() - begin < 60  # a second or two; a pass a text would take minutes
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[97:194], vectors[:97], atol=1e-5)
    np.testing.assert_allclose(vectors[:97], model.embed(texts[:97]), atol=1e-5)


def test_odd_texts_give_finite_vectors() -> None:
    texts = ["\x00", "\u200b", "</s>", "<s>", "🦊" * 20, "e\u0301", "\u202e", "a" * 300]
    assert np.isfinite(grit_model("mistral_window").embed(texts)).all()


def test_instructions_are_left_out_of_the_mean() -> None:
    model = grit_model("llama", prompt_format="grit", embedding_attention="causal")
    instructed = model.embed(TEXTS[0], role="query", instruction="find it")
    ids = model.tokens.to_embed([TEXTS[0]], "query", "find it", 512, truncate=False)[0]
    with torch.no_grad():
        hidden = model.lm.get_decoder()(input_ids=torch.from_numpy(ids.ids)[None]).last_hidden_state[0]
    mean = hidden[-len(model.tokens.encode(TEXTS[0])) :].mean(0)
    np.testing.assert_allclose(instructed, (mean / mean.norm()).numpy(), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"embedding_attention": "bidirectional"}),
        ("llama", {"embedding_attention": "causal"}),
        ("mistral_window", {"embedding_attention": "bidirectional", "embedding_window": "exclusive"}),
        ("mistral_window", {"embedding_attention": "causal"}),
        ("qwen3", {"embedding_attention": "bidirectional"}),
    ],
)
def test_first_layers_are_what_transformers_has_there_under_the_final_norm(
    name: str, changes: dict[str, Any], pooling: str
) -> None:
    """The state after layer k of plain transformers, alone and unpacked, normed and pooled by hand."""
    model = grit_model(name, prompt_format="grit", pooling=pooling, **changes)
    plain = language_model(name)
    num_layers, window = plain.config.num_hidden_layers, WINDOW if name == "mistral_window" else None
    sequences = model.tokens.to_embed(list(TEXTS), "passage", None, CONTEXT, truncate=False)
    wanted = np.zeros((num_layers, len(TEXTS), model.dim))
    for row, text in enumerate(sequences):
        seen = seen_by(len(text), changes["embedding_attention"] == "causal", window, "exclusive")
        with torch.no_grad():
            out = plain.get_decoder()(
                input_ids=torch.from_numpy(text.ids)[None], attention_mask=additive(seen[None, None], torch.float32),
                output_hidden_states=True, use_cache=False,
            )  # fmt: skip
            for layers in range(1, num_layers + 1):
                state = out.hidden_states[layers][0]
                if layers < num_layers:  # transformers norms the last one itself
                    state = plain.get_decoder().norm(state)
                wanted[layers - 1, row] = pooled(state, text.pool_mask.tolist(), pooling).numpy()
    for layers in range(1, num_layers + 1):
        np.testing.assert_allclose(model.embed(list(TEXTS), layers=layers), wanted[layers - 1], atol=1e-6)
    assert np.abs(wanted[0] - wanted[-1]).max() > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_layers_are_the_whole_model_and_fewer_are_fewer(name: str) -> None:
    model = grit_model(name)
    whole = model.embed(list(TEXTS))
    assert np.array_equal(model.embed(list(TEXTS), layers=3), whole)
    ran: list[int] = []
    for module in model.modules():
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention"):
            module.register_forward_hook(lambda at, *_: ran.append(at.layer_idx))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for layers in (1, 2):
        ran.clear()
        cut = model.embed(list(TEXTS), layers=layers)
        assert ran == list(range(layers))
        assert np.abs(cut - whole).max() > 1e-2
        assert np.array_equal(
            model.embed(TEXTS[0], layers=layers, dim=8), model.embed([TEXTS[0]], layers=layers, dim=8)[0]
        )
    assert np.array_equal(model.embed(list(TEXTS)), whole)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_layers_that_are_not_there_are_refused() -> None:
    model = shared_model()
    sequences = model.tokens.to_embed(["x"], "passage", None, CONTEXT, truncate=False)
    for layers in (0, -1, 4):
        for call in (lambda n: model.embed([], layers=n), lambda n: model.embed_tokens(sequences, layers=n)):
            with pytest.raises(InputError, match=f"layers={layers} must be between 1 and 3"):
                call(layers)
    with pytest.raises(UnsupportedModelError, match="LlamaModel has no one list of 7 layers"):
        first_layers(model.lm.get_decoder(), 7, 1)


def test_threads_read_different_layers_of_one_model() -> None:
    model = grit_model("mistral_window")
    depths: list[int | None] = [1, 2, 3, None]
    wanted = {depth: model.embed(list(TEXTS), layers=depth) for depth in depths}
    wrong: list[int | None] = []
    start = threading.Barrier(len(depths))

    def work(depth: int | None) -> None:
        start.wait(60)
        for _ in range(30):
            if not np.allclose(model.embed(list(TEXTS), layers=depth), wanted[depth], atol=1e-6):
                wrong.append(depth)

    threads = [threading.Thread(target=work, args=(depth,)) for depth in depths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_first_layers_under_accelerates_hooks() -> None:
    """``device_map`` gives modules a forward of their own, which runs all that they had when it was made."""
    model = grit_model("llama")
    wanted = model.embed(list(TEXTS), layers=1)
    for module in model.lm.get_decoder().modules():
        add_hook_to_module(module, ModelHook())
    assert np.array_equal(model.embed(list(TEXTS), layers=1), wanted)
