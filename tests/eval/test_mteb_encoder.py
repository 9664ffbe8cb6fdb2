from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from gritkit.errors import InputError
from gritkit_eval.mteb.encoder import GritEncoder
from tests.models import grit_model, shared_model

mteb = pytest.importorskip("mteb")


def metadata(kind: Any, name: str = "Some", prompt: Any = None) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name, type=kind, description="", main_score="x", eval_langs=["eng-Latn"], prompt=prompt,
        dataset={"path": "none", "revision": "1"},
    )  # fmt: skip


def encode(encoder: GritEncoder, texts: list[str], kind: str, side: str | None = None, prompt: Any = None) -> Any:
    loader = [{"text": texts[start : start + 2]} for start in range(0, len(texts), 2)]
    return encoder.encode(
        loader, task_metadata=metadata(kind, prompt=prompt), hf_split="test", hf_subset="default", prompt_type=side
    )


def test_it_is_an_encoder_to_mteb_and_neither_a_search_nor_a_cross_encoder() -> None:
    from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

    model = shared_model()
    encoder = GritEncoder(model, name="tiny", dim=8, max_length=100)
    assert isinstance(encoder, EncoderProtocol)
    assert not isinstance(encoder, SearchProtocol | CrossEncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision) == ("gritkit/tiny", model.fingerprint[:40])
    assert (meta.embed_dim, meta.max_tokens, meta.use_instructions) == (8, 100, True)
    assert meta.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert meta.experiment_name is not None
    assert GritEncoder(model, name="me/tiny").mteb_model_meta.name == "me/tiny"
    assert GritEncoder(model, name="tiny").mteb_model_meta.experiment_name is None
    assert meta.to_dict()["similarity_fn_name"] == "cosine"


@pytest.mark.parametrize(
    ("kind", "side", "role", "instructed"),
    [
        ("Retrieval", "query", "query", True),
        ("Retrieval", "document", "passage", False),
        ("InstructionRetrieval", "document", "passage", False),
        ("Reranking", "query", "query", True),
        ("Reranking", "document", "passage", True),
        ("STS", None, "query", True),
        ("Classification", None, "query", True),
        ("Clustering", None, "query", True),
        ("PairClassification", None, "query", True),
        ("PairClassification", "document", "query", True),
        ("BitextMining", None, "query", True),
        ("Summarization", None, "query", True),
    ],
)
@pytest.mark.parametrize("form", ["grit", "e5", "instruct-query"])
def test_texts_are_embedded_in_the_role_and_with_the_instruction_of_their_side(
    form: str, kind: str, side: str | None, role: Any, instructed: bool
) -> None:
    model = grit_model(prompt_format=form)
    texts = ["the quick fox", "a", "the quick fox", "many times"]
    placed = {"grit": True, "e5": False, "instruct-query": role == "query"}[form]
    expected = model.embed(texts, role=role, instruction="Look closely" if instructed and placed else None)
    found = encode(GritEncoder(model, name="m"), texts, kind, side, prompt="Look closely")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_it_cuts_vectors_and_texts_and_says_so_in_its_settings() -> None:
    model = shared_model()
    encoder = GritEncoder(model, name="m", dim=8, layers=2, max_length=40)
    long = "documents are read once " * 30
    found = encode(encoder, [long, "a"], "STS", prompt="Look")
    expected = model.embed([long, "a"], role="query", instruction="Look", dim=8, layers=2, max_length=40, truncate=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert encoder.settings(metadata("STS", prompt="Look")) == {
        "dim": 8, "layers": 2, "max_length": 40, "instruction": {"query": "Look", "passage": "Look"},
    }  # fmt: skip
    assert "layers" not in GritEncoder(model, name="m").settings(metadata("STS"))  # as before there was a choice


def test_a_text_without_words_is_near_nothing() -> None:
    encoder = GritEncoder(shared_model(), name="m")
    found = encode(encoder, ["", "a", " \n"], "STS")
    assert not found[0].any()
    assert not found[2].any()
    assert encoder.similarity(found, found)[0].tolist() == [0, 0, 0]


def test_similarities_are_cosines() -> None:
    encoder = GritEncoder(shared_model(), name="m")
    one, other = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    norms = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    np.testing.assert_allclose(encoder.similarity(one, other), one @ other.T / norms, atol=1e-6)
    np.testing.assert_allclose(
        encoder.similarity_pairwise(one, torch.tensor(other)), np.diag(one @ other.T / norms), atol=1e-6
    )
    assert float(encoder.similarity(one[0], one[0])) == pytest.approx(1)


@pytest.mark.parametrize(
    "given", [{"dim": 0}, {"dim": 33}, {"layers": 0}, {"layers": 4}, {"max_length": 0}, {"max_length": 10_000}]
)
def test_sizes_that_the_model_does_not_have_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(given))}={next(iter(given.values()))}"):
        GritEncoder(shared_model(), name="m", **given)  # type: ignore[arg-type]


def test_mtebs_own_mock_tasks_of_every_type_of_text_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mocks' own: constant inputs, classes of one member
        from mteb.mocks import MOCK_TASK_TEST_GRID

        result = mteb.evaluate(
            GritEncoder(grit_model(), name="m"), MOCK_TASK_TEST_GRID, cache=None, co2_tracker=False,
            show_progress_bar=False,
        )  # fmt: skip
    assert not result.exceptions
    kinds = {task.metadata.name: task.metadata.type for task in MOCK_TASK_TEST_GRID}
    assert {kinds[one.task_name] for one in result.task_results} == {
        "BitextMining", "Classification", "Clustering", "InstructionReranking", "InstructionRetrieval",
        "MultilabelClassification", "PairClassification", "Regression", "Reranking", "Retrieval", "STS",
        "Summarization", "ZeroShotClassification",
    }  # fmt: skip
    assert {one.task_name for one in result.task_results} == set(kinds)
