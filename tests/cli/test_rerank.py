from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gritkit.model import GritModel
from tests.cli.conftest import Result

Run = Callable[..., Result]
QUERY = "what does the fox do"
DOCUMENTS = ["attention sees what it is shown", "the fox jumps", "a dog is lazy", "東京"]


@pytest.mark.parametrize("how", ["arguments", "file", "stdin"])
@pytest.mark.parametrize("form", ["json", "jsonl", "table"])
def test_order_and_scores_are_the_models(run: Run, model_folder: Path, tmp_path: Path, how: str, form: str) -> None:
    lines = "\n".join(DOCUMENTS).encode()
    (tmp_path / "docs").write_bytes(lines)
    args = {"arguments": DOCUMENTS, "file": ["--file", "docs"], "stdin": ["-"]}[how]
    result = run("rerank", QUERY, *args, "--format", form, stdin=lines if how == "stdin" else b"")
    assert (result.code, result.stderr) == (0, "")
    ranked = GritModel.from_pretrained(model_folder).rerank(QUERY, DOCUMENTS)
    if form == "table":
        header, *rows = [line.split(maxsplit=2) for line in result.out.splitlines()]
        assert header == ["score", "index", "document"]
        assert [(int(index), text) for _, index, text in rows] == [(r.index, DOCUMENTS[r.index]) for r in ranked]
        return
    found = json.loads(result.out) if form == "json" else [json.loads(line) for line in result.out.splitlines()]
    assert found == [{"index": r.index, "score": r.score, "text": DOCUMENTS[r.index]} for r in ranked]


def test_top_n(run: Run) -> None:
    everything = json.loads(run("rerank", QUERY, *DOCUMENTS, "--format", "json").out)
    assert json.loads(run("rerank", QUERY, *DOCUMENTS, "--format", "json", "--top-n", "2").out) == everything[:2]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["", "a"], 1, "query is empty"),
        (["q", "a", ""], 1, "document 1 is empty"),
        (["q", "a", "--top-n", "0"], 1, "top_n=0"),
        (["q", "a " * 600], 1, "--truncate"),
        (["\udc80", "a"], 1, "surrogate"),
        (["q", "a", "--format", "npy"], 2, "npy"),
    ],
)
def test_wrong_input_is_one_line(run: Run, args: list[str], code: int, says: str) -> None:
    result = run("rerank", *args)
    assert result.code == code
    assert says in result.error


def test_truncate(run: Run) -> None:
    assert run("rerank", "q", "a " * 600, "--truncate").code == 0
