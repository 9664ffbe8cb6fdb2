from __future__ import annotations

import io
import json

import pytest

from gritkit.errors import InputError
from gritkit.rag.rows import MAX_BAD_ROWS, BadRow, Row, read_rows


def rows(content: str | bytes, suffix: str = ".jsonl", field: str = "text", limit: int = 10_000) -> list[Row | BadRow]:
    data = content if isinstance(content, bytes) else content.encode()
    return list(read_rows(io.BytesIO(data), suffix, field, limit))


def test_json_lines() -> None:
    given = [{"text": "one", "id": "x", "lang": "en", "nested": {"a": 1}, "n": 1, "no": None}, {"text": "two", "id": 7}]
    content = "\ufeff" + "\r\n".join(json.dumps(row) for row in given) + "\n\n" + '{"text": "three\\nlines"}'
    assert rows(content) == [
        Row(1, "one", "x", {"lang": "en", "n": 1}),
        Row(2, "two", "7", {}),
        Row(4, "three\nlines", None, {}),
    ]
    assert rows('{"body": "b"}', field="body") == [Row(1, "b", None, {})]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"nonsense", "is not JSON: Expecting value at character 1"),
        (b'{"body": "b", "x": 1}', "no text in the field 'text': it has body, x"),
        (b"[1]", "no object"),
        (b'{"text": 5}', "no text in the field 'text' but 5"),
        (b'{"text": [' + b"1, " * 60 + b"1]}", r"no text in the field 'text' but \[1, 1, .* \.\.\."),
        (b'{"text": " "}', "nothing in the field"),
        (b'{"text": "a", "score": NaN}', "no NaN"),
        (b'{"text": "a", "id": [1]}', "an id that is no text"),
        (b'{"text": "caf\xe9"}', "byte 0xe9"),
        (b"[" * 5000, "cannot be read|can be read"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "can be read"),
        (b'{"text": "' + b"a" * 20_000 + b'"}', "longer than 0.01 MB"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_read(line: bytes, says: str) -> None:
    first, bad, last = rows(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    assert (first, last) == (Row(1, "a", None), Row(3, "b", None))
    assert isinstance(bad, BadRow)
    assert bad.line == 2
    with pytest.raises(InputError, match=says):
        raise InputError(bad.reason)


def test_tables() -> None:
    content = '\ufeffid, text ,lang,empty\r\n1,"one, two\nthree",en,\r\n\r\n,four,"d""e",\r\n5,five\r\n'
    assert rows(content, ".csv") == [
        Row(2, "one, two\nthree", "1", {"lang": "en"}),
        Row(5, "four", None, {"lang": 'd"e'}),
        Row(6, "five", "5", {}),
    ]
    assert rows("body\tid\na,b\tx\n", ".tsv", "body") == [Row(2, "a,b", "x", {})]
    assert rows("", ".csv") == []
    long = "w " * 200_000
    assert rows(f"text\n{long}\n", ".csv", limit=10**6) == [Row(2, long, None, {})]


def test_bad_rows_of_tables() -> None:
    found = rows('text,a\none,1,2\n"two"x,3\n ,4\nthree,5\n', ".csv")
    assert [row.line for row in found] == [2, 3, 4, 5]
    assert [type(row) for row in found] == [BadRow, BadRow, BadRow, Row]


@pytest.mark.parametrize(
    ("content", "suffix", "says"),
    [
        (b"id,body\n1,a\n", ".csv", "no column 'text': its first row has id, body"),
        (b"text,a,a\nx,1,2\n", ".csv", "two columns of one name"),
        (b"text\ncaf\xe9\n", ".csv", "line 2 that is not UTF-8 text .byte 0xe9"),
        (b'text\n"open ' + b"and so on\n" * 3000, ".csv", "row at line 2 that .* a quote left open"),
        (b"text\n" + b"," * 20_000, ".csv", "row at line 2"),
        ("text\nx".encode("utf-16"), ".csv", "is UTF-16"),
        (b"\x89PNG\0\n" * 10, ".csv", "zero byte on line 1"),
        (b'{"text": "a"}\n\0\n', ".jsonl", "zero byte on line 2"),
        (b"junk\n" * 2000, ".jsonl", f"has {MAX_BAD_ROWS} bad rows one after the other"),
    ],
)
def test_a_file_that_is_no_table_is_given_up(content: bytes, suffix: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rows(content, suffix)


def test_rows_come_before_the_file_is_read() -> None:
    class Endless(io.RawIOBase):
        read_so_far = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:
            line = b'{"text": "again"}\n'
            buffer[: len(line)] = line
            Endless.read_so_far += len(line)
            return len(line)

    endless = read_rows(io.BufferedReader(Endless()), ".jsonl", "text", 1000)
    assert [next(endless) for _ in range(3)] == [Row(number, "again", None) for number in (1, 2, 3)]
    assert Endless.read_so_far < 100_000
