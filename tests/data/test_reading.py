from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gritkit.data import EmbeddingRecord, GenerativeRecord, Source, load
from gritkit.data.reading import data_set, file_rows
from gritkit.errors import InputError, MissingExtraError, RecordError

PAIR = {"query": "q", "pos": ["p"], "neg": []}
CHAT = {"text": ["u", "a"]}


def lines(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def test_plain_gzip_zstd_and_parquet_read_alike(tmp_path: Path) -> None:
    import pyarrow
    import zstandard
    from pyarrow import parquet

    rows = [{"query": "\u2028 é", "pos": ["p"], "neg": ["n"]}, {"query": "second", "pos": ["x", "y"], "neg": []}]
    raw = b"\xef\xbb\xbf" + lines(rows[0], b"\n") + json.dumps(rows[1], ensure_ascii=False).encode()
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(raw))
    two_frames = zstandard.compress(raw[:30]) + zstandard.compress(raw[30:])
    (tmp_path / "c.jsonl.zst").write_bytes(two_frames)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    sources = load(tmp_path)
    assert [source.name for source in sources] == ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"]
    expected = [EmbeddingRecord.of(row["query"], row["pos"], row["neg"]) for row in rows]
    for source in sources:
        assert source.kind == "embedding"
        assert list(source.records) == expected
    assert sources[0].where(1) == "a.jsonl:3"
    assert load(tmp_path / "a.jsonl")[0].records == sources[0].records


def test_a_folder_mixes_kinds_and_each_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines(CHAT, {"text": "raw"}))
    (tmp_path / "a.jsonl").write_bytes(lines(PAIR))
    assert [(s.name, s.kind, len(s.records)) for s in load(str(tmp_path))] == [
        ("a.jsonl", "embedding", 1),
        ("b.jsonl", "generative", 2),
    ]


def test_records_in_memory() -> None:
    records = [EmbeddingRecord.of("q", ["p"]), GenerativeRecord.of("raw"), PAIR]
    sources = load(records)
    assert [(s.kind, len(s.records)) for s in sources] == [("embedding", 2), ("generative", 1)]
    assert load(iter(records))[0].records == sources[0].records
    assert load(sources) == sources
    with pytest.raises(RecordError, match="records:1: pos is empty"):
        load([PAIR, {"query": "q", "pos": []}])


def test_every_bad_record_of_every_file_is_in_one_report(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines(
            PAIR, b"{broken\n", b"\n", {"query": "", "pos": ["p"]}, b'{"query": "\xff"}\n', CHAT, b"[" * 100000 + b"\n"
        )
    )
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(*[CHAT] * 5000))[:-20])
    (tmp_path / "c.jsonl").write_bytes(b"")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "e.json").write_bytes(json.dumps([PAIR]).encode())
    (tmp_path / "f.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "g.jsonl.zst").write_bytes(b"not zstd")
    with pytest.raises(RecordError) as caught:
        load(tmp_path)
    first, *rest = str(caught.value).split("\n  ")
    assert first == "11 bad records; mend or remove them, nothing was trained:"
    for place, what in zip(
        rest,
        (
            "a.jsonl:2: not JSON",
            "a.jsonl:4: query is empty",
            "a.jsonl:5: not UTF-8",
            "a.jsonl:6: a record of the generative kind in a file of the embedding kind",
            "a.jsonl:7: not JSON",
            "b.jsonl.gz:",
            "c.jsonl: the file has no records",
            "d.parquet:0: cannot be read",
            "e.json:1: a JSON array, not JSON Lines",
            "f.jsonl.gz:0: cannot be read",
            "g.jsonl.zst:0: cannot be read",
        ),
        strict=True,
    ):
        assert place.startswith(what), place
    assert "ends too early" in rest[5]


def test_a_torn_zstd_file_is_noticed(tmp_path: Path) -> None:
    import zstandard

    whole = zstandard.compress(lines(*({"text": f"story {i * 7919 % 10007}"} for i in range(50000))))
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="the zst file ends too early"):
        load(tmp_path)


def test_the_listing_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{\n" * 1000)
    with pytest.raises(RecordError) as caught:
        load(tmp_path)
    listed = str(caught.value).split("\n  ")
    assert listed[0].startswith("1000 bad records")
    assert len(listed) == 22
    assert listed[-1] == "... and 980 more"


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="none of the formats"):
        load(tmp_path / "a.txt")
    with pytest.raises(InputError, match="holds no file"):
        load(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="must be a path"):
        load(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="data is empty"):
        load([])


def test_a_saved_data_set(tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_list([{"query": "q", "pos": ["p"], "neg": ["n"]}] * 3)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "split")
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "other")
    for name in ("one", "split"):
        (source,) = load(tmp_path / name)
        assert isinstance(source, Source)
        assert (source.name, len(source.records)) == (name, 3)
    with pytest.raises(InputError, match="no train split; it has test"):
        load(tmp_path / "other")


def test_a_data_set_is_read_as_it_comes_or_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner/name").mkdir(parents=True)
    (tmp_path / "owner/name/train.jsonl").write_bytes(lines(PAIR, PAIR))
    monkeypatch.chdir(tmp_path)  # where the library looks for "owner/name" before it asks the hub
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    streamed = data_set("owner/name", streaming=True)
    assert not hasattr(streamed, "__len__")
    assert list(streamed) == list(data_set("owner/name")) == [PAIR, PAIR]
    with pytest.raises(InputError, match="cannot load the data set owner/other"):
        data_set("owner/other", streaming=True)


def test_every_nth_row_of_a_file_keeps_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*({"text": str(i)} for i in range(4)), b"\n", {"text": "4"}))
    assert list(file_rows(tmp_path / "a.jsonl", 1, 3)) == [(2, {"text": "1"}), (6, {"text": "4"})]


def test_an_optional_library_is_named_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package in (("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow")):
        (tmp_path / name).write_bytes(b"")
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf"{package}.*gritkit\[train\]"):
            load(tmp_path / name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="datasets"):
        load("owner/name")


def test_the_toy_data_of_the_original_code(shared: Path) -> None:
    sources = load(shared / "data/contrastive/gritlm_toy")
    assert [(s.kind, len(s.records)) for s in sources] == [("embedding", 10)] * 2 + [("generative", 10)] * 2
    instructed = sources[1].records[0]
    assert isinstance(instructed, EmbeddingRecord)
    assert instructed.query.instruction == "Represent this text"


@pytest.mark.parametrize("name", ["boolq_pairs", "flagembedding_examples", "rte_entailed_pairs"])
def test_real_pairs(shared: Path, name: str) -> None:
    (source,) = load(shared / f"data/contrastive/{name}.jsonl.gz")
    assert source.kind == "embedding"
    assert len(source.records) >= 80
