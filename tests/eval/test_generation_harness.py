"""The tasks in files against the harness's own tasks: the same requests for the same rows, the same grades."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

import lm_eval
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from gritkit import GritModel
from gritkit_eval.generation.local import Options, load_tasks
from gritkit_eval.generation.measure import measure
from gritkit_eval.generation.tasks import Task
from tests.eval.generation_data import TASKS, write, write_all
from tests.models import grit_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's and its libraries'

ROOT = Path(next(iter(lm_eval.__path__))) / "tasks"
Rows = Sequence[dict[str, Any]]


def labelled(row: dict[str, Any]) -> dict[str, Any]:
    """As ARC, OpenBookQA and CommonsenseQA publish their choices."""
    letters = "ABCDEFGHIJ"[: len(row["choices"])]
    return {
        "question": row["question"], "question_stem": row["question"], "answerKey": letters[row["answer"]],
        "choices": {"text": row["choices"], "label": list(letters)},
    }  # fmt: skip


def same(row: dict[str, Any]) -> dict[str, Any]:
    return row


THEIRS: dict[str, tuple[str, str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "mmlu": ("mmlu/default/mmlu_abstract_algebra.yaml", "gen_eval/mmlu/test", same),
    "arc_easy": ("arc/arc_easy.yaml", "gen_eval/arc_easy/test", labelled),
    "arc_challenge": ("arc/arc_challenge.yaml", "gen_eval/arc_challenge/test", labelled),
    "openbookqa": ("openbookqa/openbookqa.yaml", "gen_eval/openbookqa/test", labelled),
    "commonsense_qa": ("commonsense_qa/default.yaml", "gen_eval/commonsense_qa/validation", labelled),
    "piqa": (
        "piqa/piqa.yaml", "gen_eval/piqa/validation",
        lambda row: {"goal": row["goal"], "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["answer"]},
    ),
    "social_iqa": (
        "siqa/siqa.yaml", "gen_eval/social_iqa/validation",
        lambda row: {
            **row, "label": str(row["answer"] + 1),
            **{f"answer{letter}": choice for letter, choice in zip("ABC", row["choices"], strict=True)},
        },
    ),
    "winogrande": (
        "winogrande/default.yaml", "gen_eval/winogrande/validation",
        lambda row: {**row, "answer": str(row["answer"] + 1)},
    ),
    "copa": (
        "super_glue/copa/default.yaml", "gen_eval/copa/validation",
        lambda row: {
            "premise": row["premise"], "question": row["relation"], "label": row["answer"],
            "choice1": row["choices"][0], "choice2": row["choices"][1],
        },
    ),
    "boolq": (
        "super_glue/boolq/default.yaml", "gen_eval/boolq/validation", lambda row: {**row, "label": int(row["answer"])},
    ),
    "gsm8k": ("gsm8k/gsm8k.yaml", "gen_eval/gsm8k/test", same),
    "bbh": ("bbh/cot_fewshot/boolean_expressions.yaml", "gen_eval/bbh/test", same),
    "nq_open": ("nq_open/nq_open.yaml", "qa/nq_open/dev", same),
}  # fmt: skip


def their_task(name: str, folder: Path) -> Any:
    """The harness's task on rows in the form that it downloads; without solved examples, which it draws anew."""
    yaml, file, form = THEIRS[name]
    config = load_yaml(ROOT / yaml, resolve_func=True)
    rows = [form(row) for row in TASKS[file] if row.get("subject", "abstract_algebra") == "abstract_algebra"]
    path = str(write(folder, f"theirs/{name}", rows))
    splits = {config.get(split) for split in ("training_split", "validation_split", "test_split", "fewshot_split")}
    config |= {
        "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: path for split in splits if split}, "cache_dir": str(folder / "cache"),
        },
    }  # fmt: skip
    for field in ("tag", "task_alias"):
        config.pop(field, None)
    return TaskManager(include_defaults=False).load([config])


def our_requests(task: Task) -> list[tuple[str, Any]]:
    made: list[tuple[str, Any]] = [
        (prompt.text(), f"{prompt.delimiter}{answer}")
        for example in task.choices
        if example.subset in (None, "abstract_algebra")
        for prompt, answer in zip(example.prompts, example.answers, strict=True)
    ]
    return made + [(example.prompt.text(), list(task.stop)) for example in task.written]


@pytest.mark.parametrize("name", THEIRS)
def test_requests_are_theirs(name: str, tmp_path: Path) -> None:
    (task,) = load_tasks(write_all(tmp_path) / "data", [name], Options(num_fewshot=0))
    loaded = their_task(name, tmp_path)
    (theirs,) = loaded["tasks"].values()
    theirs.set_config("num_fewshot", 0)
    theirs.build_all_requests(rank=0, world_size=1)
    want = [one.args for one in sorted(theirs.instances, key=lambda one: (one.doc_id, one.idx))]
    if task.written:
        limits = {options.get("max_gen_toks", 256) for _, options in want}
        assert limits == {task.max_new_tokens}
        want = [(text, options["until"]) for text, options in want]
    assert our_requests(task) == want


@pytest.mark.parametrize("name", ["arc_easy", "openbookqa", "copa", "boolq", "mmlu", "gsm8k", "bbh", "winogrande"])
def test_scores_are_theirs(name: str, tmp_path: Path) -> None:
    grit_model("llama").save_pretrained(tmp_path / "model")
    (task,) = load_tasks(write_all(tmp_path) / "data", [name], Options(num_fewshot=0))
    loaded = their_task(name, tmp_path)
    (theirs,) = loaded["tasks"].values()
    theirs.set_config("num_fewshot", 0)
    if task.written:  # as much as the tiny model holds
        theirs.set_config("generation_kwargs", {"max_gen_toks": 16}, update=True)
        task = Task(**{**vars(task), "max_new_tokens": 16})
    model = HFLM(pretrained=str(tmp_path / "model"), device="cpu", batch_size=2)
    samples = evaluate(model, loaded, bootstrap_iters=0)["samples"]
    (of_task,) = samples.values()
    got = measure(GritModel.from_pretrained(tmp_path / "model"), task, chat=False)
    if task.choices:
        want = [sample["acc"] for sample in of_task]
    else:
        kind = {"gsm8k": "flexible-extract", "bbh": "get-answer"}[name]
        want = [sample["exact_match"] for sample in of_task if sample["filter"] == kind]
        texts = [sample["resps"][0][0] for sample in of_task if sample["filter"] == kind]
        assert got.answers == texts
        assert any(texts)
    ours = [value for value, subset in zip(got.examples, task.subsets, strict=True) if subset != "world_religions"]
    assert ours == want


ANSWERS = [
    "so 5.\n#### 5", "#### 5", "5", "it is $5.00", "5.", "-5", "#### -2 and 3", "1,234", "#### 1,234.", "", "x", "$ 5",
    "is 12 or 5", "#### 5.0", "So the answer is True.", "the answer is True", "the answer is (B).",
    "The answer is True.", "the answer is False.\nthe answer is True.",
]  # fmt: skip


@pytest.mark.parametrize("name", ["gsm8k", "bbh"])
def test_answers_are_found_as_they_find_them(name: str, tmp_path: Path) -> None:
    (task,) = load_tasks(write_all(tmp_path) / "data", [name], Options(num_fewshot=0))
    loaded = their_task(name, tmp_path)
    (theirs,) = loaded["tasks"].values()
    docs = list(theirs.test_docs())
    for example, doc in zip(task.written, docs, strict=True):
        for text in ANSWERS:
            graded = example.grade(text)
            for filters in theirs._filters:
                resps = [[text]]
                for chosen in filters.filters:
                    resps = list(chosen().apply(resps, [doc]))
                want = theirs.process_results(doc, resps)["exact_match"]
                mine = f"exact_match/{filters.name}" if name == "gsm8k" else "exact_match"
                assert graded[mine] == want, (text, filters.name)


def test_the_worked_examples_of_every_hard_task_are_theirs(shared: Path) -> None:
    if not (shared / "data/gen_eval/bbh").is_dir():
        pytest.skip("no BIG-Bench Hard in the shared folder")
    (task,) = load_tasks(shared / "data", ["bbh"], Options())
    seen: dict[str, Any] = {str(example.subset): example for example in task.written}
    assert len(seen) == 27
    different = []
    for name, example in seen.items():
        config = load_yaml(ROOT / f"bbh/cot_fewshot/{name}.yaml", resolve_func=True)
        shots = tuple(
            (config["doc_to_text"].replace("{{input}}", one["input"]), one["target"])
            for one in config["fewshot_config"]["samples"]
        )
        if (config["description"], shots) != (example.prompt.description, example.prompt.shots):
            different.append(name)
    assert different == []


def test_instructions_are_checked_by_their_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for package in ("nltk", "langdetect", "immutabledict"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    data = write_all(tmp_path) / "data"
    (task,) = load_tasks(data, ["ifeval"], Options())
    if task.left_out:
        assert task.left_out == {"length_constraints:number_sentences": 1}
        assert "without the prompts that ask for length_constraints:number_sentences" in caplog.text
    first, second = task.written[:2]
    assert first.grade("no commas here")["prompt_strict"] == 1.0
    assert first.grade("one, two")["prompt_strict"] == 0.0
    graded = [first.grade("one, two"), second.grade("one two"), second.grade("one")]
    assert task.total(graded) == {
        "prompt_strict": pytest.approx(1 / 3), "prompt_loose": pytest.approx(1 / 3),
        "instruction_strict": pytest.approx(3 / 5), "instruction_loose": pytest.approx(3 / 5),
    }  # fmt: skip
    assert os.environ.get("HF_HUB_OFFLINE")
