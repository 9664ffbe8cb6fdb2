from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from gritkit.cli import ask
from gritkit.kv.dockv import Join
from gritkit.model import GritModel
from gritkit.rag import Document, Rag
from gritkit.rag.documents import Reuse, Search
from tests.cli.conftest import Result

pytest.importorskip("lancedb")
Run = Callable[..., Result]
QUESTION = "what does the fox do"
DOCUMENTS = [
    Document("the quick brown fox jumps over the lazy dog", id="fox", metadata={"year": 2020, "lang": "en"}),
    Document("attention sees what the plan shows it", id="plan", metadata={"year": 2021, "lang": "en"}),
    Document("der Fuchs schläft", id="fuchs", metadata={"year": 2020, "lang": "de"}),
    Document("zebras and other animals", id="zebra", metadata={"year": "2020"}),
]


@pytest.fixture(scope="module")
def base(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask") / "kb"
    with Rag.open(folder, GritModel.from_pretrained(model_folder, device="cpu"), codec="exact") as rag:
        rag.add(DOCUMENTS)
    return folder


def answer(run: Run, base: Path, *args: str) -> dict[str, Any]:
    result = run("ask", base, QUESTION, "--max-new-tokens", "4", "--format", "json", *args)
    assert (result.code, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.out)
    return found


def ids(found: dict[str, Any]) -> set[str]:
    return {hit["id"] for hit in found["sources"]}


@pytest.mark.parametrize(
    ("option", "values"),
    [(ask.Reuse, ("auto", *get_args(Reuse))), (ask.Join, get_args(Join)), (ask.Search, get_args(Search))],
)
def test_the_options_are_those_of_the_library(option: Any, values: Sequence[str]) -> None:
    assert {one.value for one in option} == set(values)


@pytest.mark.parametrize("reuse", ["cached", "linked", "off", "query", "query_doc", "doc_query"])
def test_every_way_is_taken_and_its_reason_said(run: Run, base: Path, reuse: str) -> None:
    result = run("ask", base, QUESTION, "--reuse", reuse, "--max-new-tokens", "2")
    assert result.code == 0
    assert f"reuse {reuse} (asked for): " in result.stderr


def test_the_reason_of_auto_is_said(run: Run, base: Path) -> None:
    result = run("ask", base, QUESTION, "--max-new-tokens", "2")
    assert "reuse cached (no gate has judged this model): " in result.stderr
    first = run("ask", base, QUESTION, "--reuse", "prefix", "--max-new-tokens", "2")
    assert "reuse off (its beginning was not read before): 0 of" in first.stderr


def test_joins_and_link_tokens_reach_the_answer(run: Run, base: Path) -> None:
    whole, text = (answer(run, base, "--join", join, "--reuse", "cached") for join in ("whole", "text"))
    assert whole["usage"]["prompt_tokens"] > text["usage"]["prompt_tokens"]
    one, four = (answer(run, base, "--reuse", "linked", "--link-tokens", k) for k in ("1", "4"))
    assert one["usage"]["cached_tokens"] - four["usage"]["cached_tokens"] == 2 * 3


def test_searches(run: Run, base: Path) -> None:
    with_words = json.loads(run("ask", base, "zebras?", "--search", "text", "--format", "json").out)
    assert ids(with_words) == {"zebra"}
    hybrid = json.loads(run("ask", base, "zebras?", "--search", "hybrid", "-k", "1", "--format", "json").out)
    assert hybrid["sources"][0]["score"] > 1 / 61  # in both rankings
    reranked = answer(run, base, "--rerank", "-k", "2")
    assert len(reranked["sources"]) == 2
    assert all(0 < hit["score"] < 1 for hit in reranked["sources"])
    assert answer(run, base, "-k", "2")["sources"][0]["score"] != reranked["sources"][0]["score"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["lang=en"], {"fox", "plan"}),
        (["year=2020"], {"fox", "fuchs"}),
        (["year=2020", "lang=de"], {"fuchs"}),
        (['year="2020"'], {"zebra"}),
        (['lang="en"', "year=2021"], {"plan"}),
    ],
)
def test_filters(run: Run, base: Path, where: list[str], expected: set[str]) -> None:
    assert ids(answer(run, base, *(part for one in where for part in ("--where", one)))) == expected


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--where", "lang"], 2, "'lang' is not KEY=VALUE"),
        (["--where", "lang=fr"], 1, "no document suits where={'lang': 'fr'}"),
        (["--link-tokens", "4"], 2, "goes with --reuse linked alone"),
        (["--link-tokens", "0", "--reuse", "linked"], 2, "--link-tokens"),
        (["--reuse", "always"], 2, "--reuse"),
        (["--join", "bos"], 2, "--join"),
        (["--search", "words"], 2, "--search"),
        (["--temperature", "-1"], 1, "temperature"),
    ],
)
def test_wrong_options_are_one_line(run: Run, base: Path, args: list[str], code: int, says: str) -> None:
    result = run("ask", base, QUESTION, *args)
    assert result.code == code
    assert says in result.error
    assert result.out == ""


def test_places_without_a_knowledge_base(run: Run, base: Path) -> None:
    nothing = run("ask", "kb", QUESTION)
    assert (nothing.code, Path("kb").exists()) == (1, False)
    assert "make one with 'gritkit index kb PATHS...'" in nothing.error
    server = run("ask", "postgresql://me:secret@127.0.0.1:9/db?connect_timeout=2", QUESTION)
    assert server.code == 1
    assert "127.0.0.1" in server.error
    assert "secret" not in server.error
    unknown = run("ask", "ftp://host/kb", QUESTION)
    assert unknown.code == 1
    assert "ftp" in unknown.error


def test_an_empty_question_is_refused(run: Run, base: Path) -> None:
    assert "empty" in run("ask", base, "  ").error
    assert "no question" in run("ask", base, stdin=b"\n").error
