from __future__ import annotations

import os
from pathlib import Path

import pytest

from gritkit.errors import InputError
from gritkit.files import resolve, staged_folder, write_atomic


class Killed(BaseException):
    """Neither an Exception nor anything that code expects, as KeyboardInterrupt is."""


@pytest.fixture(autouse=True)
def _umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("path", ["", "a\0b", b"bytes", "~nobody-of-this-name/x"])
def test_unusable_paths_are_refused(path: str) -> None:
    with pytest.raises(InputError, match="not a usable path"):
        resolve(path)


def test_paths_are_absolute_and_know_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolve("~/x") == tmp_path / "x"
    assert resolve("x") == tmp_path / "x"
    assert resolve(Path("/x")) == Path("/x")


def test_a_written_file_is_whole_and_as_shared_as_any(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one")
    assert (path.read_bytes(), mode(path)) == (b"one", 0o644)
    path.chmod(0o600)
    write_atomic(path, b"two")
    assert (path.read_bytes(), mode(path)) == (b"two", 0o600)
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_the_old_file(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, at, kill)
        with pytest.raises(Killed):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def fill(target: Path, text: str) -> None:
    with staged_folder(target) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "file").write_text(text)
        (stage / "private").write_text(text)
        (stage / "private").chmod(0o600)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    fill(target, "one")
    (target / "left over").touch()
    fill(target, "two")
    assert names(target) == ["private", "sub"]
    assert (target / "sub" / "file").read_text() == "two"
    assert names(target.parent) == ["model"]
    assert mode(target) == 0o755
    assert mode(target / "private") == 0o644


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt, ValueError])
def test_a_kill_while_filling_leaves_the_old_folder(error: type[BaseException], exists: bool, tmp_path: Path) -> None:
    target = tmp_path / "model"
    if exists:
        fill(target, "old")

    def break_off() -> None:
        with staged_folder(target) as stage:
            (stage / "half").touch()
            raise error

    with pytest.raises(error):
        break_off()
    assert names(tmp_path) == (["model"] if exists else [])
    if exists:
        assert (target / "sub" / "file").read_text() == "old"


def test_a_kill_between_the_renames_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    fill(target, "old")
    replace, calls = os.replace, []

    def second_fails(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise Killed
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", second_fails)
        with pytest.raises(Killed):
            fill(target, "new")
    assert (target / "sub" / "file").read_text() == "old"
    assert names(tmp_path) == ["model"]
