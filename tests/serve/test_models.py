from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from gritkit.model import GritModel
from tests.models import TEXTS, grit_model, language_model, tokenizer
from tests.serve.serving import Running, serving
from tests.serve.talking import post, refused

USER = [{"role": "user", "content": TEXTS[0]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model a lot."""
    folder = tmp_path_factory.mktemp("adapters") / "pirate"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(language_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Iterator[Running]:
    model = grit_model("llama", prompt_format="grit", max_length=64, matryoshka_dims=(8, 16))
    with serving(model, model_name="org/base", adapters={"pirate": folder}) as running:
        yield running


@pytest.fixture(scope="module")
def client(adapted: Running) -> Iterator[httpx.Client]:
    with adapted.client() as client:
        yield client


@pytest.fixture(scope="module")
def merged(adapted: Running, folder: Path) -> GritModel:
    """The adapter in the weights: what the server's answers under its name must equal."""
    lm = PeftModel.from_pretrained(language_model("llama"), str(folder)).merge_and_unload()
    return GritModel.from_parts(lm, tokenizer(), adapted.service.model.embedding_config)


def test_models_are_the_base_and_its_adapters(client: httpx.Client, adapted: Running) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(one["id"], one["parent"]) for one in listed["data"]] == [("org/base", None), ("pirate", "org/base")]
    base = listed["data"][0]
    assert (base["object"], base["owned_by"]) == ("model", "gritkit")
    assert base["created"] == int(adapted.service.started)
    assert base["gritkit"] == {
        "writes": True, "context_length": 512, "dim": 32, "matryoshka_dims": [8, 16], "max_embedding_tokens": 64,
        "prompt_format": "grit",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["org/base", "org%2Fbase", "pirate"])
def test_one_of_them(client: httpx.Client, name: str) -> None:
    response = client.get(f"/v1/models/{name}")
    assert response.status_code == 200
    assert response.json()["id"] == name.replace("%2F", "/")


@pytest.mark.parametrize("name", ["base", "org", "org/base/", "pirate2", "..%2Fpirate", "%F0%9F%A6%8A", "x" * 5000])
def test_there_are_no_others(client: httpx.Client, name: str) -> None:
    response = client.get(f"/v1/models/{name}")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("not_found_error", "model", "model_not_found")
    assert error["message"].endswith("here: this server has org/base, pirate")


def test_an_adapter_answers_under_its_name(client: httpx.Client, adapted: Running, merged: GritModel) -> None:
    base = adapted.service.model
    for name, model in (("pirate", merged), ("org/base", base), ("pirate", merged)):
        answer = post(client, "/v1/chat/completions", model=name, messages=USER, max_tokens=8, temperature=0)
        assert answer["model"] == name
        assert answer["choices"][0]["message"]["content"] == model.chat(USER, max_new_tokens=8).text
    assert merged.chat(USER, max_new_tokens=8).text != base.chat(USER, max_new_tokens=8).text


def test_an_adapter_completes_embeds_and_ranks(client: httpx.Client, adapted: Running, merged: GritModel) -> None:
    text = post(client, "/v1/completions", model="pirate", prompt=TEXTS[0], max_tokens=8, temperature=0)
    assert text["choices"][0]["text"] == merged.complete(TEXTS[0], max_new_tokens=8).text
    vectors = post(client, "/v1/embeddings", model="pirate", input=list(TEXTS))["data"]
    np.testing.assert_allclose([one["embedding"] for one in vectors], merged.embed(TEXTS), atol=1e-5)
    ranked = post(client, "/v1/rerank", model="pirate", query=TEXTS[0], documents=list(TEXTS[1:]))["results"]
    expected = merged.rerank(TEXTS[0], TEXTS[1:])
    assert [one["index"] for one in ranked] == [one.index for one in expected]
    assert [one["relevance_score"] for one in ranked] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_other_names_are_refused_wherever_one_is_given(client: httpx.Client) -> None:
    bodies = {
        "/v1/chat/completions": {"messages": USER},
        "/v1/completions": {"prompt": "a"},
        "/v1/embeddings": {"input": "a"},
        "/v1/rerank": {"query": "a", "documents": ["b"]},
        "/tokenize": {"text": "a"},
        "/detokenize": {"ids": [5]},
    }
    for path, body in bodies.items():
        assert refused(client, path, 404, model="Pirate", **body)["param"] == "model"


def test_nothing_is_there_before_the_model_is_loaded(loading: Running) -> None:
    with loading.client() as client:
        for response in (
            client.get("/v1/models"),
            client.get("/v1/models/tiny"),
            client.post("/v1/embeddings", json={"input": "a"}),
            client.post("/v1/chat/completions", json={"messages": USER, "stream": True}),
            client.post("/tokenize", json={"text": "a"}),
        ):
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "loading"
