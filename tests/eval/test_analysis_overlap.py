from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gritkit.data.sources import Problems
from gritkit.errors import InputError, RecordError
from gritkit_eval.analysis.comparison import Comparison, Settings
from gritkit_eval.analysis.contamination import by_vectors, by_words
from gritkit_eval.analysis.ngrams import GramSet
from gritkit_eval.analysis.overlap_report import Report
from gritkit_eval.analysis.texts import DataFile, texts_of
from gritkit_eval.analysis.words import words
from gritkit_eval.cli import app
from gritkit_eval.outcome import OutcomeFolder
from tests.models import grit_model

LONG = "the beaver builds its dam of wood and mud before the winter comes to the valley of the slow river"
TRAIN: list[dict[str, Any]] = [
    {"query": ["Find the animal", "Who builds a dam in the river?"], "pos": [f"Note: {LONG}. It does."], "neg": []},
    {
        "messages": [
            {"role": "user", "content": "Say that owls hunt at night"},
            {"role": "assistant", "content": "Yes."},
        ]
    },
    {"text": "Otters swim all day long."},
    {"text": "entirely other words about trains and tickets that nobody evaluates on at all, whatever comes"},
]
EVALUATION: list[dict[str, Any]] = [
    {"_id": "entirely other words about trains", "text": LONG.upper()},  # held whole, other case
    {"_id": "2", "text": "OTTERS  swim, all day long"},  # a copy but for punctuation
    {"_id": "3", "text": "nothing of this stands anywhere else in any file of records that we read"},
    {"_id": "4", "text": "owls hunt at night"},  # shorter than n, inside a turn
    {"_id": "5", "text": "yes"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRAIN), encoding="utf-8")
    with gzip.open(tmp_path / "test.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in EVALUATION)
    return tmp_path


def settings(folder: Path, **more: Any) -> Settings:
    given = {"train": (folder / "train.jsonl",), "evaluation": (folder / "test.jsonl.gz",)}
    return Settings(**{**given, **more})


def test_words_are_what_a_copy_keeps() -> None:
    assert words("The Café, don't—\uff21\uff22 x_1!") == ["the", "café", "don", "t", "ab", "x_1"]
    assert words("STRASSE") == words("straße")
    assert words("東京に2人 ok") == ["東", "京", "に", "2", "人", "ok"]
    assert words(" \t—!") == []


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_grams_are_those_of_plain_sets(n: int) -> None:
    draw = random.Random(n)
    texts = [[draw.choice("abcde") for _ in range(draw.randint(1, 12))] for _ in range(60)]
    stream = [[draw.choice("abcdefgh") for _ in range(draw.randint(0, 12))] for _ in range(12)]
    grams = GramSet(texts, n)
    news = [grams.meet(number, text) for number, text in enumerate(stream)]

    def of(text: list[str], size: int) -> set[tuple[str, ...]]:
        return {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}

    seen: set[tuple[str, ...]] = set()
    everything = set().union(*(of(text, min(len(text), n)) for text in texts))
    for new, text in zip(news, stream, strict=True):
        own = set().union(*(of(text, size) for size in range(1, n + 1))) & everything
        assert new == bool(own - seen)
        seen |= own
    for text, found in zip(texts, grams.overlaps(), strict=True):
        own = of(text, min(len(text), n))
        assert (found.grams, found.shared) == (len(own), len(own & seen))
        if found.source is not None:
            assert own & of(stream[found.source], min(len(text), n))


def test_a_text_without_words_and_n_of_zero_are_refused() -> None:
    with pytest.raises(InputError, match="without words"):
        GramSet([["a"], []], 2)
    with pytest.raises(InputError, match="n=0"):
        GramSet([["a"]], 0)


def test_every_string_but_names_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        "\n" + json.dumps({"id": "no", "label": "no", "a": {"b": ["one", {"role": "no", "c": "two"}]}, "d": 3})
    )
    problems = Problems()
    found = list(texts_of(DataFile.of(path), problems))
    name = f"{tmp_path.name}/x"
    assert [(one.text, str(one.place)) for one in found] == [("one", f"{name}:2 a.b[0]"), ("two", f"{name}:2 a.b[1].c")]
    assert not problems.total


def test_copies_and_shared_grams_are_found_with_both_places(folder: Path) -> None:
    comparison = Comparison(settings(folder, ns=(3, 13)))
    (finding,) = by_words(comparison, OutcomeFolder(folder / "out"))
    scores = finding.outcome.scores
    assert scores["texts"] == 4  # "yes" is too short to count
    assert scores["copies"] == 1 / 4
    assert scores["any 13-gram"] == scores["any 3-gram"] == finding.outcome.score == 3 / 4
    assert scores["share of 13-grams"] == pytest.approx(3 / 4)
    assert finding.outcome.examples == [1, 1, 0, 1]
    here = folder.name
    places = {(one.evaluation, one.train, one.copy) for one in finding.offenders}
    assert places == {
        (f"{here}/test:1 text", f"{here}/train:1 pos[0]", False),
        (f"{here}/test:2 text", f"{here}/train:3 text", True),
        (f"{here}/test:4 text", f"{here}/train:2 messages[0].content", False),
    }
    assert [one.evaluation.split()[0][-1] for one in finding.offenders] == ["1", "2", "4"]  # the longest first


def test_what_was_found_is_not_looked_for_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = OutcomeFolder(folder / "out")
    (first,) = by_words(Comparison(settings(folder)), outcomes)
    with monkeypatch.context() as patch:
        patch.setattr(GramSet, "meet", None)  # nothing may stream past
        (again,) = by_words(Comparison(settings(folder)), outcomes)
    assert again.outcome.made == first.outcome.made
    assert again.offenders == first.offenders
    (folder / "train.jsonl").write_text('{"text": "nothing that anybody asks for"}\n')
    (changed,) = by_words(Comparison(settings(folder)), outcomes)
    assert changed.outcome.score == 0


def test_the_nearest_text_is_the_nearest_of_all_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritkit_eval.analysis.contamination._BLOCK", 2)
    model = grit_model()

    def embed(texts: Any) -> Any:
        return model.embed(list(texts), truncate=True)

    comparison = Comparison(settings(folder, threshold=-1))
    (finding,) = by_vectors(comparison, OutcomeFolder(folder / "out"), embed, model="m", fingerprint="f")
    (texts,) = comparison.texts.values()
    stream = [text for text, _ in comparison.training_texts()]
    cosines = embed([one.text for one in texts]) @ embed([one.text for one in stream]).T
    assert finding.outcome.scores["mean nearest cosine"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    assert finding.outcome.scores["cosine of random pairs"] == pytest.approx(cosines.mean(), abs=1e-5)
    expected = {(str(one.place), str(stream[at].place)) for one, at in zip(texts, cosines.argmax(axis=1), strict=True)}
    assert {(one.evaluation, one.train) for one in finding.offenders} == expected
    assert finding.outcome.score == np.mean(finding.outcome.examples or []) == 1


@pytest.mark.parametrize(("shift", "warned"), [(0.0, False), (1.9, False), (2.2, True), (20.0, True)])
def test_a_threshold_that_random_pairs_come_near_is_said_to_say_little(
    folder: Path, shift: float, warned: bool
) -> None:
    """Directions of their own beside a common one: the cosine of two texts is shift^2 / (1 + shift^2)."""
    seen: dict[str, int] = {}

    def embed(texts: Any) -> Any:
        vectors = np.zeros((len(texts), 40), np.float32)
        for row, text in enumerate(texts):
            vectors[row, seen.setdefault(text, len(seen))] = 1
        vectors[:, -1] = shift
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    comparison = Comparison(settings(folder))
    near = by_vectors(comparison, OutcomeFolder(folder / "out"), embed, model="m", fingerprint=str(shift))
    random_pair = shift**2 / (1 + shift**2)
    assert near[0].outcome.scores["cosine of random pairs"] == pytest.approx(random_pair, abs=1e-5)
    report = Report(
        settings=comparison.settings, train_name="t", by_words=by_words(comparison, OutcomeFolder(folder / "out")),
        by_vectors=near, diversity=[], empty=[],
    )  # fmt: skip
    said = f"two texts at random have a cosine of {random_pair:.3f} by this model, on average, so 0.9 is nearer to that"
    assert (said in report.tables()) == warned
    assert (said in report.section("again")) == warned


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"text": "a b c d', "not JSON"),
        (b'"only a string"', "the row is str"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800 b c d"}', "lone surrogate"),
    ],
)
@pytest.mark.parametrize("side", ["train.jsonl", "test2.jsonl"])
def test_wrong_data_is_named_with_file_and_line(folder: Path, line: bytes, what: str, side: str) -> None:
    (folder / side).write_bytes(b'{"text": "a b c d e"}\n' + line + b"\n")
    changed = {"evaluation": (folder / side,)} if side.startswith("test") else {}
    with pytest.raises(RecordError, match=rf"{side.split('.')[0]}:2: .*{what}"):
        by_words(Comparison(settings(folder, **changed)), OutcomeFolder(folder / "out"))
    assert not (folder / "out").exists()


def test_a_side_without_texts_is_refused(folder: Path) -> None:
    (folder / "none.jsonl").write_text('{"query_id": "a b c d e", "score": 1}\n')
    with pytest.raises(InputError, match="none"):
        Comparison(settings(folder, evaluation=(folder / "none.jsonl",)))
    with pytest.raises(InputError, match=r"to compare with in .*none"):
        by_words(Comparison(settings(folder, train=(folder / "none.jsonl",))), OutcomeFolder(folder / "out"))
    both = Comparison(settings(folder, evaluation=(folder / "none.jsonl", folder / "test.jsonl.gz")))
    assert [name.split("/")[1] for name in both.empty] == ["none"]
    with pytest.raises(InputError, match="no such file"):
        Comparison(settings(folder, train=(folder / "absent.jsonl",)))


def test_the_command_writes_tables_a_section_and_a_plot(folder: Path) -> None:
    grit_model().save_pretrained(folder / "model")
    words = [
        "overlap", "--train", str(folder / "train.jsonl"), "--eval", str(folder / "test.jsonl.gz"), "--n", "5",
        "-m", f"tiny={folder / 'model'}", "--output", str(folder / "out"), "--results", str(folder / "R.md"),
    ]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    section = (folder / "R.md").read_text(encoding="utf-8")
    assert "`gritkit eval overlap --train train.jsonl --eval test.jsonl.gz --model tiny=model --n 5`" in section
    assert "| copy |" in done.output
    assert (folder / "plots/eval-overlap.png").read_bytes()[1:4] == b"PNG"
    done = CliRunner().invoke(app, [*words[:-2], "--format", "json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert {one["task_type"] for one in found} == {"contamination", "contamination by vectors", "diversity"}
    done = CliRunner().invoke(app, [*words, "--n", "0"])
    assert isinstance(done.exception, InputError)
    assert "n='0'" in str(done.exception)


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "matplotlib", "mteb")
    code = f"import sys, gritkit_eval.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
