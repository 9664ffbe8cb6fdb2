from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gritkit as package
from gritkit.cli import main
from gritkit.cli.commands import OWN
from tests.cli.conftest import Result, environment, gritkit

Run = Callable[..., Result]
HEAVY = "{'torch', 'transformers', 'numpy', 'rich', 'huggingface_hub'} & set(sys.modules)"


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    result = gritkit("--help", code=f"import sys; from gritkit.cli import main; main(); sys.exit(str({HEAVY} or ''))")
    assert result.stderr.strip() == ""
    for name, text in OWN.items():
        assert f"{name} " in result.out
        assert text in result.out


@pytest.mark.parametrize("name", list(OWN))
def test_help_of_a_command_loads_no_torch(name: str) -> None:
    result = gritkit(
        name, "--help", code=f"import sys; from gritkit.cli import main; main(); sys.exit(str({HEAVY} or ''))"
    )
    assert result.stderr.strip() == ""
    assert result.out.startswith(f"Usage: gritkit {name}")


def test_help_is_quick() -> None:
    """By the processor's time, the best of five: the wall clock also counts whatever else the machine is doing."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert gritkit("--help").code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3


def test_no_argument_is_help() -> None:
    assert gritkit().out == gritkit("--help").out


def test_version(run: Run) -> None:
    assert run("--version").out == f"{package.__version__}\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["embed", "--nonsense", "a"], "gritkit embed --help"),
        (["embed", "--format", "xml", "a"], "'xml'"),
        (["rerank"], "QUERY"),
        (["index", "kb"], "PATH"),
    ],
)
def test_wrong_usage_is_one_line_and_2(run: Run, args: list[str], says: str) -> None:
    result = run(*args)
    assert result.code == 2
    assert says in result.error
    assert result.stdout == b""


def test_no_model_is_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRITKIT_MODEL")
    for args in (["embed", "a"], ["chat"], ["info"], ["rerank", "a", "b"]):
        result = run(*args, stdin=b"hello")
        assert result.code == 2
        assert "GRITKIT_MODEL" in result.error


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_a_wrong_model_is_one_line_and_1(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no model")
    result = run("embed", "-m", tmp_path / name, "a")
    assert result.code == 1
    assert str(tmp_path / name) in result.error


def test_debug_shows_the_traceback_wherever_it_stands(model_folder: Path) -> None:
    for args in (["--debug", "embed", "", "-m", str(model_folder)], ["embed", "", "-m", str(model_folder), "--debug"]):
        assert "Traceback" in gritkit(*args).stderr
    plain = gritkit("embed", "", "-m", str(model_folder))
    assert plain.code == 1
    assert "text 0 is empty" in plain.error


def test_debug_after_two_dashes_is_a_text(run: Run) -> None:
    assert run("embed", "--format", "table", "--", "--debug").out.rstrip().endswith("--debug")


def test_a_defect_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("gritkit.cli.info.open_model", broken)
    result = run("info")
    assert result.code == 1
    assert "unexpected ZeroDivisionError: two lines" in result.error
    assert "--debug" in result.error


def test_interrupt_is_quiet_and_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gritkit.cli.info.open_model", interrupted)
    assert run("info") == Result(130, b"", "")


def test_advice_of_the_library_names_flags(run: Run) -> None:
    error = run("embed", "word " * 200).error
    assert "--truncate" in error
    assert "truncate=True" not in error


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_reader_that_leaves_is_no_error(model_folder: Path) -> None:
    lines = b"some words\n" * 2000
    with subprocess.Popen(
        [sys.executable, "-m", "gritkit", "embed", "--format", "jsonl", "-m", str(model_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(lines)
        process.stdin.close()
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_is_one_line(model_folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gritkit", "info", str(model_folder)],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["Error: No space left on device"]


def test_telemetry_is_off(model_folder: Path) -> None:
    code = (
        "import os, sys; from gritkit.cli import main; main()\n"
        "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY, os.environ['DO_NOT_TRACK'])"
    )
    assert gritkit("info", str(model_folder), code=code).out.splitlines()[-1] == "True 1"


def test_libraries_are_quiet(model_folder: Path) -> None:
    assert gritkit("embed", "a", "-m", str(model_folder)).stderr == ""


def test_main_leaves_warnings_as_they_were(run: Run) -> None:
    import warnings

    before = list(warnings.filters)
    run("info")
    assert warnings.filters == before


def test_main_reads_the_process_arguments(monkeypatch: pytest.MonkeyPatch, capfdbinary: object) -> None:
    monkeypatch.setattr("sys.argv", ["gritkit", "nonsense"])
    assert main() == 2
