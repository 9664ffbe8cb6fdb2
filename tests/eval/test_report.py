from __future__ import annotations

from pathlib import Path

import pytest

from gritkit.errors import InputError
from gritkit_eval.bench.report import Marked, machine, publish, section, table


def test_a_section_names_command_machine_and_versions() -> None:
    text = section("bench x", "gritkit eval bench x", {"torch": "2", "gritkit": "1"}, table(["a", "b"], [["1", "2"]]))
    assert text.startswith("## bench x\n")
    assert "`gritkit eval bench x`" in text
    assert machine() in text
    assert "gritkit 1, torch 2." in text
    assert text.endswith("| a | b |\n| --- | --- |\n| 1 | 2 |\n")


def test_cells_are_text_whatever_they_hold() -> None:
    hostile = "a|b\n# c \x1b[31m<img src=x> [x](javascript:y) `z`"
    made = table(["**name**", hostile], [[hostile, ""], [Marked("[1, 2]"), "bits_per_byte"]])
    head, _, first, second = made.splitlines()
    assert head.startswith("| **name** | a\\|b # c")
    assert "\x1b" not in made
    assert r"\<img src=x\> \[x\](javascript:y) \`z\`" in first
    assert second == "| [1, 2] | bits_per_byte |"


def test_publishing_replaces_its_own_section_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\nWords.\n\n## one\n\nold \\1\n\n## two\n\nkept\n", encoding="utf-8")
    publish("## one\n\nnew \\g<0>\n", "one", path)
    assert path.read_text() == "# Results\n\nWords.\n\n## one\n\nnew \\g<0>\n\n## two\n\nkept\n"
    publish("## three\n\nadded\n", "three", path)
    assert path.read_text().endswith("## two\n\nkept\n\n## three\n\nadded\n")


def test_without_a_results_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    publish("## one\n", "one", None)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/RESULTS.md").write_text("# Results\n\n## one\n\nothers' figures\n")
    publish("## one\n", "one", None)
    assert "others' figures" in (tmp_path / "eval/RESULTS.md").read_text()


def test_a_results_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"RESULTS\.md"):
        publish("## one\n", "one", path)
    assert path.read_bytes() == b"\xff\xfe\x00"
