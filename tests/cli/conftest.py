"""A tiny checkpoint on disk, and command lines run in this process or in one of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gritkit.cli import main
from tests.models import grit_model

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What a command line left behind."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def error(self) -> str:
        """The one line of a failure."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("Error: ")
        return lines[0]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sliding-window Mistral of three layers in the GRIT format; texts of at most 64 tokens."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    grit_model("mistral_window", prompt_format="grit", max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture
def run(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Callable[..., Result]:
    """``run("embed", "a", stdin=b"")`` in this process, in an empty folder, with GRITKIT_MODEL set."""
    monkeypatch.setenv("GRITKIT_MODEL", str(model_folder))
    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capfdbinary.readouterr()
        return Result(code, out, err.decode())

    return run


def environment(**extra: str) -> dict[str, str]:
    """This process's, with the checkout on the path and no model named."""
    kept = {name: value for name, value in os.environ.items() if name != "GRITKIT_MODEL"}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **extra}


def gritkit(*args: str, code: str = "", stdin: bytes = b"", **extra: str) -> Result:
    """A real process: ``python -m gritkit``, or ``python -c code`` with the arguments."""
    what = ["-c", code] if code else ["-m", "gritkit"]
    done = subprocess.run(
        [sys.executable, *what, *args],
        input=stdin,
        capture_output=True,
        env=environment(**extra),
        check=False,
        timeout=120,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())
