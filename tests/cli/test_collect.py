from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gritkit.cli.collect import Collection, collect


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def ids(found: Collection) -> list[str]:
    return [text.id for text in found.texts]


def test_a_folder_is_walked_sorted_without_hidden_links_and_other_files() -> None:
    for name in ("docs/b.md", "docs/a.txt", "docs/sub/c.py", "docs/sub/D.RST", "docs/.hidden.md", "docs/.git/x.md"):
        write(name, f"text of {name}")
    write("docs/image.png", b"\x89PNG\0")
    write("outside/secret.md", "not to be followed")
    os.symlink(Path("outside").absolute(), "docs/link")
    os.symlink(Path("outside/secret.md").absolute(), "docs/link.md")
    found = collect(["docs"])
    assert ids(found) == ["docs/a.txt", "docs/b.md", "docs/sub/D.RST", "docs/sub/c.py"]
    assert found.texts[0].text == "text of docs/a.txt"
    assert found.texts[0].metadata == {"path": "docs/a.txt"}
    assert found.failures == []


def test_a_named_file_is_read_whatever_its_suffix_and_once() -> None:
    write("docs/LICENSE", "terms")
    found = collect(["docs/LICENSE", "./docs/LICENSE", "docs/../docs/LICENSE"])
    assert ids(found)[0] == "docs/LICENSE"
    assert len(set(ids(found))) == 1


def test_rows() -> None:
    rows = [{"text": "one", "id": "x", "lang": "en", "nested": {"a": 1}}, {"text": "two"}, {"body": "no"}]
    write("a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\nnonsense\n" + '{"text": " "}\n')
    found = collect(["a.jsonl"])
    assert ids(found) == ["x", "a.jsonl:2"]
    assert found.texts[0].metadata == {"path": "a.jsonl", "lang": "en"}
    assert [failure.split(": ")[0] for failure in found.failures] == ["a.jsonl:3", "a.jsonl:5", "a.jsonl:6"]
    assert ids(collect(["a.jsonl"], "body")) == ["a.jsonl:3"]


def test_failures_are_listed_and_the_rest_is_there() -> None:
    write("d/binary.txt", b"\0\1\2")
    write("d/latin.txt", b"caf\xe9")
    write("d/good.txt", "good")
    write("d/empty.py", " \n")
    write("empty.txt", "")
    Path("nothing").mkdir()
    found = collect(["d", "empty.txt", "missing", "nothing", ""])
    assert ids(found) == ["d/good.txt"]
    assert found.num_empty == 1
    names = [failure.split(": ")[0] for failure in found.failures]
    assert names == ["d/binary.txt", "d/latin.txt", "empty.txt", "missing", "nothing", ""]
