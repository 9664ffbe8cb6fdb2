from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from gritkit.errors import InputError, RecordError
from gritkit_eval.generation import answers
from gritkit_eval.generation.choices import Asked, shortest_is_right
from gritkit_eval.generation.code import program
from gritkit_eval.generation.local import LOCAL, Options, drawn, kept, load_tasks
from gritkit_eval.generation.rows import Row
from gritkit_eval.generation.tasks import Prompt, Task
from tests.eval.generation_data import BBH_PROMPT, TASKS, write, write_all

NO_CODE = [name for name in LOCAL if name not in ("humaneval", "ifeval")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_all(tmp_path) / "data"


def one(data: Path, name: str, **options: Any) -> Task:
    return load_tasks(data, [name], Options(**options))[0]


# -- what there is ----------------------------------------------------------------------------------------------------


def test_all_that_is_there_is_taken(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = [task.name for task in load_tasks(data, None, Options())]
    assert [name for name in found if name != "ifeval"] == NO_CODE
    assert "humaneval is left out" in caplog.text
    (data / "gen_eval/copa/validation.jsonl.gz").unlink()
    assert "copa" not in [task.name for task in load_tasks(data, None, Options(allow_code=True))]
    assert "humaneval" in [task.name for task in load_tasks(data, None, Options(allow_code=True))]


def test_what_is_asked_for_by_name_must_be_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no task in files is called 'mmlu2'; there are mmlu, arc_easy"):
        load_tasks(data, ["mmlu2"], Options())
    with pytest.raises(InputError, match=r"no such file: .*gen_eval/copa/validation\.jsonl\.gz"):
        load_tasks(tmp_path / "none", ["copa"], Options())
    with pytest.raises(InputError, match="allow it with --allow-code"):
        load_tasks(data, ["humaneval"], Options())


def test_a_version_follows_from_the_data(data: Path) -> None:
    before = {task.name: task.version for task in load_tasks(data, NO_CODE, Options())}
    assert before == {task.name: task.version for task in load_tasks(data, NO_CODE, Options())}
    assert (
        len(set(before.values())) >= len(NO_CODE) - 2
    )  # arc_easy, arc_challenge and openbookqa have the same rows here
    write(data, "gen_eval/gsm8k/train", TASKS["gen_eval/gsm8k/train"][:7])
    after = {task.name: task.version for task in load_tasks(data, NO_CODE, Options())}
    assert {name for name in before if before[name] != after[name]} == {"gsm8k", "multiarith"}


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("gen_eval/mmlu/test", {"answer": 4}, "answer is not the number of a choice, 0 to 3: 4"),
        ("gen_eval/mmlu/test", {"answer": True}, "answer is not the number"),
        ("gen_eval/mmlu/test", {"choices": ["a"]}, "choices is no choice: there is one"),
        ("gen_eval/mmlu/test", {"choices": ["a", " "]}, "choices is empty"),
        ("gen_eval/mmlu/test", {"choices": "abc"}, "choices is not a list"),
        ("gen_eval/mmlu/test", {"question": None}, "question is not text: None"),
        ("gen_eval/mmlu/test", {"subject": ""}, "subject is empty"),
        ("gen_eval/winogrande/validation", {"sentence": "no blank"}, "sentence has no blank '_' with words after it"),
        ("gen_eval/winogrande/validation", {"sentence": "at its end _"}, "sentence has no blank '_'"),
        ("gen_eval/copa/validation", {"relation": "why"}, "relation is neither cause nor effect"),
        ("gen_eval/boolq/validation", {"answer": 1}, "answer is neither true nor false: 1"),
        ("gen_eval/gsm8k/test", {"answer": "5"}, "answer has no '#### number' at its end: '5'"),
        ("gen_eval/multiarith/test", {"answer": "seven"}, "answer is not a number"),
        ("gen_eval/multiarith/test", {"answer": "nan"}, "answer is not a finite number"),
        ("gen_eval/bbh/test", {"task": "other"}, "task has no worked examples: 'other'"),
        ("gen_eval/bbh/cot_prompts", {"prompt": "x"}, "no worked example in 'x'"),
        ("gen_eval/bbh/cot_prompts", {"prompt": "x\n\nQ: y"}, "a worked example lacks"),
        ("qa/nq_open/dev", {"answer": []}, r"answer is not a list of texts: \[\]"),
        ("gen_eval/truthfulqa/test", {"incorrect_answers": [3]}, "incorrect_answers is not text"),
    ],
)  # fmt: skip
def test_wrong_data_is_named_with_its_line(data: Path, file: str, row: dict[str, Any], message: str) -> None:
    good = list(TASKS[file])
    path = write(data, file, [*good, {**good[0], **row}])
    with pytest.raises(RecordError, match=f"{path.name}:{len(good) + 1}: .*{message}"):
        load_tasks(data, [file.split("/")[1]], Options())
    with pytest.raises(RecordError):  # also where nobody asked for it by name
        load_tasks(data, None, Options())


def test_damaged_files_are_named(data: Path) -> None:
    path = data / "gen_eval/copa/validation.jsonl.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match=r"validation\.jsonl\.gz.*ends too early"):
        one(data, "copa")
    write(data, "gen_eval/copa/validation", [])
    with pytest.raises(RecordError, match="the file has no examples"):
        one(data, "copa")
    write(data, "gen_eval/copa/validation", [3, {"premise": "a"}])
    with pytest.raises(RecordError, match=r"(?s):1: the record is int.*:2: the record has no relation"):
        one(data, "copa")


# -- which examples, which shots --------------------------------------------------------------------------------------


def test_a_limit_keeps_the_same_examples_for_a_seed() -> None:
    everything = list(range(100))
    some = kept(everything, Options(limit=10))
    assert some == sorted(some) == kept(everything, Options(limit=10))
    assert len(some) == 10
    assert some != kept(everything, Options(limit=10, seed=1))
    assert kept(everything, Options(limit=100)) == everything


def test_solved_examples_are_never_the_example_itself() -> None:
    pool = [Row(number, number, {}) for number in range(5)]
    for number in range(5):
        got = drawn(number, pool, 4, Options(), same=True)
        assert sorted(row.number for row in got) == [other for other in range(5) if other != number]
        assert got == drawn(number, pool, 4, Options(), same=True)
    with pytest.raises(InputError, match="num_fewshot=5 and there are 4 solved examples"):
        drawn(0, pool, 5, Options(), same=True)
    assert drawn(0, pool, 3, Options()) != drawn(1, pool, 3, Options())


def test_shots_do_not_depend_on_the_limit(data: Path) -> None:
    everything = {p.prompt for p in one(data, "gsm8k", num_fewshot=3).written}
    assert {p.prompt for p in one(data, "gsm8k", num_fewshot=3, limit=1).written} < everything


def test_the_first_examples_of_a_subject_are_its_shots(data: Path) -> None:
    example = one(data, "mmlu", num_fewshot=1).choices[0]
    assert example.prompts[0].shots == (("What is 1 + 1?  Again?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:", "C"),)
    assert example.subset == "abstract_algebra"
    with pytest.raises(InputError, match="num_fewshot=2 and world_religions has 1 solved examples"):
        one(data, "mmlu", num_fewshot=2)


def test_a_fixed_prompt_says_that_it_is_one(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert one(data, "truthfulqa", num_fewshot=3).num_fewshot == 0
    assert "num_fewshot=3 has no effect" in caplog.text
    with pytest.raises(InputError, match="num_fewshot=4 and BIG-Bench Hard has 3 worked examples"):
        one(data, "bbh", num_fewshot=4)


def test_a_prompt_is_a_text_or_a_chat() -> None:
    prompt = Prompt(question="Q2", description="D\n\n", shots=(("Q1", "A1"),))
    assert prompt.text() == "D\n\nQ1 A1\n\nQ2"
    assert [(one["role"], one["content"]) for one in prompt.messages()] == [
        ("system", "D\n\n"), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2"),
    ]  # fmt: skip


# -- grading ----------------------------------------------------------------------------------------------------------


def test_choices_are_graded_by_sum_and_by_length(data: Path) -> None:
    example = one(data, "arc_easy").choices[0]
    assert example.answers == ("dams", "lamps", "a long poem", "cars")
    assert example.grade([-2.0, -2.0, -3.0, -9.0]) == {"acc": 1.0, "acc_norm": 0.0}
    assert example.grade([-4.0, -3.0, -100.0, -9.0]) == {"acc": 0.0, "acc_norm": 0.0}
    assert example.grade([-math.inf, -math.inf, -math.inf, -math.inf])["acc"] == 1.0


def test_truthfulness_is_graded_as_its_authors_do(data: Path) -> None:
    example = one(data, "truthfulqa").choices[0]
    assert example.answers == ("Some fish glide.", "No.", "Few do.", "Yes.", "Always.")
    graded = example.grade([math.log(p) for p in (0.2, 0.1, 0.1, 0.15, 0.25)])
    assert graded == {"mc1": 0.0, "mc2": pytest.approx(0.4 / 0.8)}
    assert example.grade([-1.0, -9.0, -9.0, -1.1, -1.2])["mc1"] == 1.0
    assert example.grade([-2000.0, -2001.0, -2001.0, -2000.5, -2003.0])["mc2"] == pytest.approx(0.7256, abs=1e-4)


def test_the_share_of_guesses(data: Path) -> None:
    assert one(data, "arc_easy").chance == pytest.approx((1 / 4 + 1 / 3 + 1 / 4) / 3)
    assert one(data, "truthfulqa").chance is None


def test_what_the_shortest_answer_gives(data: Path) -> None:
    def asked(gold: int, *answers: str) -> float:
        return shortest_is_right(Asked.of("?", answers, gold))

    assert [asked(0, "no", "yes"), asked(1, "no", "yes")] == [1.0, 0.0]
    assert [asked(2, "ab", "abc", "cd"), asked(1, "ab", "abc", "cd")] == [0.5, 0.0]
    assert one(data, "boolq").shortest == 0.0  # its one answer is yes
    assert one(data, "mmlu").shortest == one(data, "mmlu").chance == 0.25  # letters
    assert one(data, "truthfulqa").shortest is None


def test_real_tasks_in_which_knowing_nothing_is_not_chance(shared: Path) -> None:
    """As choices.py says of them."""
    if not (shared / "data/gen_eval/openbookqa").is_dir():
        pytest.skip("no OpenBookQA in the shared folder")
    tasks = load_tasks(shared / "data", ["openbookqa", "copa", "boolq"], Options())
    assert [round(task.shortest or 0, 2) for task in tasks] == [0.15, 0.56, 0.38]


@pytest.mark.parametrize(
    ("text", "last", "stated"),
    [
        ("so 3 + 4 = 7.\n#### 7", 1, 1),
        ("so it is 7", 1, 0),
        ("7 or 8", 0, 0),
        ("#### 7 and then 8", 0, 1),
        ("", 0, 0),
        ("none", 0, 0),
        ("$7.", 1, 0),
    ],
)
def test_word_problems_by_their_last_number(data: Path, text: str, last: int, stated: int) -> None:
    grade = one(data, "multiarith", num_fewshot=0).written[0].grade
    assert grade(text) == {"exact_match/flexible-extract": last, "exact_match/strict-match": stated}


def test_large_and_negative_numbers(data: Path) -> None:
    grades = [example.grade for example in one(data, "gsm8k", num_fewshot=0).written]
    assert grades[1]("it is 1234.") == {"exact_match/flexible-extract": 1.0, "exact_match/strict-match": 0.0}
    assert grades[1]("#### 1,234")["exact_match/strict-match"] == 1.0
    assert grades[2]("#### -2") == {"exact_match/flexible-extract": 1.0, "exact_match/strict-match": 1.0}
    assert grades[2]("#### 2") == {"exact_match/flexible-extract": 0.0, "exact_match/strict-match": 0.0}


def test_worked_examples_are_read_from_their_file() -> None:
    assert answers.worked(BBH_PROMPT) == answers.Worked(
        "Evaluate the result of a random Boolean expression.\n\n",
        (
            ("Q: not True is\nA: Let's think step by step.\n", "It is False. So the answer is False."),
            ("Q: True is\nA: Let's think step by step.\n", "Plain.\nSo the answer is True."),
            ("Q: False is\nA: Let's think step by step.\n", "So the answer is False."),
        ),
    )


def test_hard_answers(data: Path) -> None:
    example = one(data, "bbh", num_fewshot=1).written[0]
    assert example.prompt.text() == (
        "Evaluate the result of a random Boolean expression.\n\nQ: not True is\nA: Let's think step by step.\n"
        "It is False. So the answer is False.\n\n"
        "Q: not False is\nA: Let's think step by step.\n"
    )
    assert example.grade("It is. So the answer is True.") == {"exact_match": 1.0}
    assert example.grade("It is. So the answer is True") == {"exact_match": 0.0}  # as the harness has it
    assert example.grade("True") == {"exact_match": 0.0}


def test_open_questions(data: Path) -> None:
    example = one(data, "nq_open", num_fewshot=1).written[0]
    assert example.prompt.text() == "Answer these questions:\n\nQ: who sleeps?\nA: owls\nQ: who built the dam?\nA:"
    assert example.grade(" Beavers!") == {"exact_match": 1.0, "f1": 1.0}
    assert example.grade(" two beavers")["f1"] == pytest.approx(2 / 3)


def test_code_is_run_with_its_tests(data: Path) -> None:
    example = one(data, "humaneval", allow_code=True).written[0]
    assert example.grade("    return a + b\n") == {"pass@1": 1.0}
    assert example.grade("    return 3\n") == {"pass@1": 0.0}
    assert example.grade("    return a + b\nimport sys; sys.exit(0)\n") == {"pass@1": 0.0}
    row = Row(0, 1, TASKS["gen_eval/humaneval/test"][0])
    assert "```" in program(row, "x\n```\ny", chat=False)
    in_chat = one(data, "humaneval", allow_code=True, chat=True).written[0]
    assert in_chat.prompt.opening.endswith("```python\ndef add(a, b):\n\n")
    assert in_chat.grade("    return a + b\n```\nThis adds.") == {"pass@1": 1.0}
