"""Bytes of a file -> its text: plain text, HTML, PDF, DOCX; headings come out as ``# ...``, parts as blank lines.

Nothing is guessed: text is UTF-8, or UTF-16 with its mark; a file that is encrypted, has no text or would take memory
out of proportion is an InputError that says so. What else a damaged file makes a library raise is passed on.

This module knows nothing about folders, paths or knowledge bases.
"""

from __future__ import annotations

import codecs
import io
import logging
import re
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gritkit.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selectolax.lexbor import LexborNode

MAX_PAGES = 20_000
"""Of a PDF."""


@dataclass(frozen=True)
class Parsed:
    """The text of a file, and what the file says about itself."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


def parse(data: bytes, kind: str, max_bytes: int) -> Parsed:
    """The text of a file of a kind: "html", "pdf", "docx", or anything else that is text as it stands.

    Raises:
        InputError: for what has no text, or more than ``max_bytes`` of it when it is unpacked.
        MissingExtraError: without the packages of ``gritkit[rag]``.
        Exception: whatever a library raises about a damaged file.
    """
    parser = PARSERS.get(kind)
    return parser(data, max_bytes) if parser else Parsed(decode(data))


def decode(data: bytes) -> str:
    """Text of bytes in UTF-8, or in UTF-16 with a byte order mark. Raises InputError for anything else."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            try:
                return data[2:].decode(encoding)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"begins as UTF-16 and is not at byte {error.start + 2}: convert it to UTF-8"
                ) from None
    if b"\0" in data:
        raise InputError(f"is not text: it has a zero byte at {data.index(0)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"is not UTF-8 text (byte 0x{data[error.start]:02x} at {error.start}): convert it to UTF-8 first"
        ) from None


# -- HTML --------------------------------------------------------------------------------------------------------

_DROPPED = frozenset({
    "audio", "button", "canvas", "head", "iframe", "math", "nav", "noscript", "object", "script", "select", "style",
    "svg", "template", "textarea", "video",
})  # fmt: skip
_PARTS = frozenset({
    "address", "article", "aside", "blockquote", "body", "details", "dialog", "div", "dl", "fieldset", "figcaption",
    "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "ol", "p", "pre",
    "section", "summary", "table", "ul",
})  # fmt: skip
_LINES = frozenset({
    "br", "caption", "dd", "dt", "li", "option", "tr",
})  # fmt: skip
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_RAW_END = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "textarea", "title")}
_NEVER_OPEN = frozenset({
    "area", "base", "body", "br", "col", "dd", "dt", "embed", "head", "hr", "html", "img", "input", "li", "link",
    "meta", "option", "p", "source", "tbody", "td", "tfoot", "th", "thead", "tr", "track", "wbr",
})  # fmt: skip
_COPIED = frozenset({
    "a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u",
})  # fmt: skip
"""Elements that a parser opens again in every part that follows while they are not closed."""
_MAX_STEPS = 200_000_000
_MAX_COPIES = 5_000_000


def _html(data: bytes, max_bytes: int) -> Parsed:
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise MissingExtraError("selectolax", "rag") from None
    source = decode(data)
    _check_nesting(source)
    tree = LexborHTMLParser(source)
    title = tree.css_first("title")
    name = " ".join(title.text().split()) if title is not None else ""
    body = tree.body
    text = _Page().text(body) if body is not None else ""
    return Parsed(text, {"title": name} if name else {})


def _check_nesting(source: str) -> None:
    """Refuse a page whose tree would take time or memory out of proportion: nesting costs its square in HTML."""
    depth = copied = steps = copies = place = 0
    while match := _TAG.search(source, place):
        place = match.end()
        name = match[2].lower()
        change = -1 if match[1] else 1
        if name not in _NEVER_OPEN:
            depth = max(0, depth + change)
        if name in _COPIED:
            copied = max(0, copied + change)
        elif not match[1]:
            copies += copied
        steps += depth
        if steps > _MAX_STEPS or copies > _MAX_COPIES:
            raise InputError("has elements nested too deep, or left open too often, to be a page")
        if change > 0 and name in _RAW_END:
            end = _RAW_END[name].search(source, place)
            if end is None:
                return
            place, depth = end.end(), depth - 1


class _Page:
    """The text of a page, written while its tree is walked."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._breaks = 0
        self._space = False
        self._cells = 0
        self._mark = ""
        """What stands before the next words: of a heading, or an item of a list; nothing where there are none."""

    def text(self, body: LexborNode) -> str:
        node: LexborNode | None = body
        end = body.mem_id  # comparing nodes would compare their HTML
        while node is not None:
            inner = self._enter(node)
            if inner is not None:
                node = inner
                continue
            while node is not None and node.next is None:
                node = node.parent
                if node is None or node.mem_id == end:
                    return "".join(self._out).strip("\n")
                self._leave(node.tag)
            node = node.next if node is not None else None
        return "".join(self._out).strip("\n")

    def _enter(self, node: LexborNode) -> LexborNode | None:
        """Write what stands before a node's children; returns the first of them if they are to be walked."""
        tag = node.tag
        if tag == "-text":
            self._write(node.text_content or "")
            return None
        if tag is None or tag.startswith("-") or tag in _DROPPED or "hidden" in node.attributes:
            return None
        if tag in _PARTS:
            self._break(2)
        elif tag in _LINES:
            self._break(1)
        if tag == "pre":
            code = node.text().strip("\n")
            fence = "```"
            while fence in code:
                fence += "`"
            if code.strip():
                self._mark = ""
                self._raw(f"{fence}\n{code}\n{fence}")
            self._break(2)
            return None
        if tag in _HEADINGS or tag == "li":
            self._mark = _HEADINGS.get(tag, "- ")
        elif tag == "tr":
            self._cells = 0
        elif tag in ("td", "th"):
            if self._cells:
                self._raw(" | ")
            self._cells += 1
        child = node.first_child
        if child is None:
            self._leave(tag)
        return child

    def _leave(self, tag: str | None) -> None:
        if tag in _HEADINGS or tag == "li":
            self._mark = ""
        if tag in _PARTS:
            self._break(2)
        elif tag in _LINES:
            self._break(1)

    def _break(self, lines: int) -> None:
        self._breaks = max(self._breaks, lines)

    def _raw(self, text: str) -> None:
        if self._breaks and self._out:
            self._out.append("\n" * self._breaks)
        self._out.append(self._mark + text)
        self._breaks, self._space, self._mark = 0, False, ""

    def _write(self, text: str) -> None:
        """White space of the source is a space; none at the beginning of a line."""
        words = " ".join(text.split())
        if not words:
            self._space = self._space or bool(text)
            return
        if (self._space or text[0].isspace()) and not self._breaks and self._out and not self._out[-1].endswith(" "):
            words = " " + words
        self._raw(words)
        self._space = text[-1].isspace()


# -- PDF ---------------------------------------------------------------------------------------------------------


def _pdf(data: bytes, max_bytes: int) -> Parsed:
    try:
        import pypdf
    except ImportError:
        raise MissingExtraError("pypdf", "rag") from None
    with _silent("pypdf"):
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not _opened(reader):
            raise InputError("is encrypted: save it without a password first")
        count = len(reader.pages)
        if count > MAX_PAGES:
            raise InputError(f"has {count} pages, more than {MAX_PAGES}: split it")
        pages: list[str] = []
        size = 0
        for page in reader.pages:
            # surrogate pairs are joined; a half one is the caller's to refuse
            units = page.extract_text().replace("\0", "").encode("utf-16-le", "surrogatepass")
            pages.append(units.decode("utf-16-le", "surrogatepass").strip())
            size += len(units)
            if size > 2 * max_bytes:
                raise InputError(
                    f"unpacks to more than {max_bytes / 1e6:g} MB of text: split it, or raise max_file_bytes"
                )
        title = reader.metadata.title if reader.metadata else None
    text = "\n\n".join(page for page in pages if page)
    if not text.strip():
        raise InputError(f"has no text on its {count} pages, images perhaps: run text recognition (OCR) on it first")
    metadata: dict[str, Any] = {"pages": count}
    if isinstance(title, str) and title.strip():
        metadata["title"] = " ".join(title.split())
    return Parsed(text, metadata)


def _opened(reader: Any) -> bool:
    """Whether the empty password opens it, as it does a file that only restricts what may be done with it."""
    try:
        return bool(reader.decrypt(""))
    except Exception:  # a cipher that needs a package, or a damaged key
        return False


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """A library's complaints about a file are the failure's to tell."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


# -- DOCX --------------------------------------------------------------------------------------------------------

_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_REMOVED = frozenset({f"{_WORD}del", f"{_WORD}moveFrom", f"{_WORD}instrText", f"{_WORD}rPr", f"{_WORD}pPr", _FALLBACK})
_MAX_GROWTH = 4
"""Everything in a DOCX, images too, may unpack to this many times ``max_bytes``; its XML to once."""


def _docx(data: bytes, max_bytes: int) -> Parsed:
    try:
        import docx
    except ImportError:
        raise MissingExtraError("python-docx", "rag") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # no more than the size that is declared here is unpacked later
            sizes = [(item.filename, item.file_size) for item in archive.infolist()]
    except zipfile.BadZipFile:
        raise InputError("is no DOCX file, or is damaged: open it in Word or LibreOffice and save it again") from None
    xml = sum(size for name, size in sizes if name.lower().endswith((".xml", ".rels")))
    if xml > max_bytes or sum(size for _, size in sizes) > _MAX_GROWTH * max_bytes:
        raise InputError(f"unpacks to more than {max_bytes / 1e6:g} MB: split it, or raise max_file_bytes")
    document = docx.Document(io.BytesIO(data))
    names = {style.style_id: style.name or "" for style in document.styles}
    parts: list[tuple[str, bool]] = []
    for block in _blocks(document.element.body):
        if block.tag == f"{_WORD}p":
            text, is_item = _paragraph(block, names)
            parts.append((text, is_item))
        else:
            parts.append((_table(block), False))
    parts = [part for part in parts if part[0].strip()]
    pieces = []
    for index, (text, is_item) in enumerate(parts):
        if index:
            pieces.append("\n" if is_item and parts[index - 1][1] else "\n\n")
        pieces.append(text)
    title = " ".join((document.core_properties.title or "").split())
    return Parsed("".join(pieces), {"title": title} if title else {})


def _blocks(parent: Any) -> Iterator[Any]:
    """Paragraphs and tables in order; those in content controls and tracked insertions too."""
    for child in parent:
        if child.tag in (f"{_WORD}p", f"{_WORD}tbl"):
            yield child
        elif child.tag in (f"{_WORD}sdt", f"{_WORD}sdtContent", f"{_WORD}ins", f"{_WORD}customXml"):
            yield from _blocks(child)


def _paragraph(element: Any, names: dict[str, str]) -> tuple[str, bool]:
    """(text, whether it is an item of a list); a heading gets its ``#``."""
    text = _words(element).strip("\n")
    style = element.find(f"{_WORD}pPr/{_WORD}pStyle")
    name = names.get(style.get(f"{_WORD}val"), "").lower() if style is not None else ""
    if not text.strip():
        return "", False
    if match := re.fullmatch(r"(title)|heading (\d)", name):
        level = 1 if match[1] else min(int(match[2]), 6)
        return "#" * max(level, 1) + " " + " ".join(text.split()), False
    if name.startswith("list") or element.find(f"{_WORD}pPr/{_WORD}numPr") is not None:
        return f"- {text}", True
    return text, False


def _words(element: Any) -> str:
    """The text of an element, tracked insertions and text boxes included, deletions left out."""
    out: list[str] = []
    stack = [element]
    while stack:
        node = stack.pop()
        if not isinstance(node.tag, str) or node.tag in _REMOVED:
            continue
        if node.tag == f"{_WORD}t":
            out.append(node.text or "")
        elif node.tag == f"{_WORD}tab":
            out.append("\t")
        elif node.tag in (f"{_WORD}br", f"{_WORD}cr"):
            out.append("\n")
        elif node.tag == f"{_WORD}noBreakHyphen":
            out.append("-")
        elif node.tag == f"{_WORD}p" and out:
            out.append("\n")  # a paragraph of a text box
        stack.extend(reversed(node))
    return "".join(out)


def _table(table: Any) -> str:
    """A line for each row, cells between bars; a table in a cell is part of the cell."""
    lines = []
    for row in table.iter(f"{_WORD}tr"):
        cells = [" ".join(_words(cell).split()) for cell in row.iterchildren(f"{_WORD}tc", f"{_WORD}sdt")]
        if row.getparent() is table and any(cells):
            lines.append(" | ".join(cells))
    return "\n".join(lines)


PARSERS: dict[str, Callable[[bytes, int], Parsed]] = {"html": _html, "pdf": _pdf, "docx": _docx}
