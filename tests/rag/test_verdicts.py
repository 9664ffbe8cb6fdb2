from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gritkit.errors import StoreError
from gritkit.files import home
from gritkit.rag import verdicts
from gritkit.rag.verdicts import Verdict

MODEL = "a" * 64


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRITKIT_HOME", str(tmp_path / "home"))


def verdict(codec: str = "int8", link_tokens: int = 0, *, allowed: bool = True, **rest: Any) -> Verdict:
    reuse = "linked" if link_tokens else "cached"
    fields = {"join": "no-bos", "reason": "match 0.9 of 1.0", "figures": {"kl": 0.5}, **rest}
    return Verdict(reuse=reuse, codec=codec, link_tokens=link_tokens, allowed=allowed, **fields)


def file() -> Path:
    return home() / "gates" / f"{MODEL}.json"


def test_what_was_saved_is_loaded_for_that_model_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert verdicts.load(MODEL) == []
    saved = [verdict(), verdict(link_tokens=8, allowed=False, join="text")]
    verdicts.save(MODEL, saved)
    assert verdicts.load(MODEL) == saved
    assert verdicts.load("b" * 64) == []
    assert caplog.records == []


def test_new_ones_replace_those_about_the_same_codec() -> None:
    verdicts.save(MODEL, [verdict("int8"), verdict("int8", 8)])
    verdicts.save(MODEL, [verdict("exact")])
    verdicts.save(MODEL, [verdict("int8", allowed=False)])
    assert sorted((one.codec, one.link_tokens, one.allowed) for one in verdicts.load(MODEL)) == [
        ("exact", 0, True),
        ("int8", 0, False),
    ]


def _whole(**changes: Any) -> bytes:
    fields = {
        "reuse": "cached", "codec": "int8", "join": "no-bos", "link_tokens": 0, "allowed": True, "reason": "",
        "figures": {},
    }  # fmt: skip
    return json.dumps({"format_version": 1, "verdicts": [fields | changes]}).encode()


def test_the_file_of_the_damages_below_is_otherwise_whole() -> None:
    file().parent.mkdir(parents=True)
    file().write_bytes(_whole())
    assert len(verdicts.load(MODEL)) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "another format"),
        (b'{"verdicts": []}', "another format"),
        (b'{"format_version": 2, "verdicts": []}', "another format"),
        (b'{"format_version": 1}', "cannot be understood"),
        (b'{"format_version": 1, "verdicts": 5}', "cannot be understood"),
        (b'{"format_version": 1, "verdicts": [5]}', "cannot be understood"),
        (b'{"format_version": 1, "verdicts": [{"reuse": "cached"}]}', "cannot be understood"),
        (_whole(more=1), "cannot be understood"),
        (_whole(allowed="no"), "cannot be understood"),
        (_whole(link_tokens="8"), "cannot be understood"),
        (_whole(link_tokens=-1), "cannot be understood"),
        (_whole(link_tokens=True), "cannot be understood"),
        (_whole(join="bos"), "cannot be understood"),
        (_whole(codec=None), "cannot be understood"),
    ],
)
def test_a_file_that_is_none_is_a_warning_and_not_used(
    content: bytes, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    file().parent.mkdir(parents=True)
    file().write_bytes(content)
    with caplog.at_level(logging.WARNING, "gritkit"):
        assert verdicts.load(MODEL) == []
    (record,) = caplog.records
    assert says in record.getMessage()
    assert "gritkit kb gate" in record.getMessage()
    verdicts.save(MODEL, [verdict()])  # the next gate sets it right
    assert verdicts.load(MODEL) == [verdict()]


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRITKIT_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot keep the verdicts in") as error:
        verdicts.save(MODEL, [verdict()])
    assert "\n" not in str(error.value)
