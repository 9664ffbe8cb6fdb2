from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gritkit import GritModel
from gritkit.errors import GritkitError, InputError
from gritkit_eval.cli import app
from gritkit_eval.generation import measure as measuring
from gritkit_eval.generation import sandbox
from gritkit_eval.generation.local import Options, load_tasks
from gritkit_eval.generation.measure import measure
from gritkit_eval.generation.report import notes, tables
from gritkit_eval.generation.run import Settings, run, split_names
from gritkit_eval.outcome import Outcome, OutcomeFolder
from tests.eval.generation_data import TASKS, write, write_all
from tests.models import TEXTS, grit_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data, two models and a text."""
    write_all(tmp_path)
    grit_model("llama", prompt_format="grit").save_pretrained(tmp_path / "model")
    grit_model("mistral", prompt_format="plain").save_pretrained(tmp_path / "other")
    (tmp_path / "text.txt").write_text(" ".join(TEXTS), encoding="utf-8")
    return tmp_path


def settings(folder: Path, **more: Any) -> Settings:
    given: dict[str, Any] = {"models": (f"tiny={folder / 'model'}",), "shared": folder, "tasks": ("mmlu", "copa")}
    return Settings(**given | more)


def test_every_model_has_every_outcome(folder: Path) -> None:
    outcomes = run(
        settings(folder, models=(f"a={folder / 'model'}", str(folder / "other")), perplexity=(folder / "text.txt",))
    )
    assert [(one.model, one.task) for one in outcomes] == [
        (model, task) for model in ("a", "other") for task in ("mmlu", "copa", f"perplexity of {folder.name}/text.txt")
    ]
    mmlu, _, text = outcomes[:3]
    assert (mmlu.kind, mmlu.metric, mmlu.task_type) == ("generation", "acc", "knowledge")
    assert mmlu.examples is not None
    assert mmlu.score == pytest.approx(sum(mmlu.examples) / 3)
    assert mmlu.scores["chance"] == 0.25
    by_subject = [mmlu.scores["acc:abstract_algebra"], mmlu.scores["acc:world_religions"]]
    assert mmlu.scores["macro"] == pytest.approx(sum(by_subject) / 2)
    assert (text.metric, text.task_type, text.scores["window"]) == ("bits_per_byte", "perplexity", 512)


def test_what_was_measured_is_not_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = settings(folder, output=folder / "out", perplexity=(folder / "text.txt",))
    first = run(kept)
    assert {one.task for one in OutcomeFolder(folder / "out").all()} == {one.task for one in first}

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(measuring, "score_pairs", never)
    assert [one.made for one in run(kept)] == [one.made for one in first]
    for other in ({"options": Options(limit=1)}, {"options": Options(seed=1)}, {"options": Options(chat=True)}):
        with pytest.raises(AssertionError, match="measured again"):
            run(settings(folder, output=folder / "out", **other))
    write_all(folder)
    with pytest.raises(AssertionError, match="measured again"):
        run(settings(folder, models=(str(folder / "other"),), output=folder / "out"))


def test_an_earlier_outcome_comes_under_the_name_of_now(folder: Path) -> None:
    once = run(settings(folder, models=(f"a={folder / 'model'}",), output=folder / "out"))
    again = run(settings(folder, models=(f"b={folder / 'model'}",), output=folder / "out"))
    assert [one.made for one in again] == [one.made for one in once]
    assert {one.model for one in again} == {"b"}


def test_another_chat_template_is_measured_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no part of the fingerprint."""
    chatting = settings(folder, models=(str(folder / "other"),), options=Options(chat=True), output=folder / "out")
    template = folder / "other" / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    run(chatting)
    monkeypatch.setattr(measuring, "score_pairs", None)
    run(chatting)
    template.write_text("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}", encoding="utf-8")
    with pytest.raises(TypeError):
        run(chatting)


def test_texts_of_one_name_are_told_apart(folder: Path) -> None:
    for name, text in (("x", "beavers build dams"), ("y", "otters do not")):
        (folder / name).mkdir()
        (folder / name / "text.txt").write_text(text * 20, encoding="utf-8")
    both = run(settings(folder, tasks=(), perplexity=(folder / "x/text.txt", folder / "y/text.txt")))
    assert [one.task for one in both] == ["perplexity of x/text.txt", "perplexity of y/text.txt"]
    with pytest.raises(InputError, match="have the same name"):
        run(settings(folder, tasks=(), perplexity=(folder / "x/text.txt", folder / "x/text.txt")))


def test_prompts_that_lose_their_beginning_are_counted(folder: Path) -> None:
    model = GritModel.from_pretrained(folder / "model")
    for name, key in (("piqa/validation", "goal"), ("gsm8k/test", "question")):
        rows = [dict(TASKS[f"gen_eval/{name}"][0]), dict(TASKS[f"gen_eval/{name}"][0])]
        rows[1][key] = "word " * 600
        write(folder / "data", f"gen_eval/{name}", rows)
        (task,) = load_tasks(folder / "data", [name.partition("/")[0]], Options(num_fewshot=0))
        assert measure(model, task, chat=False).scores["cut"] == 1.0
    (outcome,) = run(settings(folder, tasks=("piqa",)))
    cut = "tiny, piqa: 1 prompts were longer than the context and lost their beginning, solved examples first."
    assert notes([outcome])[0] == cut


def test_where_knowing_nothing_is_not_chance_is_said(folder: Path) -> None:
    row = {"premise": "The ice melted.", "relation": "effect", "choices": ["Water was left.", "It froze."], "answer": 0}
    write(folder / "data", "gen_eval/copa/validation", [row, {**row, "premise": "It was warm."}])
    mmlu, copa = run(settings(folder, tasks=("mmlu", "copa")))
    (said,) = notes([mmlu, copa])
    assert said.startswith("The shortest answer, whatever it says, is the right one of copa (0%, chance is 50%): ")
    assert "| shortest |" not in tables([mmlu, copa])
    assert notes([mmlu]) == []


def test_what_falls_is_not_averaged_with_what_rises() -> None:
    fields: dict[str, Any] = {"kind": "generation", "task_type": "lm-eval", "version": "1", "model": "m",
                              "fingerprint": "f", "seconds": 1.0}  # fmt: skip
    one = Outcome(task="a", metric="acc", scores={"acc": 1.0}, **fields)
    other = Outcome(task="b", metric="word_perplexity", scores={"word_perplexity": 6.0}, **fields)
    assert "average" not in tables([one, other])
    assert "average" in tables([one, Outcome(task="c", metric="acc", scores={"acc": 0.0}, **fields)])


def test_programs_are_not_run_where_they_cannot_be_confined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda: ("read-only files", "no network"))
    with pytest.raises(InputError, match=r"cannot confine programs \(read-only files is not to be had\)"):
        run(settings(folder, tasks=("humaneval",), options=Options(allow_code=True)))
    options = Options(allow_code=True, unconfined=True, limit=1)
    (outcome,) = run(settings(folder, tasks=("humaneval",), options=options))
    assert "Programs ran without these walls, which the machine does not permit: read-only files, no network." in notes(
        [outcome]
    )


def test_a_chat_goes_through_the_template(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GritModel.from_pretrained(folder / "model")
    seen = []
    score = measuring.score_pairs

    def kept(model: GritModel, pairs: Any, progress: Any) -> Any:
        seen.extend(pairs)
        return score(model, pairs, progress)

    monkeypatch.setattr(measuring, "score_pairs", kept)
    (task,) = load_tasks(folder / "data", ["arc_easy"], Options(num_fewshot=1, chat=True))
    measure(model, task, chat=True)
    text = str(model.tokenizer.decode([*seen[0][0], *seen[0][1]]))
    question = "Question: What do beavers build?\nAnswer:"
    assert text.startswith("<s><|user|>\nQuestion: ")
    assert text.count("<|user|>") == 2
    assert text.endswith(f"</s>\n<|user|>\n{question}\n<|assistant|>\ndams")
    with pytest.raises(InputError, match="arc_easy: this checkpoint has no chat template"):
        measure(GritModel.from_pretrained(folder / "other"), task, chat=True)


def test_answers_are_those_of_the_model(folder: Path) -> None:
    model = GritModel.from_pretrained(folder / "model")
    (task,) = load_tasks(folder / "data", ["nq_open"], Options())
    made = measure(model, task, chat=False)
    free = model.complete(task.written[0].prompt.text(), max_new_tokens=256).text
    ends = [free.find(stop) for stop in task.stop if stop in free]
    assert made.answers == [free[: min(ends)] if ends else free]
    assert set(made.scores) == {"exact_match", "f1", "cut"}
    assert made.scores["cut"] == 0.0


def test_a_tie_between_names_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="a task is named twice"):
        run(settings(folder, tasks=("copa", "copa")))
    with pytest.raises(InputError, match="nothing to measure"):
        Settings(models=("m",))
    with pytest.raises(InputError, match="names no task"):
        split_names(" ,")
    with pytest.raises(InputError, match="no task's files are in"):
        run(settings(folder, tasks=None, shared=folder / "nowhere"))
    assert split_names("a, b,") == ("a", "b")


def test_tables_hold_every_figure(folder: Path) -> None:
    outcomes = run(
        settings(folder, models=(f"a={folder / 'model'}", f"b={folder / 'other'}"), tasks=("mmlu", "arc_easy", "copa"))
    )
    text = tables(outcomes)
    lines = [line for line in text.splitlines() if line.startswith("| mmlu | acc ")]
    assert len(lines) == 1
    assert lines[0].split(" | ")[2:4] == ["3", "0.250"]
    assert f"| {outcomes[0].score:.3f} | {outcomes[3].score:.3f} |" in lines[0]
    assert "acc:abstract_algebra" not in text
    average = next(line for line in text.splitlines() if line.startswith("| **average**"))
    assert f"{(outcomes[0].score + outcomes[1].score) / 2:.3f}" in average
    assert "**common sense**" in text


def test_notes_say_what_a_reader_must_know() -> None:
    fields: dict[str, Any] = {
        "kind": "generation", "task_type": "x", "version": "1", "model": "m", "fingerprint": "f", "metric": "acc",
        "scores": {"acc": 1.0}, "seconds": 1.0,
    }  # fmt: skip
    made = notes(
        [
            Outcome(task="ifeval", settings={"limit": 5, "seed": 0, "left_out": {"a:b": 3}}, **fields),
            Outcome(task="copa", settings={"limit": 5, "seed": 0}, **fields),
        ]
    )
    assert made == [
        "At most 5 examples of each task (seed 0).",
        "ifeval without the prompts that ask for what cannot be checked here: a:b (3).",
    ]


def test_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRITKIT_SHARED", str(folder))
    arguments = ["generation", "-m", f"tiny={folder / 'model'}", "--tasks", "copa,gsm8k,humaneval", "--allow-code"]
    arguments += ["--num-fewshot", "0", "--limit", "2", "--perplexity", str(folder / "text.txt"), "--window", "64"]
    arguments += ["--output", str(folder / "out"), "--results", str(folder / "RESULTS.md")]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "| copa | acc | 2 | 0.500 |" in shown.stdout
    assert "tokens, window 64" in shown.stdout
    written = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "## eval generation" in written
    assert (
        f"`gritkit eval generation --model tiny=model --tasks copa,gsm8k,humaneval --shared {folder.name} "
        "--num-fewshot 0 --limit 2 --allow-code --perplexity text.txt --window 64`"
    ) in written
    again = CliRunner().invoke(app, [*arguments, "--format", "json"], catch_exceptions=False)
    made = json.loads(again.stdout)
    assert [one["task"] for one in made] == ["copa", "gsm8k", "humaneval", f"perplexity of {folder.name}/text.txt"]
    assert made[2]["metric"] == "pass@1"
    assert len(OutcomeFolder(folder / "out").all()) == 4


def test_tasks_of_the_harness(folder: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    own = folder / "own.yaml"
    own.write_text(
        "task: own\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs:\n  data_files:\n    test: {folder}/data/gen_eval/arc_easy/test.jsonl.gz\n"
        f"  cache_dir: {folder}/cache\n"
        'doc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\nmetadata:\n  version: 1.0\n",
        encoding="utf-8",
    )
    outcomes = run(settings(folder, tasks=("arc_easy", str(own)), output=folder / "out"))
    local, theirs = outcomes
    assert theirs.examples == local.examples
    assert theirs.scores["acc"] == local.scores["acc"]
    assert theirs.scores["acc_norm"] == local.scores["acc_norm"]
    assert theirs.version.startswith("lm-eval ")
    data = folder / "data/gen_eval/arc_easy/test.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(data.read_bytes()).splitlines()]
    flipped = [{**row, "answer": (row["answer"] + 1) % len(row["choices"])} for row in rows]
    data.write_bytes(gzip.compress("\n".join(map(json.dumps, flipped)).encode()))
    shutil.rmtree(folder / "cache")
    changed = run(settings(folder, tasks=(str(own),), output=folder / "out"))[0]
    assert changed.examples != theirs.examples, "a definition's data are not in its version"


@pytest.mark.slow
def test_tasks_that_cannot_be_had(folder: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(InputError, match=r"no task 'hellaswagg', neither in files nor in lm-eval .*'hellaswag'"):
        run(settings(folder, tasks=("copa", "hellaswagg")))
    with pytest.raises(GritkitError, match=r"the data of wikitext cannot be had .* is the machine online") as caught:
        run(settings(folder, tasks=("wikitext",)))
    assert "\n" not in str(caught.value)


def test_a_choice_that_does_not_fit_is_wrong(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [dict(TASKS["gen_eval/piqa/validation"][0]), {"goal": "a", "choices": ["b", "x y " * 400], "answer": 0}]
    write(folder / "data", "gen_eval/piqa/validation", rows)
    (task,) = load_tasks(folder / "data", ["piqa"], Options())
    made = measure(GritModel.from_pretrained(folder / "model"), task, chat=False)
    assert made.examples[1] == 0.0
    assert "piqa: 1 of the examples do not fit the model's context and count as wrong" in caplog.text
