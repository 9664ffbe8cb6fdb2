"""Schemas that would take the server's compiler without end, tried where they cannot harm."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")

from gritkit.errors import GritkitError, InputError
from gritkit_serve import json_schemas
from gritkit_serve.engine import Overloaded
from gritkit_serve.grammar import unusable
from gritkit_serve.json_schemas import JsonSchemas

PLAIN = {"type": "object", "properties": {"name": {"type": "string"}}}


def nested(levels: int, *, of_each: int = 45) -> dict[str, Any]:
    """Arrays in arrays: few levels in each definition, and a reference to the next at its innermost."""
    definitions: dict[str, Any] = {}
    for index in range(levels // of_each):
        inner: dict[str, Any] = {"$ref": f"#/$defs/{index + 1}"}
        for _ in range(of_each):
            inner = {"items": inner}
        definitions[str(index)] = inner
    return {"$ref": "#/$defs/0", "$defs": {**definitions, str(levels // of_each): {"type": "string"}}}


def patterns(count: int) -> dict[str, Any]:
    """An intersection whose automaton doubles with every pattern."""
    return {"allOf": [{"type": "string", "pattern": f"^.*a.{{{index}}}$"} for index in range(1, count)]}


def check(*schemas: dict[str, Any]) -> list[GritkitError | None]:
    """What one after the other was refused with."""

    async def all_of_them() -> list[GritkitError | None]:
        trying, found = JsonSchemas(), list[GritkitError | None]()
        for schema in schemas:
            try:
                await trying.check(schema)
                found.append(None)
            except GritkitError as error:
                found.append(error)
        return found

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("schema", [PLAIN, {}, nested(300), {"type": "string", "pattern": "^(a+)+$"}])
def test_what_can_be_compiled_is_let_through(schema: dict[str, Any]) -> None:
    assert check(schema) == [None]


@pytest.mark.parametrize(
    "schema",
    [nested(3000), patterns(60), {"type": "string", "pattern": r"(?i)[\p{L}\w\S]{2,9}" * 500}],
    ids=["nesting", "intersections", "classes"],
)
def test_what_would_take_time_memory_or_the_stack_is_refused(schema: dict[str, Any]) -> None:
    (error,) = check(schema)
    assert isinstance(error, InputError)
    assert "takes more than 2 s or 768 MiB to compile, or is nested too deeply" in str(error)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nothing"}, "the JSON schema cannot be used: Invalid type: nothing"),
        ({"$ref": "#"}, "the JSON schema cannot be used: no text obeys it"),
        ({"type": "string", "pattern": "("}, r"regex parse error: \( \^ error: unclosed group"),
        ({"enum": ["x" * 70_000]}, "bytes and may have 65536"),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        asyncio.run(JsonSchemas().check(schema))


def test_a_schema_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    async def counted(text: str) -> str | None:
        tried.append(text)
        return None

    monkeypatch.setattr(json_schemas, "_wrong_with", counted)
    monkeypatch.setattr(json_schemas, "_REMEMBERED", 2)
    other, third = {"type": "string"}, {"type": "null"}
    assert check(PLAIN, PLAIN, other, PLAIN, third, PLAIN, other) == [None] * 7
    assert [json.loads(text) for text in tried] == [PLAIN, other, third, other]  # the one longest unused was forgotten


def test_no_more_wait_than_may() -> None:
    async def many() -> tuple[list[object], object]:
        trying = JsonSchemas()
        first = [asyncio.create_task(trying.check({"const": index})) for index in range(34)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="34 JSON schemas are being tried"):
            await trying.check({"const": 34})
        for task in first:
            task.cancel()
        ends = await asyncio.gather(*first, return_exceptions=True)
        return list(ends), await trying.check({"const": 34})

    ends, after = asyncio.run(many())
    assert {type(end) for end in ends} == {asyncio.CancelledError}
    assert after is None


def test_one_that_is_sent_again_is_refused_without_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it tried for each of those who wait with the same one."""
    tried = 0
    real = json_schemas._wrong_with

    async def counted(text: str) -> str | None:
        nonlocal tried
        tried += 1
        return await real(text)

    async def several() -> list[object]:
        trying = JsonSchemas()
        same = [trying.check({"type": "nothing"}) for _ in range(6)]
        return [*await asyncio.gather(*same, return_exceptions=True)]

    monkeypatch.setattr(json_schemas, "_wrong_with", counted)
    ends = asyncio.run(several())
    assert [str(end) for end in ends] == ["the JSON schema cannot be used: Invalid type: nothing"] * 6
    assert tried <= 2  # as many as begin at once
    tried = 0
    assert [str(error) for error in check({"type": "nothing"}, {"type": "nothing"})] == [str(ends[0])] * 2
    assert tried == 1


def test_a_process_that_cannot_begin_is_not_the_schema_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (error,) = check(PLAIN)
    assert isinstance(error, Overloaded)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (error,) = check(PLAIN)
    assert isinstance(error, Overloaded)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks into the folder first")
def test_modules_of_the_folder_it_was_started_in_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert check(PLAIN) == [None]


def test_what_the_compiler_panics_about_is_not_told() -> None:
    panic = "panic: assertion failed: grammar.symbols.len() < u16::MAX as usize - 10\n<backtrace>"
    assert str(unusable(panic)) == "the JSON schema cannot be used: it is too large for a grammar"
