"""Files that clients send: read as ``gritkit index`` reads them, in a process that may die of them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("multipart")
pytest.importorskip("lancedb")

from gritkit.rag.sources import Source, read_paths
from gritkit_serve import uploads
from gritkit_serve.adding import Found
from gritkit_serve.engine import Overloaded
from gritkit_serve.errors import HttpError
from gritkit_serve.settings import Settings
from gritkit_serve.uploads import FileReader, Upload, shown_name
from tests.serve.knowledge import error_of, events, kb_serving
from tests.serve.serving import Running

PATIENCE_S = 120.0


def docx(*paragraphs: str) -> bytes:
    from docx import Document

    made, buffer = Document(), io.BytesIO()
    for paragraph in paragraphs:
        made.add_paragraph(paragraph)
    made.save(buffer)
    return buffer.getvalue()


def bomb(megabytes: int) -> bytes:
    """A DOCX whose text is large and its file small."""
    buffer = io.BytesIO(docx("x"))
    inside = zipfile.ZipFile(buffer)
    parts = {name: inside.read(name) for name in inside.namelist()}
    text = b"<w:t>" + b"A" * (megabytes << 20) + b"</w:t>"
    parts["word/document.xml"] = parts["word/document.xml"].replace(b"<w:t>x</w:t>", text)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FILES: dict[str, bytes] = {
    "notes.md": b"# Title\n\nSome text.\n\n## Part\n\nMore of it.",
    "page.html": b"<html><body><h1>Head</h1><p>Paragraph</p><script>no</script></body></html>",
    "table.csv": b"id,text,year\n1,first row,2001\n,second row,2002\n",
    "rows.jsonl": b'{"text": "row one", "id": "r1"}\nnot json\n{"text": "row three", "tag": "x"}\n',
    "letter.docx": docx("Dear reader", "Yours"),
    "code.py": b"def f():\n    return 1\n",
    "broken.pdf": b"%PDF-1.7 nothing",
    "archive.zip": b"PK\x03\x04",
    "empty.txt": b"",
    "latin.txt": "ä".encode("latin-1"),
    "utf16.txt": "ünïcode".encode("utf-16"),
    "image.png": b"\x89PNG\r\n\x1a\n\0\0",
    "no suffix": "just text ü\n".encode(),
}


def spooled(content: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - who reads it closes it
    file.write(content)
    return file


def read(files: Sequence[tuple[str, bytes]], jsonl_field: str = "text", **settings: Any) -> Found:
    reader = FileReader(Settings(**settings))
    given = [Upload(name, spooled(content)) for name, content in files]

    async def within() -> Found:
        return await reader.read(given, jsonl_field=jsonl_field)

    try:
        found = asyncio.run(asyncio.wait_for(within(), PATIENCE_S))
        assert all(one.file.closed for one in given)
    finally:
        for one in given:
            one.file.close()
    return found


# -- as gritkit index --------------------------------------------------------------------------------------------------


def test_files_are_read_as_index_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    expected = list(read_paths(list(FILES)))
    found = read(list(FILES.items()))
    assert [(one.id, one.text, one.kind, dict(one.metadata)) for one in found.documents] == [
        (one.id, one.text, one.kind, one.metadata) for one in expected if isinstance(one, Source)
    ]
    assert [(one.id, one.reason) for one in found.not_taken] == [
        (one.where, one.reason) for one in expected if not isinstance(one, Source)
    ]
    assert found.num_not_taken == len(found.not_taken) == 6


def test_a_field_of_rows_can_be_named() -> None:
    found = read([("a.jsonl", b'{"body": "one", "text": "other"}\n')], jsonl_field="body")
    assert [(one.text, one.metadata["text"]) for one in found.documents] == [("one", "other")]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.md", "a.md"),
        ("docs/a.md", "docs/a.md"),
        ("../../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("//host/share/x", "host/share/x"),
        ("C:\\Users\\me\\a.txt", "C:/Users/me/a.txt"),
        ("..\\..\\a.txt", "a.txt"),
        ("a/./b/../c.md", "a/b/c.md"),
        ("", "unnamed"),
        ("..", "unnamed"),
        ("a\0b\nc\x1b[31m.md", "a_b_c_[31m.md"),
        ("\u202etxt.exe", "_txt.exe"),
        ("half \ud800.md", "half _.md"),
        ("x" * 300 + ".md", "x" * 252 + ".md"),
        ("東京.md", "東京.md"),
    ],
)
def test_a_name_is_a_name_and_no_path(name: str, shown: str) -> None:
    assert shown_name(name) == shown
    (document,) = read([(name, b"some text")]).documents
    assert document.id == shown


def test_of_two_files_with_one_name_the_later_is_named() -> None:
    names = ["notes\x01.txt", "../a.txt", "notes\x02.txt", "a.txt", "/a.txt", "b.txt"]
    found = read([(name, f"text of {number}".encode()) for number, name in enumerate(names)])
    assert [(one.id, one.text) for one in found.documents] == [
        ("notes_.txt", "text of 0"), ("a.txt", "text of 1"), ("b.txt", "text of 5")
    ]  # fmt: skip
    assert [one.id for one in found.not_taken] == ["notes_.txt", "a.txt", "a.txt"]
    assert {one.reason for one in found.not_taken} == {
        "another file of this request is called so: give this one another name"
    }


# -- what files can do -------------------------------------------------------------------------------------------------


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real process, but files of some names do to it what a hostile one could do to a parser."""
    (tmp_path / "sitecustomize.py").write_text(
        "import gritkit.rag.sources as sources, os, ctypes\n"
        "real = sources.read_file\n"
        "def read_file(file, name, **options):\n"
        "    if name.startswith('crash'): os.abort()\n"
        "    if name.startswith('exit'): os._exit(0)\n"
        "    if name.startswith('spin'):\n"
        "        while True: pass\n"
        "    if name.startswith('sleep'):\n"
        "        import time\n"
        "        time.sleep(1000)\n"
        "    if name.startswith('memory'):\n"
        "        hoard = []\n"
        "        while True: hoard.append(b'x' * (32 << 20))\n"
        "    if name.startswith('write'): open('written-by-parser', 'w').write('x' * 100)\n"
        "    yield from real(file, name, **options)\n"
        "    if name.startswith('late'): os.abort()\n"
        "sources.read_file = read_file\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("bad", ["crash", "exit", "memory", "late"])
def test_a_file_that_ends_its_reader_is_named_and_the_rest_is_read(bad: str) -> None:
    names = ["a.txt", f"{bad}.txt", "b.txt", f"{bad}2.txt", "c.txt"]
    found = read([(name, b"text") for name in names], parse_memory_bytes=512 << 20)
    assert [one.id for one in found.documents if not one.id.startswith(bad)] == ["a.txt", "b.txt", "c.txt"]
    assert [one.id for one in found.not_taken] == [f"{bad}.txt", f"{bad}2.txt"]
    assert found.num_not_taken == 2


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("bad", ["spin", "sleep"])
def test_a_file_that_takes_no_end_of_time_is_given_up(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_PATIENCE", 20 if bad == "spin" else 4)
    found = read([("a.txt", b"first"), (f"{bad}.txt", b"x"), ("b.txt", b"second")], parse_seconds=1)
    assert [one.id for one in found.documents] == ["a.txt", "b.txt"]
    ((where, reason),) = [(one.id, one.reason) for one in found.not_taken]
    assert where == f"{bad}.txt"
    assert "longer than 1 s" in reason


@pytest.mark.usefixtures("misbehaving")
def test_a_reader_writes_no_files(tmp_path: Path) -> None:
    read([("write.txt", b"x")])
    left = tmp_path / "written-by-parser"
    assert not left.exists() or left.stat().st_size == 0


def test_a_reader_knows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRITKIT_API_KEY", "secret")
    seen: list[dict[str, str]] = []
    start = asyncio.create_subprocess_exec

    async def watched(*args: Any, **options: Any) -> Any:
        seen.append(options["env"])
        return await start(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
    read([("a.txt", b"x")])
    needed = {"PATH", "PYTHONPATH", "PYTHONSAFEPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL"}
    assert set(seen[0]) <= needed
    assert "secret" not in seen[0].values()


def test_who_leaves_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def test() -> None:
        running = asyncio.Event()

        async def watched(*args: Any, **options: Any) -> Any:
            code = "import time; time.sleep(1000)"
            started.append(await start(sys.executable, "-c", code, **options))
            running.set()
            return started[0]

        monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
        with spooled(b"x") as file:
            task = asyncio.ensure_future(FileReader(Settings()).read([Upload("a.txt", file)]))
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert started[0].returncode == -9

    asyncio.run(asyncio.wait_for(test(), PATIENCE_S))


# -- limits ------------------------------------------------------------------------------------------------------------


def test_text_and_documents_have_limits() -> None:
    with pytest.raises(HttpError, match="more than 1 MiB of text") as refused:
        read([("a.txt", b"x" * 700_000), ("b.txt", b"x" * 700_000)], max_upload_bytes=1 << 20)
    assert refused.value.status == 413
    rows = b"".join(json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(11))
    with pytest.raises(HttpError, match="more than 10 documents") as refused:
        read([("a.jsonl", rows)], max_upload_documents=10)
    assert refused.value.status == 413
    assert len(read([("a.jsonl", rows)], max_upload_documents=11).documents) == 11


def test_a_file_that_unpacks_to_much_is_named() -> None:
    content = bomb(64)
    assert len(content) < 1 << 20
    found = read([("bomb.docx", content), ("a.txt", b"x")], max_upload_bytes=4 << 20)
    assert [one.id for one in found.documents] == ["a.txt"]
    assert [(one.id, one.reason) for one in found.not_taken] == [
        ("bomb.docx", "unpacks to more than 4.1943 MB: split it")
    ]


def test_rows_that_no_server_takes_are_named() -> None:
    rows = [{"text": "a", "id": "i" * 600}, {"text": "b", "note": "n" * 20_000}, {"text": "c", "id": "c"}]
    found = read([("a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))])
    assert [one.id for one in found.documents] == ["c"]
    assert [one.reason for one in found.not_taken] == [
        "its id has 600 characters and may have 512",
        "its other fields take 20031 bytes as JSON and may take 16384",
    ]


def test_many_failures_are_counted_and_some_named() -> None:
    rows = b"".join(b'{"text": "x"}\n' + b"bad\n" for _ in range(1200))
    found = read([("a.jsonl", rows)])
    assert (len(found.documents), found.num_not_taken, len(found.not_taken)) == (1200, 1200, 1000)


def test_more_files_than_one_process_holds() -> None:
    found = read([(f"{n:03}.txt", f"text {n}".encode()) for n in range(150)])
    assert [one.id for one in found.documents] == [f"{n:03}.txt" for n in range(150)]


def test_only_so_many_requests_bring_files_at_once() -> None:
    reader = FileReader(Settings())
    with reader.room(), reader.room(), reader.room():
        with reader.room(), pytest.raises(Overloaded), reader.room():
            pass
        with reader.room():
            pass


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("uploads") / "kbs"
    with kb_serving(folder, settings=Settings(max_upload_bytes=2 << 20)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        client.post("/v1/kb", json={"name": "a"})
        yield client
        client.delete("/v1/kb/a")


PATH = "/v1/kb/a/documents"


def test_files_become_documents(client: httpx.Client) -> None:
    report = client.post(PATH, files=[("files", item) for item in FILES.items()]).json()
    assert (report["added"], report["failed"], len(report["errors"])) == (10, 6, 6)
    by_id = {one["id"]: one["metadata"] for one in client.get(PATH).json()["data"]}
    assert by_id["1"] == {"path": "table.csv", "year": "2001"}
    assert by_id["letter.docx"]["path"] == "letter.docx"
    again = client.post(PATH, files=[("files", item) for item in FILES.items()]).json()
    assert (again["added"], again["skipped"]) == (0, 10)


def test_progress_counts_what_failed_too(client: httpx.Client) -> None:
    files = [("files", ("a.md", b"# A\n\ntext")), ("files", ("b.pdf", b"%PDF-")), ("jsonl_field", (None, "body"))]
    with client.stream("POST", f"{PATH}?stream=true", files=files) as response:
        told = list(events(response.iter_lines()))
    assert [(name, data) for name, data in told if name == "progress"] == [
        ("progress", {"documents_done": 1, "documents_total": 2}),
        ("progress", {"documents_done": 2, "documents_total": 2}),
    ]
    assert told[-2][1]["errors"][0]["id"] == "b.pdf"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("jsonl_field", (None, "x"))], "files is missing"),
        ([("other", ("a.txt", b"x"))], "unknown file 'other'"),
        ([("url", (None, "http://169.254.169.254/")), ("files", ("a.txt", b"x"))], "unknown field 'url'"),
    ],
)
def test_other_fields_are_refused_by_name(client: httpx.Client, files: Any, said: str) -> None:
    assert said in error_of(client.post(PATH, files=files), 400)
    assert client.get("/v1/kb/a").json()["documents"] == 0


def test_too_much_is_refused(client: httpx.Client) -> None:
    large = [("files", (f"{n}.txt", b"x" * (1 << 20))) for n in range(3)]
    error_of(client.post(PATH, files=large), 413)
    many = [("files", (f"{n}.txt", b"x")) for n in range(1100)]
    assert "1024" in error_of(client.post(PATH, files=many), 400)
    assert client.get("/v1/kb/a").json()["documents"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--x", b"--x--", b"--x\r\n\r\n", b"garbage",
        b'--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nno end',
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="\xff\xfe.txt"\r\n\r\nx\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a\0.txt"\r\n\r\nx\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../../etc/cron.d/x"\r\n\r\nx\r\n--x--\r\n',
        b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    ],
)  # fmt: skip
def test_hostile_forms_are_no_failure_of_the_server(client: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = client.post(PATH, content=body, headers=headers)
    assert response.status_code in (200, 400), response.text
    if not body.endswith((b"--x--", b"--x--\r\n")):
        assert "cannot be read" in error_of(response, 400)
    without = client.post(PATH, content=body, headers={"content-type": "multipart/form-data"})
    assert without.status_code == 400


def test_files_go_to_documents_alone(client: httpx.Client) -> None:
    for path in ("/v1/kb/a/search", "/v1/kb/a/ask", "/v1/kb"):
        error_of(client.post(path, files=[("files", ("a.txt", b"x"))]), 415)
