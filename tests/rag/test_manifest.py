from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gritkit.errors import StoreError
from gritkit.rag.manifest import FORMAT_VERSION, Manifest

MANIFEST = Manifest(fingerprint="abc", dim=8, prompt_format="grit", chunk_tokens=100, chunk_overlap=10, generation=3)


def test_it_is_read_as_it_was_written() -> None:
    assert Manifest.from_json(MANIFEST.to_json(), "kb") == MANIFEST
    assert json.loads(MANIFEST.to_json())["format_version"] == FORMAT_VERSION


@pytest.mark.parametrize("version", [1, 3, "2", None, "x" * 1000])
def test_another_format_version_is_refused_with_what_to_do(version: object) -> None:
    text = json.dumps({**json.loads(MANIFEST.to_json()), "format_version": version})
    with pytest.raises(
        StoreError, match=r"kb has knowledge-base format .* reads 2: index the documents again"
    ) as error:
        Manifest.from_json(text, "kb")
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": None},
        {"fingerprint": 3},
        {"dim": "8"},
        {"dim": 0},
        {"dim": True},
        {"dim": 8.0},
        {"codec": []},
        {"chunk_tokens": -1},
        {"generation": 1 << 40},
        {"prompt_format": {}},
    ],
)
def test_implausible_values_are_damage(change: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="the manifest of kb is damaged"):
        Manifest.from_json(json.dumps({**json.loads(MANIFEST.to_json()), **change}), "kb")


@given(
    st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.integers(), st.lists, max_leaves=5).map(json.dumps))
)
def test_anything_else_is_damage_too(text: str | bytes) -> None:
    with pytest.raises(StoreError, match="is damaged"):
        Manifest.from_json(text, "kb")


def test_a_missing_value_is_damage() -> None:
    for name in (field.name for field in dataclasses.fields(Manifest)):
        fields = json.loads(MANIFEST.to_json())
        del fields[name]
        with pytest.raises(StoreError, match="is damaged"):
            Manifest.from_json(json.dumps(fields), "kb")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fingerprint": "xyz"}, "model (abc, this one is xyz)"),
        ({"dim": 9}, "vector length (8, this one is 9)"),
        ({"prompt_format": "e5"}, "prompt format (grit, this one is e5)"),
        ({"codec": "int4"}, "codec (int8, this one is int4)"),
    ],
)
def test_what_must_agree(change: dict[str, object], what: str) -> None:
    mine = dataclasses.replace(MANIFEST, **change)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=re.escape(f"kb was indexed with another {what}") + ".*gritkit kb reindex kb"):
        mine.check_agrees(MANIFEST, "kb")


def test_how_documents_are_cut_need_not_agree() -> None:
    dataclasses.replace(MANIFEST, chunk_tokens=5, chunk_overlap=0, generation=0).check_agrees(MANIFEST, "kb")
