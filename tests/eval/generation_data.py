"""Small files of every task in the layout that ``gritkit eval generation`` reads, for tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCIENCE = [
    {"id": "a", "question": "What do beavers build?", "choices": ["dams", "lamps", "a long poem", "cars"], "answer": 0},
    {"id": "b", "question": "Where do owls sleep?", "choices": ["at sea", "in trees", "on ice"], "answer": 1},
    {"id": "c", "question": "Who reads?", "choices": ["stones", "people", "rain", "fog"], "answer": 1},
]
MMLU = [
    {"subject": "abstract_algebra", "question": " What is 1 + 1? ", "choices": ["0", "1", "2", "3"], "answer": 2},
    {"subject": "abstract_algebra", "question": "What is 2 + 1?", "choices": ["3", "1", "2", "0"], "answer": 0},
    {"subject": "world_religions", "question": "Who prays?", "choices": ["cats", "dogs", "some", "ice"], "answer": 2},
]
MMLU_DEV = [{**row, "question": f"{row['question']} Again?"} for row in (MMLU[2], MMLU[0], MMLU[1])]
GSM8K = [
    {"question": "Ann has 2 eggs and finds 3. How many?", "answer": "2 + 3 = <<2+3=5>>5 eggs.\n#### 5"},
    {"question": "A farm has 1,000 hens and buys 234.", "answer": "1,000 + 234 = 1,234\n#### 1,234"},
    {"question": "Bob owes $7 and pays $9.", "answer": "7 - 9 = -2\n#### -2"},
]
BBH_PROMPT = (
    "CANARY\n-----\nEvaluate the result of a random Boolean expression.\n\nQ: not True is\n"
    "A: Let's think step by step.\nIt is False. So the answer is False.\n\nQ: True is\n"
    "A: Let's think step by step.\nPlain.\nSo the answer is True."
    "\n\nQ: False is\nA: Let's think step by step.\nSo the answer is False."
)
TASKS: dict[str, Sequence[dict[str, Any]]] = {
    "gen_eval/mmlu/test": MMLU,
    "gen_eval/mmlu/dev": MMLU_DEV,
    "gen_eval/arc_easy/test": SCIENCE,
    "gen_eval/arc_easy/train": SCIENCE[::-1],
    "gen_eval/arc_challenge/test": SCIENCE,
    "gen_eval/sciq/validation": [{**SCIENCE[0], "support": "  They build."}, {**SCIENCE[1], "support": ""}],
    "gen_eval/truthfulqa/test": [
        {
            "question": "Do fish fly?", "best_answer": "Some fish glide",
            "correct_answers": ["Some fish glide", "No", "Few do"], "incorrect_answers": ["Yes", "Always.", "Yes "],
        }
    ],
    "gen_eval/openbookqa/test": SCIENCE,
    "gen_eval/commonsense_qa/validation": [
        {"question": "Where is a door?", "choices": ["bank", "sea", "sky", "cup", "pen"], "answer": 0}
    ],
    "gen_eval/hellaswag/validation_1k": [
        {"context": "Cooking: He cuts.", "choices": ["He eats.", "It flies.", "No.", "We sing."], "answer": 0}
    ],
    "gen_eval/piqa/validation": [{"goal": "Open a jar", "choices": ["Turn the lid.", "Eat it."], "answer": 0}],
    "gen_eval/social_iqa/validation": [
        {"context": "Tracy left.", "question": "Why?", "choices": ["to rest", "to fly", "to bark"], "answer": 0}
    ],
    "gen_eval/winogrande/validation": [
        {"sentence": "Ann met Eve, and _ was glad.", "option1": "Ann", "option2": "Eve", "answer": 1}
    ],
    "gen_eval/copa/validation": [
        {"premise": "It rained.", "relation": "effect", "choices": ["The street got wet.", "He sang."], "answer": 0},
        {"premise": "He fell.", "relation": "cause", "choices": ["It was icy.", "He sang."], "answer": 0},
    ],
    "gen_eval/boolq/validation": [{"passage": "Ice melts.", "question": "does ice melt", "answer": True}],
    "gen_eval/gsm8k/test": GSM8K,
    "gen_eval/gsm8k/train": [{**GSM8K[index % 3], "question": f"Number {index}."} for index in range(8)],
    "gen_eval/multiarith/test": [{"question": "3 and 4 more?", "answer": "7"}],
    "gen_eval/bbh/cot_prompts": [{"task": "boolean_expressions", "prompt": BBH_PROMPT}],
    "gen_eval/bbh/test": [{"task": "boolean_expressions", "input": "not False is", "target": "True"}],
    "qa/nq_open/dev": [{"question": "who built the dam", "answer": ["the Beavers", "beavers"]}],
    "qa/nq_open/efficientqa_dev": [{"question": "who sleeps", "answer": ["owls"]}],
    "gen_eval/humaneval/test": [
        {
            "task_id": "HumanEval/0", "prompt": "def add(a, b):\n", "entry_point": "add",
            "canonical_solution": "    return a + b\n",
            "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n",
        }
    ],
    "gen_eval/ifeval/test": [
        {"key": 1, "prompt": "Use no commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {
            "key": 2, "prompt": "Two words and no commas.", "kwargs": [{}, {"relation": "at least", "num_words": 2}],
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        },
        {
            "key": 3, "prompt": "Three sentences.", "kwargs": [{"relation": "at least", "num_sentences": 3}],
            "instruction_id_list": ["length_constraints:number_sentences"],
        },
    ],
}  # fmt: skip


def write(folder: Path, name: str, rows: Sequence[Any]) -> Path:
    """One file; ``name`` without its suffix."""
    path = folder / f"{name}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_all(folder: Path) -> Path:
    """All files, in the folder ``data`` of what is returned."""
    for name, rows in TASKS.items():
        write(folder / "data", name, rows)
    return folder
