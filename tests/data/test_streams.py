from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gritkit.data import Stream, open_streams
from gritkit.data.streams import Blocks
from gritkit.errors import InputError, RecordError

TEXTS = [{"text": f"text {i}"} for i in range(23)]


def lines(rows: list[Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def texts_of(stream: Stream, rank: int, world_size: int, skip: int = 0) -> list[str]:
    return [row["text"] for _, row in stream.rows(rank, world_size, skip)]


def every_form(folder: Path) -> dict[str, Any]:
    import datasets
    import pyarrow
    from pyarrow import parquet

    (folder / "a.jsonl").write_bytes(lines(TEXTS))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS)))
    parquet.write_table(pyarrow.Table.from_pylist(TEXTS), folder / "c.parquet")
    made = datasets.Dataset.from_list(TEXTS)
    made.save_to_disk(folder / "saved")
    return {
        "jsonl": folder / "a.jsonl",
        "gzip": str(folder / "b.jsonl.gz"),
        "parquet": folder / "c.parquet",
        "saved": folder / "saved",
        "data set": made,
        "one shard": made.to_iterable_dataset(),
        "four shards": made.to_iterable_dataset(num_shards=4),
        "function": [Stream.of("function", lambda: iter(TEXTS))],
    }


def test_every_form_is_divided_among_processes_without_rest_and_can_be_read_from_anywhere(tmp_path: Path) -> None:
    for form, data in every_form(tmp_path).items():
        (stream,) = open_streams(data)
        assert stream.kind == "generative"
        for world_size in (1, 2, 3, 4):
            shares = [texts_of(stream, rank, world_size) for rank in range(world_size)]
            assert sorted(text for share in shares for text in share) == sorted(row["text"] for row in TEXTS)
            if form != "four shards":
                assert shares == [[row["text"] for row in TEXTS[rank::world_size]] for rank in range(world_size)]
            for rank, share in enumerate(shares):
                assert texts_of(stream, rank, world_size) == share  # again and again the same
                assert texts_of(stream, rank, world_size, 4) == share[4:]
                assert texts_of(stream, rank, world_size, 99) == []


def test_a_folder_gives_a_stream_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines([{"query": "q", "pos": ["p"]}]))
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS))
    first, second = open_streams(tmp_path)
    assert [(s.name, s.kind, s.num_bytes) for s in (first, second)] == [
        ("a.jsonl", "generative", (tmp_path / "a.jsonl").stat().st_size),
        ("b.jsonl", "embedding", (tmp_path / "b.jsonl").stat().st_size),
    ]


def test_blocks_are_read_on_or_from_anywhere() -> None:
    opened = 0

    def read() -> Any:
        nonlocal opened
        opened += 1
        return iter(TEXTS)

    stream = Stream.of("s", read)
    blocks = Blocks(stream, 5, 0, 2)  # 12 of the 23
    read_ahead = [blocks.read(0, block) for block in range(4)]
    assert [len(source[0].records) if source else 0 for source in read_ahead] == [5, 5, 2, 0]
    assert opened == 2  # the first look, and one pass
    (again,) = blocks.read(3, 1)
    assert again == read_ahead[1][0]
    assert [again.where(i) for i in (0, 4)] == ["s:10", "s:18"]


def test_only_the_lines_of_the_share_and_the_block_are_parsed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": f"text {i}"}).encode() for i in range(12)]
    broken = [row if i in (0, 5, 7) else b"{" for i, row in enumerate(rows)]
    file.write_bytes(b"\n\n".join(broken))
    blocks = Blocks(open_streams(file)[0], 2, 1, 2)
    (source,) = blocks.read(0, 1)
    assert [source.where(i) for i in range(2)] == ["a.jsonl:11", "a.jsonl:15"]


def test_bad_records_are_reported_by_file_and_line_when_their_block_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    good = lines(TEXTS).split(b"\n")
    file.write_bytes(gzip.compress(b"\n".join([*good[:4], b"{", b'{"text": ""}', b'{"query": "q", "pos": ["p"]}'])))
    blocks = Blocks(open_streams(file)[0], 4, 0, 1)
    blocks.read(0, 0)
    for _ in range(2):  # asking again does not pass over them
        with pytest.raises(RecordError) as caught:
            blocks.read(0, 1)
        first, *rest = str(caught.value).split("\n  ")
        assert first == "3 bad records; mend or remove them, training stopped there:"
        assert rest[0].startswith("a.jsonl.gz:5: not JSON")
        assert rest[1:] == [
            "a.jsonl.gz:6: text is empty",
            "a.jsonl.gz:7: a record of the embedding kind in a file of the generative kind",
        ]
    whole = gzip.compress(lines([{"text": f"{i * 7919 % 100003} " * 20} for i in range(30000)]))
    file.write_bytes(whole[:-5000])
    blocks = Blocks(open_streams(file)[0], 30000, 0, 1)
    with pytest.raises(RecordError, match="ends too early after this line"):
        blocks.read(0, 0)


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(RecordError, match=r"empty\.jsonl: it has no records"):
        open_streams(tmp_path)
    with pytest.raises(RecordError, match="s:0: text is empty"):
        Stream.of("s", lambda: [{"text": ""}])
    for data, name in (([{"text": "t"}], "list"), (iter(TEXTS), "list_iterator"), (3, "int"), ([], "list")):
        with pytest.raises(InputError, match=rf"Stream.of\(...\), not {name}"):
            open_streams(data)
    with pytest.raises(InputError, match="s has no record for process 2 of 3"):
        Blocks(Stream.of("s", lambda: TEXTS[:2]), 4, 2, 3).read(0, 0)
