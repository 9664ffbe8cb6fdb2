from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gritkit.errors import InputError
from gritkit_eval.arguments import check_names, command_of, listed, named, needed_data_folder, whole_numbers


def _app() -> typer.Typer:
    app = typer.Typer()

    @app.command("measure")
    def measure(
        context: typer.Context,
        files: Annotated[list[Path], typer.Argument()],
        model: Annotated[list[str], typer.Option("--model", "-m")],
        limit: Annotated[int | None, typer.Option()] = None,
        seed: Annotated[int, typer.Option()] = 0,
        chat: Annotated[bool, typer.Option("--chat/--no-chat")] = False,
        results: Annotated[Path | None, typer.Option()] = None,
    ) -> None:
        typer.echo(command_of(context))

    @app.command()
    def other() -> None:
        """Makes the app a group."""

    return app


def test_a_command_can_be_repeated_elsewhere() -> None:
    given = ["measure", "a b.jsonl", "/home/me/b.jsonl", "-m", "big=/home/me/model", "-m", "small", "--limit", "3",
             "--seed", "0", "--chat", "--results", "/home/me/RESULTS.md"]  # fmt: skip
    shown = CliRunner().invoke(_app(), given, catch_exceptions=False).stdout.strip()
    assert shown == "gritkit eval measure 'a b.jsonl' b.jsonl --model big=model --model small --limit 3 --chat"
    again = CliRunner().invoke(_app(), shlex.split(shown)[2:], catch_exceptions=False).stdout.strip()
    assert again == shown


def test_a_command_of_a_group_is_named_with_it() -> None:
    bench, root, whole = typer.Typer(), typer.Typer(), typer.Typer()

    @bench.command("embed")
    def embed(context: typer.Context) -> None:
        typer.echo(command_of(context))

    bench.command("other")(lambda: None)
    root.add_typer(bench, name="bench")
    whole.add_typer(root, name="eval")
    for app, words in ((root, ["bench", "embed"]), (whole, ["eval", "bench", "embed"])):
        assert CliRunner().invoke(app, words, catch_exceptions=False).stdout == "gritkit eval bench embed\n"


def test_lists_by_comma() -> None:
    assert listed(" a,b ,,c") == ("a", "b", "c")
    assert whole_numbers("dims", "64, 8,64") == (8, 64)
    assert whole_numbers("links", "0", least=0) == (0,)
    for wrong in ("0", "-1", "x", "1.5", "8,0"):
        with pytest.raises(InputError, match="dims="):
            whole_numbers("dims", wrong)


def test_models_have_names() -> None:
    assert named("out/grit") == ("grit", "out/grit")
    assert named("model") == ("model", "model")
    check_names(["out/grit/model", "out/e5/model"])
    assert named("out/grit/model") == ("grit", "out/grit/model")
    assert named("a=b=c") == ("a", "b=c")
    for wrong in ("", "=x", "x="):
        with pytest.raises(InputError, match="name=folder"):
            named(wrong)
    check_names(["a=x", "b=x"], ["bm25"])
    with pytest.raises(InputError, match="two models are called 'x'"):
        check_names(["one/x", "two/x"])
    with pytest.raises(InputError, match="two models are called 'bm25'"):
        check_names(["bm25=x"], ["bm25"])


def test_data_are_named() -> None:
    assert needed_data_folder(Path("d"), Path("s")) == Path("d")
    assert needed_data_folder(None, Path("s")) == Path("s/data")
    with pytest.raises(InputError, match="no data"):
        needed_data_folder(None, None)
