from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gritkit.data import GenerativeRecord, Lengths, Source
from gritkit.errors import InputError, RecordError
from gritkit.tokens import sequence
from gritkit.train.evaluation import Retrieval, evaluate, load_held_out
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


def test_a_query_does_not_find_itself() -> None:
    texts = [f"the {i}th text says {i % 2}" for i in range(14)]
    spaced = [f" {text}\n" for text in texts]
    pairs = [{"query": texts[i], "pos": [spaced[i ^ 1]]} for i in range(14)]
    model = grit_model("llama", prompt_format="grit")
    scores = np.where(np.eye(14), -np.inf, model.embed(texts, role="query") @ model.embed(spaced).T)
    ranks = [1 + int((scores[i] > scores[i, i ^ 1]).sum()) for i in range(14)]
    expected = np.mean([1 / rank if rank <= 10 else 0 for rank in ranks])
    assert measured(pairs)["mrr_at_10"] == pytest.approx(expected)
    also_itself = [{**row, "pos": [spaced[i], *row["pos"]]} for i, row in enumerate(pairs)]
    assert measured(also_itself) == pytest.approx(measured(pairs))
    with pytest.raises(RecordError, match="records:0: pos holds nothing but the query itself"):
        load_held_out([{"query": " a text", "pos": ["a text "]}], model.tokens, LENGTHS)


def test_what_is_left_out_takes_no_place_in_the_ranking() -> None:
    passages = np.zeros((13, 2), dtype=np.float32)
    passages[:, 0] = np.linspace(1, 0, 13)
    texts = [sequence([2], pool=True)] * 13
    retrieval = Retrieval("hand-made", texts[:1], texts, [{0, 10}], [{0}])
    found = retrieval.measure(lambda _: np.concatenate([[[1, 0]], passages]).astype(np.float32), lambda _: 0.0)
    assert found == pytest.approx({"ndcg_at_10": 1 / np.log2(11), "recall_at_10": 1, "mrr_at_10": 1 / 10})


def test_similarity_is_scipys_of_embed() -> None:
    model = grit_model("llama", prompt_format="grit")
    first, second = (model.embed([row[side] for row in PAIRS]) for side in ("sentence1", "sentence2"))
    expected = spearmanr((first * second).sum(1), [row["score"] for row in PAIRS]).statistic
    assert measured(PAIRS) == pytest.approx({"spearman": expected})


def test_sentences_are_embedded_alike_and_may_have_instructions() -> None:
    model = grit_model("llama", prompt_format="e5")  # has a prefix for queries and another for passages
    first, second = (model.embed([row[side] for row in PAIRS], role="query") for side in ("sentence1", "sentence2"))
    expected = spearmanr((first * second).sum(1), [row["score"] for row in PAIRS]).statistic
    assert evaluate(model, load_held_out(PAIRS, model.tokens, LENGTHS), 99) == pytest.approx({"spearman": expected})
    model = grit_model("llama", prompt_format="grit")
    told = [{**row, "sentence2": ["Compare these", row["sentence2"]]} for row in PAIRS]
    first = model.embed([row["sentence1"] for row in PAIRS], role="query")
    second = model.embed([row["sentence2"] for row in PAIRS], role="query", instruction="Compare these")
    expected = spearmanr((first * second).sum(1), [row["score"] for row in PAIRS]).statistic
    assert measured(told) == pytest.approx({"spearman": expected})


def test_a_model_that_gives_all_pairs_one_cosine_agrees_with_nobody() -> None:
    model = grit_model()
    same = [{"sentence1": "a", "sentence2": "a", "score": i} for i in range(3)]
    assert evaluate(model, load_held_out(same, model.tokens, LENGTHS), 99) == {"spearman": 0.0}


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


def test_bad_records_of_all_files_are_named_at_once(tmp_path: Path) -> None:
    tokens = grit_model("llama", prompt_format="grit").tokens
    bad_pairs = [
        *PAIRS,
        {"sentence1": "a", "score": 1},
        {"sentence1": "a", "sentence2": "b", "score": "high"},
        {"sentence1": "", "sentence2": "b", "score": 1},
        {"sentence1": "a", "sentence2": "b", "score": float("nan")},
        {"sentence2": "b", "score": 1},
    ]
    write(tmp_path / "sts.jsonl", bad_pairs)
    write(tmp_path / "asked.jsonl", [*ASKED, {"query": "a"}, {"query": "a", "pos": ["a"]}, PAIRS[0]])
    write(tmp_path / "chats.jsonl", [*CHATS, {"text": ["a question"]}, "no record"])
    write(tmp_path / "flat.jsonl", [{**row, "score": 2} for row in PAIRS])
    write(tmp_path / "none.jsonl", [])
    with pytest.raises(RecordError, match=r"12 bad records.*nothing was measured") as raised:
        load_held_out(tmp_path, tokens, LENGTHS)
    for place in (
        *(f"sts.jsonl:{line}: " for line in range(10, 15)),
        *(f"asked.jsonl:{line}: " for line in (14, 15, 16)),
        *(f"chats.jsonl:{line}: " for line in (6, 7)),
        "flat.jsonl: no pair has another score than 2",
        "none.jsonl: there are no records",
    ):
        assert place in str(raised.value)
    with pytest.raises(InputError, match="no such file"):
        load_held_out(tmp_path / "absent.jsonl", tokens, LENGTHS)
    with pytest.raises(InputError, match="nothing to measure"):
        load_held_out([], tokens, LENGTHS)
    with pytest.raises(InputError, match="evaluation must be a path"):
        load_held_out(7, tokens, LENGTHS)  # type: ignore[arg-type]


def test_a_torn_file_of_pairs_is_told_by_its_line(tmp_path: Path) -> None:
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in PAIRS * 500).encode())
    (tmp_path / "sts.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(RecordError, match=r"sts\.jsonl\.gz:\d+: the gzip file ends too early"):
        load_held_out(tmp_path, grit_model().tokens, LENGTHS)


def test_sets_of_one_name_keep_their_suffixes(tmp_path: Path) -> None:
    write(tmp_path / "nli.jsonl", ASKED)
    (tmp_path / "nli.jsonl.gz").write_bytes(gzip.compress((tmp_path / "nli.jsonl").read_bytes()))
    found = measured(tmp_path)
    assert found["nli.jsonl_ndcg_at_10"] == found["nli.jsonl.gz_ndcg_at_10"] == found["ndcg_at_10"]
    twice = [Source("a", "generative", [GenerativeRecord.of("a text")])] * 2
    with pytest.raises(InputError, match="two held-out sets are called 'a'"):
        load_held_out(twice, grit_model().tokens, LENGTHS)


def test_answers_of_embedding_records_are_not_looked_at() -> None:
    asked = [*ASKED, {"query": "long " * 300, "pos": ["short"]}]  # as a question, it leaves no room for an answer
    assert measured([{**row, "answer": "an answer"} for row in asked]) == measured(asked)


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = grit_model("llama", prompt_format="grit").train()
    model.lm.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    seen = []
    model.lm.register_forward_hook(lambda *_: seen.append(any(module.training for module in model.modules())))
    model.lm.model.register_forward_hook(lambda *_: seen.append(any(m.training for m in model.modules())))
    held_out = load_held_out(ASKED, model.tokens, LENGTHS)
    evaluate(model, held_out, 200)
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == before
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        model.lm.model.norm.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        evaluate(model, held_out, 200)
    assert [module.training for module in model.modules()] == before


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
