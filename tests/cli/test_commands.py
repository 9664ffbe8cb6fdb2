"""Commands that other packages add."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, gritkit

WORKING = '''"""``gritkit hello``: Greets, and prints.

More text."""
import sys
import typer
app = typer.Typer()
@app.command()
def hello(name: str) -> None:
    print("hello", name)
'''


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A folder of a package that adds three commands: one works, one lacks an extra, one is broken."""
    package = tmp_path / "other"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cli.py").write_text(WORKING)
    (package / "lacking.py").write_text('"""Needs more."""\nimport no_such_package_at_all\n')
    (package / "broken.py").write_text("app = 1 +\n")
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\nProvides-Extra: lacking\n")
    (info / "entry_points.txt").write_text(
        "[gritkit.commands]\nhello = other.cli:app\nlacking = other.lacking:app\nbroken = other.broken:app\n"
        "gone = other.gone:app\nembed = other.cli:app\n"
    )
    return f"{tmp_path}:{ROOT}"


def test_they_are_listed_without_being_loaded(path: str) -> None:
    main = "import sys; from gritkit.cli import main; main()"
    code = main + "; sys.exit(str([m for m in sys.modules if m[:5] == 'other'] or ''))"
    result = gritkit("--help", code=code, PYTHONPATH=path)
    assert result.stderr.strip() == ""
    listed = result.out.partition("Commands:")[2]
    assert "hello    Greets, and prints." in listed
    assert "lacking  Needs more." in listed
    assert "broken   Added by other." in listed
    assert "gone     Added by other." in listed
    assert listed.count("embed ") == 1
    assert "Turn texts into vectors." in listed


def test_they_are_called(path: str) -> None:
    result = gritkit("hello", "you", PYTHONPATH=path)
    assert (result.code, result.out, result.stderr) == (0, "hello you\n", "")
    assert "gritkit hello" in gritkit("hello", PYTHONPATH=path).error


def test_a_missing_extra_is_one_line(path: str) -> None:
    result = gritkit("lacking", PYTHONPATH=path)
    assert result.code == 1
    assert "no_such_package_at_all" in result.error
    assert "pip install 'other[lacking]'" in result.error


@pytest.mark.parametrize("name", ["broken", "gone"])
def test_a_broken_one_is_one_line(path: str, name: str) -> None:
    result = gritkit(name, PYTHONPATH=path)
    assert result.code == 1
    assert "other" in result.error
