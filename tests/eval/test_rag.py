from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gritkit import GritModel
from gritkit.errors import InputError, RecordError
from gritkit.generation.params import SamplingParams
from gritkit.prompts import GRIT
from gritkit.rag.questions import Exam
from gritkit.rag.rag import Rag
from gritkit_eval.cli import app
from gritkit_eval.outcome import OutcomeFolder
from gritkit_eval.rag import Settings, as_json, chosen, own_passages, run, settings_from
from gritkit_eval.rag_copier import new_model, train_tokenizer
from gritkit_eval.rag_material import Asked, conversation, cut, quote, with_answer, without_answer
from gritkit_eval.rag_report import report, tables
from tests.models import grit_model

QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "what do beavers build?",
        "answer": ["dams", "lodges"],
        "passages": [
            {"text": "otters swim all day", "gold": False},
            {"text": "beavers build dams of wood", "gold": True},
            {"text": "foxes run", "gold": False},
        ],
    },
    {
        "question": "where do owls sleep?",
        "answer": "in trees",
        "passages": [{"text": "owls sleep in trees", "gold": True}, {"text": "owls hunt at night", "gold": False}],
    },
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two questions and a tiny model."""
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (tmp_path / "animals.jsonl").write_text(lines, encoding="utf-8")
    grit_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path


def settings(folder: Path, **more: Any) -> Settings:
    given: dict[str, Any] = {
        "questions": (folder / "animals.jsonl",), "models": (f"tiny={folder / 'model'}",), "max_new_tokens": 4,
    }  # fmt: skip
    return Settings(**{**given, **more})


def test_every_question_is_given_its_own_passages(folder: Path) -> None:
    rows = run(settings(folder, modes=("closed", "off", "cached"), codecs=("exact", "int8"), top_k=(1, 2), oracle=True))
    flat = as_json(rows)
    assert {(row["model"], row["questions"], row["num_questions"]) for row in flat} == {("tiny", "animals", 2)}
    assert [(row["mode"], row["codec"], row["top_k"]) for row in flat] == [
        ("closed", "exact", 0), ("off", "exact", 1), ("cached", "exact", 1), ("cached", "int8", 1),
        ("off", "exact", 2), ("cached", "exact", 2), ("cached", "int8", 2),
    ]  # fmt: skip
    assert all(row["found"] == 1.0 for row in flat[1:])
    assert flat[0]["found"] is None
    model = GritModel.from_pretrained(folder / "model")
    lengths = [
        sum(len(model.tokens.to_embed([p], "passage", None, 99, truncate=False)[0]) for p in texts)
        for texts in (
            ["beavers build dams of wood", "otters swim all day"],
            ["owls sleep in trees", "owls hunt at night"],
        )
    ]
    assert flat[4]["document_tokens"] == sum(lengths) / 2
    json.dumps(flat, allow_nan=False)


def test_documents_are_searched_for_otherwise(folder: Path) -> None:
    """What is found, by hand: the same model, the pooled passages, one knowledge base."""
    (row,) = run(settings(folder, modes=("off",), top_k=(2,)))
    texts = [passage["text"] for question in QUESTIONS for passage in question["passages"]]
    model = GritModel.from_pretrained(folder / "model")
    with Rag.open(folder / "kb", model) as rag:
        rag.add(texts)
        found = []
        for question in QUESTIONS:
            read = rag.find(str(question["question"]), top_k=2, params=SamplingParams(max_new_tokens=4)).rows
            answers = question["answer"] if isinstance(question["answer"], list) else [question["answer"]]
            found.append(any(answer in one.text for one in read for answer in answers))
    assert row.measured.found == sum(found) / 2
    (again,) = run(settings(folder, modes=("cached",), top_k=(2,), codecs=("int8",), kb=folder / "kb"))
    assert again.measured.found == row.measured.found
    assert again.measured.recomputed == 0
    (folder / "docs.jsonl").write_text(
        '{"text": "owls sleep in trees"}\n{"text": "dams", "id": "d"}\n', encoding="utf-8"
    )
    (named,) = run(settings(folder, modes=("off",), top_k=(2,), documents=folder / "docs.jsonl"))
    assert named.measured.found == 1.0


def test_a_limit_draws_the_same_questions_for_a_seed(folder: Path) -> None:
    exams = [Exam(f"q{i}", ("a",)) for i in range(50)]
    some = chosen(exams, settings(folder, limit=10, seed=3))
    assert some == chosen(exams, settings(folder, limit=10, seed=3))
    assert some != chosen(exams, settings(folder, limit=10, seed=4))
    assert [exams.index(one) for one in some] == sorted(exams.index(one) for one in some)
    assert chosen(exams, settings(folder, limit=99)) == exams
    assert own_passages(3, 2) == {"first 2 of": 3}


def test_what_cannot_be(folder: Path) -> None:
    with pytest.raises(InputError, match="leave out documents, oracle and codecs"):
        settings(folder, kb=folder / "kb", codecs=("int8", "exact"))
    with pytest.raises(InputError, match="leave out documents"):
        settings(folder, oracle=True, documents=folder / "docs.jsonl")
    strings = {"modes": "off", "codecs": "int8", "joins": "no-bos", "top_k": "1", "link_tokens": "4", "by": "dense"}
    lists: dict[str, Any] = {"questions": [folder / "animals.jsonl"], "models": ["m"]}
    assert settings_from(**{**strings, "top_k": "1, 3", **lists}).top_k == (1, 3)
    with pytest.raises(InputError, match="top_k='one' must be whole numbers"):
        settings_from(**{**strings, "top_k": "one", **lists})
    with pytest.raises(InputError, match="by='smell' is not one of dense, text, hybrid"):
        settings_from(**{**strings, "by": "smell", **lists})
    (folder / "animals.jsonl").write_text('{"question": "q", "answer": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="1 questions of 'animals' come without passages"):
        run(settings(folder, modes=("off",)))
    (folder / "docs.jsonl").write_text('{"text": "fine"}\n{"texts": "no"}\n', encoding="utf-8")
    with pytest.raises(RecordError, match=r"docs\.jsonl:2: the record has no text"):
        run(settings(folder, modes=("off",), documents=folder / "docs.jsonl"))


def test_the_command(folder: Path) -> None:
    words = ["rag", str(folder / "animals.jsonl"), "-m", f"tiny={folder / 'model'}", "--modes", "off,cached"]
    words += ["--top-k", "1", "--max-new-tokens", "3", "--output", str(folder / "out")]
    words += ["--results", str(folder / "RESULTS.md")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "| 1 | cached | int8 |" in done.stdout
    kept = OutcomeFolder(folder / "out").all()
    assert {(one.task, one.task_type, one.settings["mode"]) for one in kept} == {
        ("animals", "dense search", "off"), ("animals", "dense search", "cached"),
    }  # fmt: skip
    for one in kept:
        assert one.examples is not None
        assert sum(one.examples) / len(one.examples) == pytest.approx(one.score)
    again = CliRunner().invoke(app, [*words, "--format", "json"], catch_exceptions=False)
    listed = json.loads(again.stdout)
    assert [(row["mode"], row["codec"]) for row in listed] == [("off", "int8"), ("cached", "int8")]
    assert {(row["mode"], row["f1"], row["ttft_s"]) for row in listed} == {
        (one.settings["mode"], one.score, one.scores["ttft_s"]) for one in kept
    }
    written = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert written.count("## eval rag, dense search\n") == 1
    assert (
        "`gritkit eval rag animals.jsonl --model tiny=model --modes off,cached --top-k 1 --max-new-tokens 3`" in written
    )
    with (folder / "animals.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"question": "torn')
    with pytest.raises(RecordError, match=r"animals\.jsonl:3: not JSON"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_what_was_measured_is_not_measured_again(folder: Path) -> None:
    """Times are never the same twice, so equal rows were read, not measured."""
    outcomes = OutcomeFolder(folder / "out")
    given = settings(folder, modes=("closed", "off"), top_k=(1,))
    first = run(given, outcomes=outcomes)
    assert as_json(run(given, outcomes=outcomes)) == as_json(first)
    assert [type(row.measured.num_questions) for row in first] == [int, int]
    assert len(outcomes.all()) == 2
    made = next(one for one in outcomes.all() if one.task_type == "closed")
    assert math.isnan(made.scores["found"])
    next(outcomes.folder.glob("rag/tiny/*.json")).unlink()
    assert [row.measured.ttft_s for row in run(given, outcomes=outcomes)] != [row.measured.ttft_s for row in first]
    run(settings(folder, modes=("closed", "off"), top_k=(1,), limit=1), outcomes=outcomes)
    assert len(outcomes.all()) == 4
    lines = (folder / "animals.jsonl").read_text(encoding="utf-8")
    (folder / "animals.jsonl").write_text(lines.replace("foxes run", "foxes run far"), encoding="utf-8")
    run(given, outcomes=outcomes)
    assert len(outcomes.all()) == 6


def test_times_of_another_machine_are_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = OutcomeFolder(folder / "out")
    given = settings(folder, modes=("closed",), top_k=(1,), limit=1)
    (first,) = run(given, outcomes=outcomes)
    monkeypatch.setattr("gritkit_eval.rag_outcomes.machine", lambda: "another one")
    (second,) = run(given, outcomes=outcomes)
    assert second.measured.ttft_s != first.measured.ttft_s


def test_question_files_of_one_name_stay_apart(folder: Path) -> None:
    for name in ("a", "b", "c/a"):
        (folder / name).mkdir(parents=True)
        (folder / name / "test.jsonl").write_bytes((folder / "animals.jsonl").read_bytes())
    files = tuple(folder / name for name in ("animals.jsonl", "a/test.jsonl", "b/test.jsonl"))
    rows = run(settings(folder, questions=files, modes=("closed",), top_k=(1,), limit=1))
    assert [row.questions for row in rows] == ["animals", "a/test", "b/test"]
    with pytest.raises(InputError, match=r"would both be called 'a/test': rename one"):
        run(settings(folder, questions=(*files, folder / "c/a/test.jsonl"), modes=("closed",)))


def test_tables_show_what_was_measured(folder: Path) -> None:
    given = settings(folder, modes=("closed", "off", "linked"), top_k=(2,), link_tokens=(3,), oracle=True)
    rows = run(given)
    shown = tables(rows)
    assert "**tiny** on animals, 2 questions" in shown
    closed, _, linked = (row.measured for row in rows)
    lines = shown.splitlines()
    assert lines[-3].startswith(f"| - | closed |  | {closed.match:.3f} |")
    assert f"| 2 no-bos | linked 3 | int8 | {linked.match:.3f} |" in lines[-1]
    assert f" {linked.kl:.4f} |" in lines[-1]
    assert "own passages" in report(rows, given, "gritkit eval rag --oracle")
    assert "by `gritkit eval rag --oracle`" in report(rows, given, "gritkit eval rag --oracle")


# -- material ----------------------------------------------------------------------------------------------------

TEXT = "The quick brown fox jumps over the lazy dog near the old river bank while a heron looks on from afar"


def words_of(text: str) -> int:
    return len(text.split())


def test_quotes_stand_in_their_passage() -> None:
    found = quote(TEXT, random.Random(0), words_of)
    assert found is not None
    assert f"{found[0]} {found[1]}" in TEXT
    assert quote("too short", random.Random(0), words_of) is None
    assert cut(TEXT, 5, words_of) == "The quick brown fox jumps"


def test_both_models_learn_the_same_questions_as_they_are_asked() -> None:
    """A conversation holds what full prefill reads, but for the opening of the turn."""
    asked = Asked("who looks on?", "a heron", TEXT, ("A second passage",))
    assert without_answer(asked) == {k: v for k, v in with_answer(asked).items() if k != "answer"}
    user, assistant = conversation(asked, random.Random(0))["messages"]
    assert assistant["content"] == asked.answer
    tokens = new_model(train_tokenizer(iter([TEXT] * 3), vocabulary=400)).tokens
    (gold, other) = tokens.to_embed([asked.gold, *asked.others], "passage", None, 500, truncate=False)
    order = [gold, other] if user["content"].index(TEXT) < user["content"].index("second") else [other, gold]
    read = [
        *order[0].ids.tolist(),
        *order[1].ids.tolist()[len(tokens.bos_ids) :],
        *tokens.question_prompt(asked.question),
    ]
    trained = tokens.chat_prompt([user])
    opening = tokens.encode("<|user|>\n")
    assert trained == [*tokens.bos_ids, *opening, *read[len(tokens.bos_ids) :]]


def test_the_copier_looks_up_what_it_has_read(tmp_path: Path) -> None:
    words = [TEXT, GRIT.ask, "Complete: something"]
    model = new_model(train_tokenizer(iter(words * 3), vocabulary=700))
    with Rag.open(tmp_path / "kb", model, codec="exact") as rag:
        rag.add(TEXT)
        for reuse in ("off", "cached"):
            answer = rag.ask("Complete: The quick brown", top_k=1, reuse=reuse, max_new_tokens=1)
            assert answer.text == " fox", reuse
