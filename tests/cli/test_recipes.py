from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Optional

import pytest

from gritkit.cli.recipes import convert, recipe_folder
from tests.cli.conftest import Result

Run = Callable[..., Result]
RECIPE = '''"""Make something small.

More about it."""
from __future__ import annotations
from pathlib import Path

def main(
    output: Path = Path("out"), *, steps: int = 10, rate: float = 0.5, fast: bool = False, base: str | None = None,
) -> None:
    print(repr((str(output), steps, rate, fast, base)))
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three recipes: one works, one has no main, one does not parse; and what is none."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "small.py").write_text(RECIPE)
    (folder / "mainless.py").write_text('"""Has no main."""\n')
    (folder / "broken.py").write_text("def main(:\n")
    (folder / "_private.py").write_text("")
    (folder / "notes.md").write_text("")
    monkeypatch.setattr("gritkit.cli.train.recipe_folder", lambda: folder)
    return folder


def test_a_list_of_them(run: Run) -> None:
    lines = [line.split(maxsplit=1) for line in run("train").out.splitlines()[1:]]
    assert [line[0] for line in lines] == ["broken", "mainless", "small"]
    assert lines[2][1] == "Make something small."


def test_defaults_and_conversion(run: Run, folder: Path) -> None:
    assert run("train", "small").out == "('out', 10, 0.5, False, None)\n"
    given = ["output=~/x", "steps=3", "rate=1e-3", "fast=yes", "base=a=b"]
    home = str(Path("~/x").expanduser())
    assert run("train", "small", *given).out == f"({home!r}, 3, 0.001, True, 'a=b')\n"
    assert run("train", folder / "small.py", "base=none").out == "('out', 10, 0.5, False, None)\n"


def test_a_file_by_relative_path(run: Run) -> None:
    assert run("train", "recipes/small.py", "steps=1").out == "('out', 1, 0.5, False, None)\n"


@pytest.mark.parametrize("ask", ["help", "--options"])
def test_its_options(run: Run, ask: str) -> None:
    assert run("train", "small", ask).out.splitlines() == [
        "output=out",
        "steps=10",
        "rate=0.5",
        "fast=False",
        "base=None",
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["steps"], "'steps' is not of the form"),
        (["stpes=3"], "unknown option 'stpes'"),
        (["steps=many"], "steps='many' is not a whole number"),
        (["rate="], "rate='' is not a number"),
        (["fast=perhaps"], "fast='perhaps' is not true or false"),
        (["steps=1", "steps=2"], "twice"),
    ],
)
def test_wrong_options_are_one_line_and_2(run: Run, given: list[str], says: str) -> None:
    result = run("train", "small", *given)
    assert result.code == 2
    assert says in result.error
    if "known" in result.error:
        assert "output=out, steps=10" in result.error


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smal", "did you mean small"),
        ("unlike", "known are"),
        ("no/such.py", "no recipe file"),
        ("mainless", "no function main"),
        ("broken", "line 1"),
    ],
)
def test_wrong_recipes_are_one_line_and_1(run: Run, name: str, says: str) -> None:
    result = run("train", name)
    assert result.code == 1
    assert says in result.error


def test_an_option_without_default_is_needed(run: Run, folder: Path) -> None:
    (folder / "strict.py").write_text("def main(*, data: str) -> None: print(data)\n")
    assert "data=... is needed" in run("train", "strict").error
    assert run("train", "strict", "data=x").out == "x\n"


def test_a_failing_recipe_is_one_line(run: Run, folder: Path) -> None:
    (folder / "failing.py").write_text(
        "from gritkit.errors import InputError\ndef main(): raise InputError('no data')\n"
    )
    result = run("train", "failing")
    assert (result.code, result.error) == (1, "Error: no data")


@pytest.mark.parametrize(
    ("word", "kind", "value"),
    [
        ("a", Literal["a", "b"], "a"),
        ("2", Literal[1, 2], 2),
        ("3", Optional[int], 3),  # noqa: UP045
        ("none", int | None, None),
        ("none", str, "none"),
        ("0.5", int | float, 0.5),
        ("x", int | str, "x"),
    ],
)
def test_convert(word: str, kind: object, value: object) -> None:
    assert convert(word, kind) == value


@pytest.mark.parametrize(("word", "kind"), [("c", Literal["a", "b"]), ("x", int | None), ("x", dict)])
def test_convert_refuses(word: str, kind: object) -> None:
    with pytest.raises(ValueError, match=r"one of a, b|a whole number|its type"):
        convert(word, kind)


def test_this_checkout_has_its_recipes() -> None:
    assert recipe_folder().name == "recipes"
