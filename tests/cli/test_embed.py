from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit.model import GritModel
from gritkit.search import quantize_binary, quantize_int8
from tests.cli.conftest import Result

Run = Callable[..., Result]
TEXTS = ["the quick brown fox", "naïve 東京 🦊", "a"]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> GritModel:
    return GritModel.from_pretrained(model_folder)


def source(kind: str, tmp_path: Path) -> tuple[list[str], bytes]:
    """Arguments and stdin that bring the three texts in one of the ways there are."""
    lines = "".join(f"{text}\n" for text in TEXTS).encode()
    rows = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS).encode()
    (tmp_path / "lines").write_bytes(lines)
    (tmp_path / "rows").write_bytes(rows)
    return {
        "arguments": (TEXTS, b""),
        "file": (["--file", "lines"], b""),
        "dash": (["-"], lines),
        "file dash": (["-f", "-"], lines),
        "piped": ([], lines),
        "windows lines": ([], b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n") + b"\r\n"),
        "jsonl file": (["--file", "rows", "--jsonl-field", "body"], b""),
        "jsonl piped": (["--jsonl-field", "body"], rows),
    }[kind]


def parse(result: Result, form: str) -> Any:
    if form == "npy":
        return np.load(io.BytesIO(result.stdout), allow_pickle=False)
    rows = json.loads(result.out) if form == "json" else [json.loads(line) for line in result.out.splitlines()]
    assert [row["index"] for row in rows] == list(range(len(TEXTS)))
    return np.array([row["embedding"] for row in rows], dtype=np.float32)


@pytest.mark.parametrize(
    "kind",
    ["arguments", "file", "dash", "file dash", "piped", "windows lines", "jsonl file", "jsonl piped"],
)
@pytest.mark.parametrize("form", ["json", "jsonl", "npy"])
def test_every_source_and_format_gives_the_vectors(
    run: Run, tmp_path: Path, model: GritModel, kind: str, form: str
) -> None:
    args, stdin = source(kind, tmp_path)
    result = run("embed", *args, "--format", form, stdin=stdin)
    assert (result.code, result.stderr) == (0, "")
    assert np.array_equal(parse(result, form), model.embed(TEXTS))


def test_options_reach_the_model(run: Run, model: GritModel) -> None:
    flags = ["--role", "query", "--instruction", "Find it", "--dim", "8", "--layers", "1", "--max-length", "50"]
    result = run("embed", "word " * 50, *flags, "--truncate", "--format", "npy")
    expected = model.embed(
        ["word " * 50], role="query", instruction="Find it", dim=8, layers=1, max_length=50, truncate=True
    )
    assert np.array_equal(np.load(io.BytesIO(result.stdout)), expected)


def test_int8(run: Run, model: GritModel) -> None:
    codes, scale = quantize_int8(model.embed(TEXTS))
    rows = json.loads(run("embed", *TEXTS, "--precision", "int8").out)
    assert [row["codes"] for row in rows] == codes.tolist()
    assert np.array_equal(np.array([row["scale"] for row in rows], np.float32), scale)
    array = np.load(io.BytesIO(run("embed", *TEXTS, "--precision", "int8", "--format", "npy").stdout))
    assert np.array_equal(array["codes"], codes)
    assert np.array_equal(array["scale"], scale)


def test_binary(run: Run, model: GritModel) -> None:
    bits = quantize_binary(model.embed(TEXTS))
    rows = json.loads(run("embed", *TEXTS, "--precision", "binary").out)
    assert [row["bits"] for row in rows] == bits.tolist()
    array = np.load(io.BytesIO(run("embed", *TEXTS, "--precision", "binary", "--format", "npy").stdout))
    assert array.dtype == np.uint8
    assert np.array_equal(array, bits)


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_table(run: Run, precision: str) -> None:
    lines = run("embed", *TEXTS, "--format", "table", "--precision", precision).out.splitlines()
    assert lines[0].split()[0] == "index"
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2"]
    assert all(line.endswith(text) for line, text in zip(lines[1:], TEXTS, strict=True))


@pytest.mark.parametrize("form", ["json", "npy"])
def test_output_file(run: Run, tmp_path: Path, form: str) -> None:
    expected = run("embed", "a", "--format", form).stdout
    result = run("embed", "a", "--format", form, "--output", "new/file")
    assert result == Result(0, b"", "")
    assert (tmp_path / "new" / "file").read_bytes() == expected
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["file"]


def test_a_failure_leaves_the_old_output(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    assert run("embed", "", "-o", "file").code == 1
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "flags", "says"),
    [
        (b"", [], "empty"),
        (b"\n\n", [], "empty"),
        (b"a\n\nb\n", [], "line 2 is empty"),
        (b"a\xff", [], "not UTF-8"),
        (b"\x7fELF\0\0", [], "zero byte"),
        (b"{}\n", ["--jsonl-field", "text"], "line 1"),
        (b'{"text": "a"}\n{"body": "b"}\n', ["--jsonl-field", "text"], "it has body"),
        (b'{"text": "a"}\nnonsense\n', ["--jsonl-field", "text"], "line 2 is not JSON"),
        (b'{"text": " "}\n', ["--jsonl-field", "text"], "line 1 is empty"),
        (b"word " * 200, [], "max_length is 64"),
    ],
)
@pytest.mark.parametrize("piped", [True, False])
def test_what_cannot_be_embedded_is_one_line(
    run: Run, tmp_path: Path, content: bytes, flags: list[str], says: str, piped: bool
) -> None:
    (tmp_path / "in").write_bytes(content)
    result = run("embed", *([] if piped else ["--file", "in"]), *flags, stdin=content if piped else b"")
    assert result.code == 1
    assert says in result.error
    assert result.stdout == b""


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["\udcff"], 1, "lone surrogate"),
        ([""], 1, "empty"),
        (["--file", "missing"], 1, "No such file or directory"),
        (["--file", "."], 1, "Is a directory"),
        (["a", "--file", "in"], 2, "not both"),
        (["a", "--jsonl-field", "text"], 2, "--jsonl-field"),
        (["a", "--dim", "99"], 1, "dim=99"),
        (["a", "--layers", "99"], 1, "layers=99"),
        (["a", "--dtype", "float7"], 1, "float7"),
        (["a", "--device", "nonsense"], 1, "nonsense"),
        (["a", "--prompt-format", "nonsense"], 1, "nonsense"),
        (["a", "--precision", "int2"], 2, "int2"),
        (["a", "--output", "."], 1, "directory"),
    ],
)
def test_wrong_arguments_are_one_line(run: Run, args: list[str], code: int, says: str) -> None:
    result = run("embed", *args)
    assert result.code == code
    assert says in result.error
    assert result.stdout == b""


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_nothing_to_read_at_a_terminal_is_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("io.TextIOWrapper", lambda _: Terminal())
    result = run("embed")
    assert result.code == 2
    assert "--file" in result.error


def test_an_array_is_not_thrown_at_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())
    result = run("embed", "a", "--format", "npy")
    assert result.code == 2
    assert "--output" in result.error


def test_dtype_and_device(run: Run, model_folder: Path) -> None:
    result = run("embed", "a", "--dtype", "bfloat16", "--device", "cpu", "--format", "npy")
    expected = GritModel.from_pretrained(model_folder, dtype="bfloat16", device="cpu").embed(["a"])
    assert np.array_equal(np.load(io.BytesIO(result.stdout)), expected)
