from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path

import pytest

from gritkit.rag import sources
from gritkit.rag.sources import Failure, Source, read_file, read_paths


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


class Found:
    """What paths held."""

    def __init__(self, *paths: str, field: str = "text", limit: int = 10_000) -> None:
        self.empty: list[str] = []
        found = list(read_paths(paths, jsonl_field=field, max_file_bytes=limit, on_empty=self.empty.append))
        self.sources = [one for one in found if isinstance(one, Source)]
        self.failures = [one for one in found if isinstance(one, Failure)]
        self.ids = [source.id for source in self.sources]
        self.wheres = [failure.where for failure in self.failures]
        self.kinds = {source.id: source.kind for source in self.sources}


def test_a_folder_is_walked_sorted_without_hidden_links_and_other_files() -> None:
    for name in ("docs/b.md", "docs/a.txt", "docs/sub/c.py", "docs/sub/D.RST", "docs/.hidden.md", "docs/.git/x.md"):
        write(name, f"text of {name}")
    write("docs/image.png", b"\x89PNG\0")
    write("docs/archive.zip", b"PK\x03\x04")
    write("outside/secret.md", "not to be followed")
    os.symlink(Path("outside").absolute(), "docs/link")
    os.symlink("..", "docs/sub/loop")
    os.symlink(Path("outside/secret.md").absolute(), "docs/link.md")
    os.mkfifo("docs/pipe.md")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("docs/socket.md")
    found = Found("docs")
    assert found.ids == ["docs/a.txt", "docs/b.md", "docs/sub/D.RST", "docs/sub/c.py"]
    assert found.sources[0] == Source("docs/a.txt", "text of docs/a.txt", "text", {"path": "docs/a.txt"})
    assert found.kinds["docs/sub/c.py"] == "code:python"
    assert found.kinds["docs/b.md"] == "markdown"
    assert found.failures == []


def test_a_link_that_is_put_in_the_way_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    write("docs/a.md", "fine")
    write("docs/sub/b.md", "fine")
    write("docs/z/c.md", "fine")
    write("outside/a.md", "secret")
    write("outside/b.md", "secret")
    listing = sources._entries

    def swapped(folder: int) -> list[tuple[str, bool]]:
        """The folder is listed, and then its entries are replaced."""
        found = listing(folder)
        if Path("docs/a.md").is_file() and not Path("docs/a.md").is_symlink():
            os.remove("docs/a.md")
            os.symlink(Path("outside/a.md").absolute(), "docs/a.md")
            os.rename("docs/sub", "moved")
            os.symlink(Path("outside").absolute(), "docs/sub")
        return found

    monkeypatch.setattr(sources, "_entries", swapped)
    found = Found("docs")
    assert found.ids == ["docs/z/c.md"]
    assert found.wheres == ["docs/a.md", "docs/sub"]


def test_a_folder_swapped_while_it_is_open_is_still_the_one_that_was_given() -> None:
    write("docs/sub/a.md", "first")
    write("docs/sub/b.md", "second")
    write("outside/b.md", "secret")
    reading = read_paths(["docs"])
    assert next(reading).text == "first"  # type: ignore[union-attr]
    os.rename("docs/sub", "moved")
    os.symlink(Path("outside").absolute(), "docs/sub")
    assert next(reading).text == "second"  # type: ignore[union-attr]


def test_a_named_file_is_read_whatever_its_suffix_and_once() -> None:
    write("docs/LICENSE", "terms")
    write("docs/.env", "hidden")
    write("docs/a.md", "a")
    write("docs/sub/b.md", "b")
    os.symlink(Path("docs").absolute(), "alias")
    assert Found("docs/LICENSE", "./docs/LICENSE", "docs/../docs/LICENSE").ids == ["docs/LICENSE"]
    assert Found("docs/sub/b.md", "docs", "docs/sub", "alias/a.md").ids == ["docs/sub/b.md", "docs/a.md"]
    assert Found("docs", "docs/LICENSE", "docs/.env").ids == ["docs/a.md", "docs/sub/b.md", "docs/LICENSE", "docs/.env"]
    assert Found(".").ids == ["docs/a.md", "docs/sub/b.md"]
    assert Found("alias").ids == ["alias/a.md", "alias/sub/b.md"]  # a link that is named is followed


def test_an_open_file_is_read_as_a_named_one() -> None:
    for name in ("a.md", "b.jsonl", "c.pdf", "d.txt"):
        write(name, '{"text": "one", "id": "1"}\n{"no": "text"}\n')
    for name in ("a.md", "b.jsonl", "c.pdf"):
        with open(name, "rb") as file:
            assert list(read_file(file, name)) == list(read_paths([name]))
    for name in ("../../etc/x.md", "/etc/passwd", "http://there/x.html", "nul\0.md"):  # a name, and no more than that
        with open("d.txt", "rb") as file:
            (source,) = read_file(file, name)
        assert isinstance(source, Source)
        assert (source.id, source.metadata["path"]) == (name, name)
    with open("d.txt", "rb") as file:
        (failure,) = read_file(file, "d.txt", max_file_bytes=10)
    assert str(failure).startswith("d.txt: is 0.0 MB long")
    with open("d.txt", "rb") as file:
        (failure,) = read_file(file, "x.zip")
    assert isinstance(failure, Failure)


def test_rows_are_documents() -> None:
    given = [{"text": "one", "id": "x", "lang": "en"}, {"text": "two"}, {"body": "no"}, {"text": "\ud800"}]
    write("a.jsonl", "\n".join(map(json.dumps, given)))
    write("t.csv", "text,lang\neins,de\n")
    found = Found("a.jsonl", "t.csv")
    assert found.sources == [
        Source("x", "one", "text", {"path": "a.jsonl", "lang": "en"}),
        Source("a.jsonl:2", "two", "text", {"path": "a.jsonl"}),
        Source("t.csv:2", "eins", "text", {"path": "t.csv", "lang": "de"}),
    ]
    assert found.wheres == ["a.jsonl:3", "a.jsonl:4"]
    assert Found("a.jsonl", field="body").ids == ["a.jsonl:3"]


def test_failures_are_listed_and_the_rest_is_there() -> None:
    write("d/binary.txt", b"\0\1\2")
    write("d/latin.txt", b"caf\xe9")
    write("d/good.txt", "good")
    write("d/big.txt", "x" * 10_001)
    write("d/rows.csv", "a,b\n1,2\n")
    write("d/wide.txt", "utf-16 too".encode("utf-16"))
    write("d/empty.py", " \n")
    write("d/none.jsonl", "\n")
    write("d/page.html", "<script>x</script>")
    write("empty.txt", "")
    write("all.tar.gz", b"\x1f\x8b")
    os.mkfifo("pipe")
    Path("nothing").mkdir()
    found = Found("d", "empty.txt", "missing", "nothing", "", "all.tar.gz", "pipe", "a\0b", "/dev/null")
    assert found.ids == ["d/good.txt", "d/wide.txt"]
    assert found.empty == ["d/empty.py", "d/none.jsonl", "d/page.html"]
    assert found.wheres == [
        "d/big.txt", "d/binary.txt", "d/latin.txt", "d/rows.csv",
        "empty.txt", "missing", "nothing", "", "all.tar.gz", "pipe", "a\\x00b", "/dev/null",
    ]  # fmt: skip
    reasons = dict(zip(found.wheres, [failure.reason for failure in found.failures], strict=True))
    assert "0.0 MB long and may have 0.01 MB" in reasons["d/big.txt"]
    assert "archive" in reasons["all.tar.gz"]
    assert "pipe" in reasons["pipe"]
    assert reasons["missing"] == "no such file or folder"


def test_a_damaged_file_of_each_sort_is_a_failure() -> None:
    for suffix in (".pdf", ".docx"):
        write(f"d/junk{suffix}", os.urandom(500))
        write(f"d/nothing{suffix}", b"")
    write("d/a.md", "fine")
    found = Found("d")
    assert found.ids == ["d/a.md"]
    assert found.wheres == ["d/junk.docx", "d/junk.pdf", "d/nothing.docx", "d/nothing.pdf"]
    assert all("\n" not in str(failure) for failure in found.failures)


def test_a_parser_that_runs_out_of_stack_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(data: bytes, max_bytes: int) -> object:
        return deep(data, max_bytes)

    monkeypatch.setitem(sources.PARSERS, "html", deep)
    write("d/a.html", "<p>x")
    write("d/b.md", "fine")
    found = Found("d")
    assert found.ids == ["d/b.md"]
    assert "RecursionError" in found.failures[0].reason


def test_hostile_names() -> None:
    names = [
        b"new\nline.md",
        b"\xff\xfe.md",
        "東京 🦊.md".encode(),
        b"\x1b[31mred.md",
        b"quote'\".md",
        b"x" * 250 + b".md",
    ]
    os.mkdir("d")
    for name in names:
        Path("d", os.fsdecode(name)).write_text("text")
    found = Found("d")
    assert "d/new\nline.md" in found.ids
    assert len(found.ids) == len(names) - 1
    assert found.wheres == ["d/\\udcff\\udcfe.md"]
    write("d/new\nline.txt", b"\0")
    assert str(Found("d").failures[0]).startswith("d/new\\nline.txt: is not text")


def test_folders_without_end() -> None:
    folder = Path("d")
    for _ in range(sources.MAX_DEPTH + 20):
        folder = folder / "d"
    os.makedirs(folder)
    (folder / "deep.md").write_text("too deep")
    write("d/z.md", "fine")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    found = Found("d")
    assert found.ids == ["d/z.md"]
    assert "deep" in found.failures[0].reason
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_iterator_that_is_dropped_closes_its_folders() -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted through /proc")
    write("d/e/a.md", "a")
    write("d/e/b.md", "b")
    before = len(os.listdir("/proc/self/fd"))
    reading = read_paths(["d"])
    next(reading)
    assert len(os.listdir("/proc/self/fd")) > before
    reading.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_huge_file_is_not_read() -> None:
    with open("huge.txt", "wb") as file:
        file.truncate(200_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (failure,) = list(read_paths(["huge.txt"]))
    assert isinstance(failure, Failure)
    assert failure.reason == ("is 200.0 MB long and may have 64 MB: split it, or raise max_file_bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KB


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_is_forbidden_is_a_failure() -> None:
    write("d/a.md", "a")
    write("d/b/c.md", "c")
    os.chmod("d/a.md", 0)
    os.chmod("d/b", 0)
    try:
        assert Found("d").wheres == ["d/a.md", "d/b"]
    finally:
        os.chmod("d/b", 0o700)
