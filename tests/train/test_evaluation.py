from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gritkit.data import Lengths
from gritkit.errors import InputError, RecordError
from gritkit.train.evaluation import evaluate, load_held_out
from tests.distributed import in_processes
from tests.models import grit_model, language_model

LENGTHS = Lengths(query=64, passage=64, generative=128)
ASKED = [
    {"query": f"question {i} about {i % 3}", "pos": [f"answer {i} of {i % 4}"], "neg": [f"other {i}", "the same one"]}
    for i in range(12)
]
ASKED.append({"query": "question 0 about 0", "pos": ["a second answer"], "neg": ["answer 3 of 3"]})
PAIRS = [{"sentence1": f"a {i} b", "sentence2": f"a {i * i} c", "score": (i * 7) % 5} for i in range(9)]
CHATS = [{"text": [f"say {i}", f"{i} it is " * (i + 1)]} for i in range(5)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measured(data: Any, budget: int = 200) -> dict[str, float]:
    model = grit_model("llama", prompt_format="grit").train()
    found = evaluate(model, load_held_out(data, model.tokens, LENGTHS), budget)
    assert model.training
    return found


def test_retrieval_is_that_of_plain_loops_over_embed() -> None:
    model = grit_model("llama", prompt_format="grit")
    queries = list(dict.fromkeys(row["query"] for row in ASKED))
    passages = list(dict.fromkeys(text for row in ASKED for text in (*row["pos"], *row["neg"])))
    relevant = {query: {t for row in ASKED if row["query"] == query for t in row["pos"]} for query in queries}
    ndcg, recall, reciprocal = [], [], []
    for query in queries:
        scores = model.embed(passages) @ model.embed(query, role="query")
        ranking = [passages[i] for i in np.argsort(-scores, kind="stable")][:10]
        places = [rank for rank, text in enumerate(ranking, 1) if text in relevant[query]]
        best = sum(1 / np.log2(rank + 1) for rank in range(1, len(relevant[query]) + 1))
        ndcg.append(sum(1 / np.log2(rank + 1) for rank in places) / best)
        recall.append(len(places) / len(relevant[query]))
        reciprocal.append(1 / places[0] if places else 0)
    for budget in (1, 10_000):
        found = measured(ASKED, budget)
        assert found == pytest.approx(
            {"ndcg_at_10": np.mean(ndcg), "recall_at_10": np.mean(recall), "mrr_at_10": np.mean(reciprocal)}
        )
    assert 0 < found["ndcg_at_10"] < 1


def test_similarity_is_scipys_of_embed() -> None:
    model = grit_model("llama", prompt_format="grit")
    first, second = (model.embed([row[side] for row in PAIRS]) for side in ("sentence1", "sentence2"))
    expected = spearmanr((first * second).sum(1), [row["score"] for row in PAIRS]).statistic
    assert measured(PAIRS) == pytest.approx({"spearman": expected})


def test_next_token_loss_is_that_of_the_plain_model() -> None:
    tokens = grit_model("llama", prompt_format="grit").tokens
    plain = language_model("llama")
    total, count = 0.0, 0
    for row in CHATS:
        user, answer = row["text"]
        example = tokens.chat_example([{"role": "user", "content": user}, {"role": "assistant", "content": answer}])
        labels = torch.where(torch.from_numpy(example.loss_mask), torch.from_numpy(example.ids), -100)
        out = plain(input_ids=torch.from_numpy(example.ids)[None], labels=labels[None])
        total += out.loss.item() * int(example.loss_mask.sum())
        count += int(example.loss_mask.sum())
    assert measured(CHATS)["next_token_loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_folder_is_measured_file_by_file_and_on_average(tmp_path: Path) -> None:
    write(tmp_path / "easy.jsonl", ASKED[:6])
    write(tmp_path / "hard.jsonl", ASKED[6:])
    write(tmp_path / "sts.jsonl", PAIRS)
    write(tmp_path / "chats.jsonl", CHATS)
    found = measured(tmp_path)
    assert found["easy_ndcg_at_10"] == pytest.approx(measured(ASKED[:6])["ndcg_at_10"])
    assert found["ndcg_at_10"] == pytest.approx((found["easy_ndcg_at_10"] + found["hard_ndcg_at_10"]) / 2)
    assert {"spearman", "next_token_loss"} <= set(found)
    assert "sts_spearman" not in found
    assert measured([*ASKED, *PAIRS, *CHATS])["spearman"] == pytest.approx(found["spearman"])


def test_bad_records_are_all_named(tmp_path: Path) -> None:
    tokens = grit_model().tokens
    bad = [
        *PAIRS,
        {"sentence1": "a"},
        {"sentence1": "a", "sentence2": "b", "score": "high"},
        {"sentence1": "", "score": 1},
    ]
    with pytest.raises(RecordError, match=r"3 bad records.*nothing was measured") as raised:
        load_held_out(write(tmp_path / "sts.jsonl", bad), tokens, LENGTHS)
    assert all(f"sts:{line}: " in str(raised.value) for line in (10, 11, 12))
    with pytest.raises(InputError, match="no such file"):
        load_held_out(tmp_path / "none.jsonl", tokens, LENGTHS)
    with pytest.raises(InputError, match="nothing to measure"):
        load_held_out([], tokens, LENGTHS)


def test_it_is_the_same_when_the_weights_are_spread_over_processes() -> None:
    expected = measured([*ASKED, *PAIRS, *CHATS])

    def one() -> dict[str, float]:
        model = grit_model("llama", prompt_format="grit")
        held_out = load_held_out([*ASKED, *PAIRS, *CHATS], model.tokens, LENGTHS)
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.lm.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return evaluate(model, held_out, 200)

    for found in in_processes(2, one):
        assert found == pytest.approx(expected, rel=1e-4)
