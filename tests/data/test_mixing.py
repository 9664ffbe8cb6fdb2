from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gritkit.data import EmbeddingRecord, GenerativeRecord, Lengths, Mixer, Source, TokenisedData, load, tokenise
from gritkit.data.batches import ContrastiveBatch, MixedBatch
from gritkit.errors import InputError
from gritkit.prompts import prompt_format
from gritkit.tokens import Tokens
from tests.models import tokenizer

TOKENS = Tokens(tokenizer(), prompt_format("grit"))


def made(*embedding: list[EmbeddingRecord], generative: int = 0) -> TokenisedData:
    sources: list[Any] = [Source(f"s{i}", "embedding", records) for i, records in enumerate(embedding)]
    sources.append(Source("g", "generative", [GenerativeRecord.of(f"text {i}") for i in range(generative)]))
    return tokenise(sources, TOKENS, Lengths(query=64, passage=64, generative=64))


def records(name: str, count: int, pos: int = 1, neg: int = 2) -> list[EmbeddingRecord]:
    return [
        EmbeddingRecord.of(
            f"{name} query {i}",
            [f"{name} pos {i} {j}" for j in range(pos)],
            [f"{name} neg {i} {j}" for j in range(neg)],
        )
        for i in range(count)
    ]


def mixer(data: TokenisedData, size: int = 8, generative: int = 4, **options: Any) -> Mixer:
    return Mixer(data, embedding_batch_size=size, generative_batch_size=generative, **options)


def written(sequences: Any) -> list[str]:
    return [TOKENS.backend.decode(s.ids.tolist()).split("<|embed|>\n")[-1] for s in sequences]


def contrastive(batch: MixedBatch) -> ContrastiveBatch:
    assert batch.contrastive is not None
    return batch.contrastive


def signature(batch: MixedBatch) -> list[list[int]]:
    half = batch.contrastive
    texts = [*(half.queries + half.passages if half else []), *batch.generative]
    return [s.ids.tolist() for s in texts]


def test_every_row_is_used_in_every_epoch_and_batches_are_of_one_source() -> None:
    mix = mixer(made(records("a", 37), records("b", 21), records("c", 3)), size=8)
    assert mix.steps_per_epoch == 4 + 2 + 2  # 32 of a, 16 of b, and 5 + 5 + 3 left
    for _ in range(3):
        batches = [contrastive(mix.draw()) for _ in range(mix.steps_per_epoch)]
        assert all(len(batch.queries) == 8 for batch in batches)
        used = Counter(text for batch in batches for text in written(batch.queries))
        assert len(used) == 61
        assert sum(used.values()) == 64  # the last batch was filled up with three rows drawn anew
        assert Counter(batch.source for batch in batches) >= Counter({"s0": 4, "s1": 2})
        for batch in batches:
            names = {text[0] for text in written(batch.queries)}
            assert len(names) == 1 or not batch.source


def test_positives_and_negatives_belong_to_their_queries() -> None:
    mix = mixer(made(records("a", 20, pos=3, neg=5)), num_hard_negatives=2)
    seen = set()
    for _ in range(40):
        batch = contrastive(mix.draw())
        queries, passages = written(batch.queries), written(batch.passages)
        assert len(passages) == 3 * len(queries)
        for i, (owner, passage) in enumerate(zip(batch.owners, passages, strict=True)):
            kind = "pos" if i < len(queries) else "neg"
            assert passage.startswith(queries[owner].replace("query", kind) + " ")
            assert i >= len(queries) or owner == i
            seen.add(passage)
    assert len(seen) == 20 * 8  # every positive and every negative is drawn at some time


def test_negatives_are_resampled_when_there_are_fewer() -> None:
    mix = mixer(made(records("a", 4, neg=2) + records("b", 4, neg=0)), num_hard_negatives=3)
    batch = contrastive(mix.draw())
    counted = Counter(batch.owners[8:])
    assert sorted(counted.values()) == [3, 3, 3, 3]
    assert all(text.startswith("a") for text in written(batch.passages[8:]))
    for owner in counted:
        given = [t for t, o in zip(written(batch.passages[8:]), batch.owners[8:], strict=True) if o == owner]
        assert len(set(given)) == 2
    assert len(contrastive(mixer(made(records("a", 8)), num_hard_negatives=0).draw()).passages) == 8


def test_no_query_and_no_positive_twice_in_a_batch() -> None:
    data = [
        EmbeddingRecord.of(f"question {i % 40}", [f"label {i % 12}"], [f"label {(i + 1) % 12}"]) for i in range(200)
    ]
    mix = mixer(made(data), size=8)
    used: Counter[str] = Counter()
    for _ in range(mix.steps_per_epoch):
        batch = contrastive(mix.draw())
        size = len(batch.queries)
        assert len(set(batch.query_words)) == len(set(batch.passage_words[:size])) == size
        used.update(written(batch.queries))
    assert all(used[f"question {i}"] >= 5 for i in range(40))
    assert sum(used.values()) <= 200 + 8 * 8


def test_a_row_with_another_positive_need_not_wait() -> None:
    data = [EmbeddingRecord.of(f"q {i}", ["same", f"own {i}"]) for i in range(8)]
    for seed in range(5):
        batch = contrastive(mixer(made(data), size=8, seed=seed).draw())
        assert len(set(batch.passage_words)) == len(batch.queries) == 8


@pytest.mark.parametrize(("embedding", "generative"), [(64, 6), (8, 50), (0, 10), (16, 0), (3, 2)])
def test_sets_of_any_relative_size_are_used_whole(embedding: int, generative: int) -> None:
    sets = [records("a", embedding)] if embedding else []
    mix = mixer(made(*sets, generative=generative), size=8, generative=4)
    queries: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    for _ in range(mix.steps_per_epoch):
        batch = mix.draw()
        queries.update(written(batch.contrastive.queries) if batch.contrastive else [])
        texts.update(written(batch.generative))
        assert len(batch.generative) == min(4, generative)
    assert (len(queries), len(texts)) == (embedding, generative)
    for counts in (queries, texts):  # the smaller set goes round evenly
        assert not counts or max(counts.values()) - min(counts.values()) <= 1


def test_orders_are_shuffled_seeded_and_new_in_every_epoch() -> None:
    data = made(records("a", 64), records("b", 64), generative=64)

    def epochs(seed: int) -> list[list[list[list[int]]]]:
        mix = mixer(data, seed=seed)
        return [[signature(mix.draw()) for _ in range(16)] for _ in range(2)]

    one, again, other = epochs(1), epochs(1), epochs(2)
    assert one == again
    assert one[0] != one[1]
    assert one != other
    mix = mixer(data)
    numbers = [int(text.split()[-1]) for _ in range(16) for text in written(contrastive(mix.draw()).queries)]
    ascending = sum(a < b for a, b in itertools.pairwise(numbers))
    assert 0.35 < ascending / len(numbers) < 0.65
    sources = [contrastive(mix.draw()).source for _ in range(16)]
    assert sources not in (["s0"] * 8 + ["s1"] * 8, ["s1"] * 8 + ["s0"] * 8)


@pytest.mark.parametrize("taken", [0, 3, 11, 30])
def test_the_state_resumes_with_identical_batches(taken: int) -> None:
    data = made(records("a", 37, pos=3, neg=5), records("b", 21), generative=10)
    whole = mixer(data, seed=5)
    for _ in range(taken):
        whole.draw()
    state = json.loads(json.dumps(whole.state_dict()))
    expected = [signature(whole.draw()) for _ in range(25)]
    resumed = mixer(data, seed=5)
    resumed.load_state_dict(state)
    assert [signature(resumed.draw()) for _ in range(25)] == expected


def test_a_state_of_other_batches_is_refused() -> None:
    state = mixer(made(records("a", 20)), seed=1).state_dict()
    for other, what in (
        (mixer(made(records("a", 20)), seed=2), "seed was 1 and is 2"),
        (mixer(made(records("a", 20)), size=4, seed=1), "embedding_batch_size was 8 and is 4"),
        (mixer(made(records("a", 21)), seed=1), "sources was"),
        (mixer(made(records("longer", 20)), seed=1), "num_tokens was"),
        (mixer(made(records("a", 20)), seed=1, sampling=0.5), "sampling was proportional and is"),
        (mixer(made(records("a", 20)), seed=1, no_in_batch_negatives=["s0"]), "no_in_batch_negatives was"),
    ):
        with pytest.raises(InputError, match=what):
            other.load_state_dict(state)


def test_queries_of_sources_without_in_batch_negatives_are_alone() -> None:
    data = made(records("a", 11), records("b", 5))
    mix = mixer(data, no_in_batch_negatives=["s1"])
    batches = [contrastive(mix.draw()) for _ in range(12)]
    for batch in batches:
        assert batch.alone == [text.startswith("b") for text in written(batch.queries)]
    assert any(len(set(batch.alone)) == 2 for batch in batches)
    with pytest.raises(InputError, match=r"no source is called 's3' \(the sources: s0, s1\)"):
        mixer(data, no_in_batch_negatives=["s0", "s3"])
    with pytest.raises(InputError, match="a list of names, not the name 's0'"):
        mixer(data, no_in_batch_negatives="s0")


def test_queries_that_are_alone_may_share_their_positives() -> None:
    data = [EmbeddingRecord.of(f"q {i}", [f"label {i % 2}"], [f"label {1 - i % 2}"]) for i in range(16)]
    mix = mixer(made(data), no_in_batch_negatives=["s0"])
    assert mix.steps_per_epoch == 2
    used = [text for _ in range(2) for text in written(contrastive(mix.draw()).queries)]
    assert len(set(used)) == 16


def test_answers_stand_with_their_queries() -> None:
    data = [EmbeddingRecord.of(f"q {i}", [f"p {i}"], answer=f"answer {i}" if i % 3 else None) for i in range(16)]
    source: Any = Source("s", "embedding", data)
    mix = mixer(tokenise([source], TOKENS, Lengths(query=64, passage=64, generative=200)))
    for _ in range(4):
        batch = contrastive(mix.draw())
        for query, answer in zip(written(batch.queries), batch.answers, strict=True):
            number = int(query.split()[-1])
            assert (answer is None) == (number % 3 == 0)
            assert answer is None or TOKENS.backend.decode(answer.ids.tolist()).endswith(f"answer {number}")


def test_sources_are_drawn_by_their_weights_and_each_is_used_whole() -> None:
    data = made(records("a", 40), records("b", 16), records("c", 8))
    for sampling, chances in (
        ({"s0": 1, "s1": 2, "s2": 1}, (0.25, 0.5, 0.25)),
        (0.0, (1 / 3, 1 / 3, 1 / 3)),
        (1.0, (40 / 64, 16 / 64, 8 / 64)),
        (0.5, tuple(size**0.5 / (40**0.5 + 16**0.5 + 8**0.5) for size in (40, 16, 8))),
        ({"s0": 0, "s1": 1, "s2": 0}, (0, 1, 0)),
    ):
        mix = mixer(data, sampling=sampling, seed=3)
        assert mix.steps_per_epoch == (2 if isinstance(sampling, dict) and not sampling["s0"] else 8)
        drawn: dict[str, list[str]] = {name: [] for name in ("s0", "s1", "s2")}
        for _ in range(600):
            batch = contrastive(mix.draw())
            assert len(batch.queries) == 8
            drawn[batch.source] += written(batch.queries)
        for (texts, chance), size in zip(zip(drawn.values(), chances, strict=True), (40, 16, 8), strict=True):
            assert abs(len(texts) / 4800 - chance) < 4 * (chance * (1 - chance) / 600) ** 0.5 + 1e-9
            cycles = [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)]
            assert all(len(set(cycle)) == size for cycle in cycles)
            assert len(cycles) < 2 or cycles[0] != cycles[1]


LABELLED = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.booleans()), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    sets=st.lists(LABELLED, min_size=1, max_size=3),
    size=st.integers(1, 6),
    sampling=st.sampled_from(["proportional", 0.0, 0.7, 1.0]),
    alone=st.booleans(),
    before=st.integers(0, 30),
    seed=st.integers(0, 5),
)
def test_what_holds_for_any_data(
    sets: list[list[tuple[int, int, bool]]], size: int, sampling: Any, alone: bool, before: int, seed: int
) -> None:
    data = made(
        *(
            [
                EmbeddingRecord.of(f"q{a}", [f"p{b}", *([f"own{i}"] if more else [])], [f"n{i}", f"m{i}"])
                for i, (a, b, more) in enumerate(rows)
            ]
            for rows in sets
        ),
        generative=3,
    )
    options: dict[str, Any] = {"sampling": sampling, "seed": seed, "no_in_batch_negatives": ["s0"] if alone else []}
    mix = mixer(data, size, **options)
    mixed = [mix.draw() for _ in range(before)]
    state = json.loads(json.dumps(mix.state_dict()))
    after = [mix.draw() for _ in range(12)]
    again = mixer(data, size, **options)
    again.load_state_dict(state)
    assert [signature(again.draw()) for _ in range(12)] == [signature(batch) for batch in after]
    for batch in map(contrastive, [*mixed, *after]):
        assert 1 <= len(batch.queries) <= size
        meeting = [i for i, apart in enumerate(batch.alone) if not apart]
        assert len({batch.query_words[i] for i in meeting}) == len(meeting)
        assert len({batch.passage_words[i] for i in meeting}) == len(meeting)
        assert sampling == "proportional" or batch.source
    if sampling == "proportional":
        epoch = mixer(data, size, **options)
        used: Counter[int] = Counter()
        for _ in range(epoch.steps_per_epoch):
            used.update(contrastive(epoch.draw()).query_words)
        assert used >= Counter(int(data.texts.words[row.query]) for _, rows in data.embedding for row in rows)


def test_nonsense_is_refused() -> None:
    data = made(records("a", 2))
    with pytest.raises(InputError, match="embedding_batch_size=0"):
        mixer(data, size=0)
    with pytest.raises(InputError, match="num_hard_negatives=-1"):
        mixer(data, num_hard_negatives=-1)
    for sampling, message in (
        (-1.0, "sampling=-1.0 is none of"),
        (float("nan"), "sampling=nan is none of"),
        ("by size", "sampling='by size' is none of 'proportional'"),
        ({"s0": 1, "x": 1}, "no source is called 'x'"),
        ({}, "no weight for s0: add one, 0 to leave"),
        ({"s0": 0}, "no weight above 0"),
        ({"s0": -1}, "weight of 's0' is -1"),
    ):
        with pytest.raises(InputError, match=message):
            mixer(data, sampling=sampling)
    with pytest.raises(InputError, match="no records"):
        mixer(made())


def test_a_hard_negative_that_is_a_positive_of_its_record_is_never_drawn() -> None:
    records = [EmbeddingRecord.of(f"q {i}", [f"a {i}", f"b {i}"], [f"a {i}", f"b {i}", f"n {i}"]) for i in range(6)]
    tokens = Tokens(tokenizer(), prompt_format("grit"))
    data = tokenise(load(records), tokens, Lengths(query=64, passage=64, generative=64))
    half = Mixer(data, embedding_batch_size=6, generative_batch_size=1, num_hard_negatives=1).draw().contrastive
    assert half is not None
    texts = [tokens.backend.decode(passage.ids.tolist()) for passage in half.passages[6:]]
    assert len(texts) == 6
    assert all(text.split("\n")[-1].startswith("n ") for text in texts)
