from __future__ import annotations

import io
import logging
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gritkit.errors import InputError
from gritkit.rag.outline import Borders
from gritkit.rag.parsers import decode, parse

docx = pytest.importorskip("docx")
pypdf = pytest.importorskip("pypdf")
pytest.importorskip("selectolax")

LIMIT = 1_000_000


def text(data: bytes, kind: str, limit: int = LIMIT) -> str:
    return parse(data, kind, limit).text


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_with_its_mark_is_read(encoding: str) -> None:
    assert decode("naïve 東京 🦊\r\n".encode(encoding)) == "naïve 東京 🦊\r\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"caf\xe9 au lait", "byte 0xe9 at 3"),
        (b"ab\0cd", "zero byte at 2"),
        ("x".encode("utf-16-le"), "zero byte at 1"),
        (b"\xff\xfea\0\0\xd8", "begins as UTF-16 and is not at byte 4"),
        (b"\xed\xa0\x80", "not UTF-8"),
    ],
)
def test_nothing_is_guessed(data: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decode(data)


# -- HTML --------------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html><head><title> The
 dam </title><style>p {}</style></head><body>
<nav><a href=/>Home</a></nav><script>var x = "<p>no</p>"</script>
<h1>Beavers &amp; <em>dams</em></h1>
<p>They   build
<b>dams</b>, <a>and</a>lodges.<br>Every night.</p>
<ul><li>logs<li><a></a><li><p>mud</ul><h3> </h3>
<h2>Code</h2><pre>
if x:
    # no heading
</pre>
<table><tr><th>name<th>size</tr><tr><td>dam<td>5 m</tr></table>
<div hidden>unseen</div><div><div>one</div>two</div><p></p>last
</body></html>"""


def test_a_page_is_its_text_with_its_structure() -> None:
    page = parse(PAGE.encode(), "html", LIMIT)
    assert page.metadata == {"title": "The dam"}
    assert page.text == (
        "# Beavers & dams\n\nThey build dams, andlodges.\nEvery night.\n\n- logs\n\n- mud\n\n## Code\n\n"
        "```\nif x:\n    # no heading\n```\n\nname | size\ndam | 5 m\n\none\n\ntwo\n\nlast"
    )
    borders = Borders(page.text, "html")
    assert borders.trail(page.text.index("no heading")) == ("Beavers & dams", "Code")


def test_a_page_without_text_and_a_torn_one() -> None:
    assert text(b"<html><script>x</script></html>", "html") == ""
    assert text(b"", "html") == ""
    assert text(b"<p>one <b>two<p>three</i></table> & < four", "html") == "one two\n\nthree & < four"


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 200_000,
        "".join(f"<b id={n}>" for n in range(3000)) + "<p>x" * 3000,
        "<a><div>" * 50_000,
    ],
)
def test_pages_that_would_take_minutes_are_refused(page: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match="nested too deep"):
        text(page.encode(), "html")
    assert time.process_time() - start < 5


def test_a_large_sloppy_page_is_read() -> None:
    page = "<ul>" + "<li><font color=red>item <b>bold</b></font> <p>text" * 20_000
    assert text(page.encode(), "html", 10 * LIMIT).count("item bold") == 20_000
    assert len(text(("<div>" * 300 + "x" + "</div>" * 300 + "<script>" + "<div>" * 99_999).encode(), "html")) == 1


# -- PDF ---------------------------------------------------------------------------------------------------------


def pdf(*pages: str, title: str | None = None, password: str | None = None, owner: str | None = None) -> bytes:
    """A PDF with a page for each text, made of its parts."""
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    font = DictionaryObject(
        {NameObject(key): NameObject(value) for key, value in
         (("/Type", "/Font"), ("/Subtype", "/Type1"), ("/BaseFont", "/Helvetica"), ("/Encoding", "/WinAnsiEncoding"))}
    )  # fmt: skip
    for words in pages:
        page = writer.add_blank_page(300, 300)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({words}) Tj ET".encode("latin-1") if words else b"")
        page[NameObject("/Contents")] = writer._add_object(content)
    if title:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(password, owner, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_a_pdf_is_the_text_of_its_pages() -> None:
    read = parse(pdf("Beavers build dams.", "", "Otters do not.", title="On dams"), "pdf", LIMIT)
    assert read.text == "Beavers build dams.\n\nOtters do not."
    assert read.metadata == {"pages": 3, "title": "On dams"}


def test_a_pdf_that_only_restricts_its_use_is_read() -> None:
    assert text(pdf("open words", password="", owner="secret"), "pdf") == "open words"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pdf("secret", password="key"), "is encrypted"),
        (pdf("", ""), "no text on its 2 pages"),
        (pdf("long words " * 100), "more than 0.001 MB"),
    ],
)
def test_pdfs_without_words_for_us(data: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        text(data, "pdf", 1000)


def test_broken_pdfs_raise_and_are_silent(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    whole = pdf("Beavers build dams.", "Otters do not.")
    outcomes: list[Any] = []
    for data in [b"", b"%PDF-1.7", b"junk" * 1000, *(whole[:cut] for cut in range(100, len(whole), 97))]:
        try:
            outcomes.append(text(data, "pdf"))
        except Exception as error:
            outcomes.append(error)
    assert any(isinstance(outcome, Exception) for outcome in outcomes[:3])
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("pypdf").level == logging.NOTSET


# -- DOCX --------------------------------------------------------------------------------------------------------


def saved(document: Any) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_a_docx_is_its_text_in_order() -> None:
    document = docx.Document()
    document.core_properties.title = "On dams"
    document.add_heading("Dams", 0)
    document.add_heading("Who builds", 2)
    document.add_paragraph("Beavers do.").add_run("\tAt night.\nAlways.")
    document.add_paragraph("logs", style="List Bullet")
    document.add_paragraph("mud", style="List Bullet")
    table = document.add_table(2, 2)
    for row, words in zip(table.rows, (("name", "size"), ("dam", "5 m")), strict=True):
        for cell, word in zip(row.cells, words, strict=True):
            cell.text = word
    table.cell(1, 1).add_table(1, 1).cell(0, 0).text = "inner"
    document.add_paragraph("")
    document.add_paragraph("The end.")
    read = parse(saved(document), "docx", LIMIT)
    assert read.metadata == {"title": "On dams"}
    assert read.text == (
        "# Dams\n\n## Who builds\n\nBeavers do.\tAt night.\nAlways.\n\n- logs\n- mud\n\n"
        "name | size\ndam | 5 m inner\n\nThe end."
    )


def test_tracked_changes_and_content_controls_are_read_as_accepted() -> None:
    from docx.oxml import parse_xml

    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = docx.Document()
    body = document.element.body
    for block in (
        f"<w:p {word}><w:r><w:t>kept</w:t></w:r><w:ins><w:r><w:t> added</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText> gone</w:delText></w:r></w:del>"
        "<w:moveFrom><w:r><w:t> moved</w:t></w:r></w:moveFrom></w:p>",
        f"<w:sdt {word}><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>",
    ):
        body.insert(len(body) - 1, parse_xml(block))
    assert text(saved(document), "docx") == "kept added\n\nin a control"


def test_a_zip_bomb_is_refused_before_it_is_opened() -> None:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(docx.Document()))) as whole,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, b" " * 5_000_000 if name == "word/document.xml" else whole.read(name))
    assert len(out.getvalue()) < LIMIT
    with pytest.raises(InputError, match="unpacks to more"):
        text(out.getvalue(), "docx")


def test_a_docx_that_is_none() -> None:
    with pytest.raises(InputError, match="no DOCX"):
        text(b"\xd0\xcf\x11\xe0 an old .doc", "docx")
    whole = saved(docx.Document())
    with pytest.raises(Exception, match=r"."):
        text(whole[:300] + whole[400:], "docx")


def test_a_long_table_takes_no_square_of_its_length(tmp_path: Path) -> None:
    document = docx.Document()
    table = document.add_table(1, 3)
    row = table.rows[0]._tr
    for _ in range(3000):
        table._tbl.append(__import__("copy").deepcopy(row))
    start = time.process_time()
    assert text(saved(document), "docx", 10 * LIMIT) == ""
    assert time.process_time() - start < 5
