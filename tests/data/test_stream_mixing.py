from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gritkit.data import Lengths, Mixer, Stream, StreamMixer, load, tokenise
from gritkit.data.batches import ContrastiveBatch, MixedBatch
from gritkit.errors import InputError, RecordError
from gritkit.prompts import prompt_format
from gritkit.tokens import Tokens, TokenSeq
from tests.models import tokenizer

TOKENS = Tokens(tokenizer(), prompt_format("grit"))
LENGTHS = Lengths(query=64, passage=64, generative=200)


def pairs(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {"query": f"{name} query {i}", "pos": [f"{name} pos {i}"], "neg": [f"{name} neg {i}"]} for i in range(count)
    ]


def texts(name: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{name} text {i}"} for i in range(count)]


def stream(name: str, rows: list[dict[str, Any]]) -> Stream:
    return Stream.of(name, lambda: rows)


def mixer(*streams: Stream, size: int = 4, generative: int = 2, block_size: int = 8, **options: Any) -> StreamMixer:
    return StreamMixer(
        streams,
        TOKENS,
        LENGTHS,
        embedding_batch_size=size,
        generative_batch_size=generative,
        block_size=block_size,
        **options,
    )


def contrastive(batch: MixedBatch) -> ContrastiveBatch:
    assert batch.contrastive is not None
    return batch.contrastive


def written(sequences: Any) -> list[str]:
    return [TOKENS.backend.decode(s.ids.tolist()).split("<|embed|>\n")[-1] for s in sequences]


def signature(batch: MixedBatch) -> list[list[int]]:
    half = batch.contrastive
    return [s.ids.tolist() for s in [*(half.queries + half.passages if half else []), *batch.generative]]


def test_every_record_is_used_once_a_cycle_block_after_block_in_new_orders() -> None:
    mix = mixer(stream("s", pairs("a", 27)))
    cycles = []
    for _ in range(3):
        drawn = [written(contrastive(mix.draw()).queries) for _ in range(7)]
        for block in range(3):  # blocks of 8, of 8, of 8: two batches each
            numbers = {int(text.split()[-1]) for batch in drawn[2 * block : 2 * block + 2] for text in batch}
            assert numbers == set(range(8 * block, 8 * block + 8))
        assert {int(text.split()[-1]) for text in drawn[6]} == {24, 25, 26}  # the short last block
        cycles.append(drawn)
    assert cycles[0] != cycles[1] != cycles[2]
    assert mix.steps_per_epoch is None


def test_generative_records_too_and_both_halves_go_round_on_their_own() -> None:
    mix = mixer(stream("s", pairs("a", 8)), stream("g", texts("g", 5)), generative=3, block_size=4)
    drawn = [mix.draw() for _ in range(20)]
    examples = [TOKENS.backend.decode(s.ids.tolist()).split()[-1] for batch in drawn for s in batch.generative]
    assert len(examples) == 60
    for cycle in range(12):
        assert sorted(examples[5 * cycle : 5 * cycle + 5]) == [str(i) for i in range(5)]
    assert len({tuple(examples[5 * cycle : 5 * cycle + 5]) for cycle in range(12)}) > 1


def test_a_batch_holds_what_a_mixer_in_memory_puts_into_it() -> None:
    rows = [
        {**row, "answer": f"answer {i}", "pos_ids": [i], "neg_ids": [100 + i]} for i, row in enumerate(pairs("a", 8))
    ]
    streamed = contrastive(mixer(stream("s", rows), size=8, no_in_batch_negatives=["s"]).draw())
    data = tokenise(load(rows), TOKENS, LENGTHS)
    data.embedding[0] = ("s", data.embedding[0][1])
    whole = contrastive(
        Mixer(data, embedding_batch_size=8, generative_batch_size=1, no_in_batch_negatives=["s"]).draw()
    )

    def by_query(batch: ContrastiveBatch) -> dict[str, Any]:
        return {
            query: (passage, negative, batch.query_words[i], batch.alone[i], answer is not None and answer.ids.tolist())
            for i, (query, passage, negative, answer) in enumerate(
                zip(
                    written(batch.queries),
                    written(batch.passages[:8]),
                    written(batch.passages[8:]),
                    batch.answers,
                    strict=True,
                )
            )
        }

    assert by_query(streamed) == by_query(whole)
    assert streamed.source == "s"


ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    sets=st.lists(ROWS, min_size=1, max_size=3),
    examples=st.integers(0, 7),
    size=st.integers(1, 3),
    block_size=st.integers(1, 12),
    world_size=st.integers(1, 2),
    before=st.integers(0, 25),
    seed=st.integers(0, 3),
)
def test_what_holds_for_any_data(
    sets: list[list[tuple[int, int]]],
    examples: int,
    size: int,
    block_size: int,
    world_size: int,
    before: int,
    seed: int,
) -> None:
    streams = [
        stream(
            f"s{n}", [{"query": f"q{n} {a}", "pos": [f"p{b}"], "neg": [f"n{i}", "m"]} for i, (a, b) in enumerate(rows)]
        )
        for n, rows in enumerate(sets)
    ]
    streams += [stream("g", texts("g", examples))] if examples >= world_size else []
    sources_drawn = []
    for rank in range(world_size):
        options: dict[str, Any] = {
            "size": size * world_size,
            "generative": 2 * world_size,
            "block_size": block_size,
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
        }
        mix = mixer(*streams, **options)
        mixed = [mix.draw() for _ in range(before)]
        state = json.loads(json.dumps(mix.state_dict()))
        after = [mix.draw() for _ in range(10)]
        again = mixer(*streams, **options)
        again.load_state_dict(state)
        assert [signature(again.draw()) for _ in range(10)] == [signature(batch) for batch in after]
        used: dict[str, list[str]] = {}
        for batch in map(contrastive, [*mixed, *after]):
            assert 1 <= len(batch.queries) <= size
            assert len(set(batch.query_words)) == len(set(batch.passage_words[: len(batch.queries)]))
            assert len(set(batch.query_words)) == len(batch.queries)
            used.setdefault(batch.source, []).extend(written(batch.queries))
        for n, rows in enumerate(sets):
            share = Counter(f"q{n} {a}" for a, _ in rows[rank::world_size])
            drawn = Counter(used.get(f"s{n}", []))
            assert set(drawn) <= set(share)
            if sum(drawn.values()) >= size * sum(share.values()):  # every batch has at least one record's turn
                assert drawn >= share
        sources_drawn.append([contrastive(batch).source for batch in [*mixed, *after]])
    assert all(drawn == sources_drawn[0] for drawn in sources_drawn)  # in-batch negatives are of one source


def test_processes_share_the_records_and_the_global_batch() -> None:
    rows = pairs("a", 32)
    ranks = [mixer(stream("s", rows), size=8, rank=rank, world_size=2) for rank in range(2)]
    drawn = [[written(contrastive(mix.draw()).queries) for _ in range(4)] for mix in ranks]
    for rank, batches in enumerate(drawn):
        assert all(len(batch) == 4 for batch in batches)
        assert {int(text.split()[-1]) for batch in batches for text in batch} == set(range(rank, 32, 2))
    assert [text.split()[-1] for text in drawn[0][0]] != [str(int(text.split()[-1]) - 1) for text in drawn[1][0]]
    with pytest.raises(InputError, match="embedding_batch_size=9 cannot be shared evenly by 2 processes"):
        mixer(stream("s", rows), size=9, world_size=2)
    with pytest.raises(InputError, match="generative_batch_size=3 cannot be shared evenly by 2 processes"):
        mixer(stream("g", texts("g", 4)), generative=3, world_size=2)
    assert mixer(stream("s", rows), size=8, generative=3, world_size=2).draw().generative == []


def test_memory_is_bounded_by_the_block_and_a_resume_parses_one_block() -> None:
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        number = 0
        while True:
            yield {"query": f"q {number}", "pos": [f"p {number}"]}
            read += 1
            number += 1

    source = Stream.of("endless", endless)
    mix = mixer(source, size=4, block_size=10)  # made 12, whole batches
    read, alive = 0, []
    for step in range(1, 31):
        batch = mix.draw()
        assert read <= 12 * (1 + (step - 1) // 3)
        alive.append(sum(type(item) is TokenSeq for item in gc.get_objects()))
    assert alive[-1] == alive[0]  # the texts of one block
    assert {int(text.split()[-1]) for text in written(contrastive(batch).queries)} <= set(range(108, 120))


def test_a_resumed_run_does_not_parse_what_it_has_passed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [json.dumps(row).encode() for row in pairs("a", 30)]
    file.write_bytes(b"\n".join(rows))

    def made() -> StreamMixer:
        return StreamMixer(file, TOKENS, LENGTHS, embedding_batch_size=4, generative_batch_size=1, block_size=8)

    mix = made()
    for _ in range(5):
        mix.draw()
    state = mix.state_dict()
    expected = [signature(mix.draw()) for _ in range(2)]
    file.write_bytes(b"\n".join([rows[0], *(b"x" * len(row) for row in rows[1:16]), *rows[16:]]))
    resumed = made()
    resumed.load_state_dict(state)
    assert [signature(resumed.draw()) for _ in range(2)] == expected
    file.write_bytes(b"\n".join(rows[:-1]))
    with pytest.raises(InputError, match="sources was"):
        made().load_state_dict(state)
    file.write_bytes(b"\n".join([*rows[:20], b"broken", *rows[21:]]))
    late = made()
    for _ in range(4):
        late.draw()
    with pytest.raises(RecordError, match=r"training stopped there:\n  a.jsonl:21: not JSON"):
        late.draw()


def test_records_that_the_model_cannot_use_stop_the_run_with_their_place() -> None:
    rows = texts("g", 20)
    rows[13] = {"text": ["user " * 999, "answer"]}
    mix = mixer(stream("g.jsonl", rows), generative=4)
    mix.draw()
    mix.draw()
    with pytest.raises(RecordError, match=r"training stopped there:\n  g.jsonl:13: nothing of the"):
        mix.draw()


def test_sources_are_drawn_by_their_weights_in_both_halves() -> None:
    streams = [
        stream("a.jsonl", pairs("a", 40)),
        stream("b.jsonl", pairs("b", 8)),
        stream("c", texts("c", 3)),
        stream("d", texts("d", 30)),
    ]
    equal = Counter({"a.jsonl": 1, "b.jsonl": 1, "c": 1, "d": 1})
    for sampling, weights in (
        (None, equal),
        ({"a": 3, "b.jsonl": 1}, Counter({"a.jsonl": 3, "b.jsonl": 1, "c": 1, "d": 1})),
        ({"c": 1, "d": 4}, Counter({"a.jsonl": 1, "b.jsonl": 1, "c": 1, "d": 4})),
        ({"a": 1, "b": 0, "c": 0, "d": 1}, Counter({"a.jsonl": 1, "d": 1})),
    ):
        mix = mixer(*streams, sampling=sampling, seed=1)
        drawn: Counter[str] = Counter()
        for _ in range(400):
            batch = mix.draw()
            drawn[contrastive(batch).source] += 2
            drawn.update(TOKENS.backend.decode(s.ids.tolist()).split()[-3][-1] for s in batch.generative)
        for half in (("a.jsonl", "b.jsonl"), ("c", "d")):
            for name in half:
                chance = weights[name] / sum(weights[other] for other in half)
                assert abs(drawn[name] / 800 - chance) <= 4 * (chance * (1 - chance) / 400) ** 0.5


def test_nonsense_is_refused() -> None:
    streams = [stream("a.jsonl", pairs("a", 8)), stream("g", texts("g", 8))]
    for options, message in (
        ({"size": 0}, "embedding_batch_size=0"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"sampling": 0.5}, "sampling=0.5: how large streams are is not known"),
        ({"sampling": "proportional"}, "sampling='proportional': how large"),
        ({"sampling": {"x": 1}}, "no source is called 'x'"),
        ({"sampling": {"a": 0}}, "no weight above 0"),
        ({"no_in_batch_negatives": ["g"]}, "no source is called 'g'"),
    ):
        with pytest.raises(InputError, match=message):
            mixer(*streams, **options)
    state = mixer(*streams, world_size=2, size=4, rank=1).state_dict()
    with pytest.raises(InputError, match="rank was 1 and is 0"):
        mixer(*streams, world_size=2, size=4).load_state_dict(state)
