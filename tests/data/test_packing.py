from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gritkit.batch import Batch
from gritkit.data import (
    EmbeddingRecord,
    GenerativeRecord,
    Lengths,
    MixedBatch,
    Mixer,
    PackedBatch,
    load,
    pack_batch,
    share_of,
    tokenise,
)
from gritkit.losses import NextToken
from gritkit.prompts import prompt_format
from gritkit.tokens import Tokens
from tests.models import tokenizer

RECORDS = [EmbeddingRecord.of(f"q{i} " * (1 + i % 7), [f"p{i} " * (1 + i % 11)], [f"n{i}"]) for i in range(7)]
ANSWERED = [
    EmbeddingRecord.of(f"who{i}", [f"document {i}"], [f"wrong {i}", "other " * i + "one"], answer=f"number {i}")
    for i in range(4)
]
CHATS = [GenerativeRecord.of([f"u{i}", "a " * (i + 1)]) for i in range(9)]


def drawn() -> MixedBatch:
    data = tokenise(
        load([*RECORDS, *ANSWERED, *CHATS]),
        Tokens(tokenizer(), prompt_format("grit")),
        Lengths(query=99, passage=99, generative=199),
    )
    return Mixer(data, embedding_batch_size=11, generative_batch_size=9, num_hard_negatives=2).draw()


MIXED = drawn()
TOKEN = NextToken().shares


def sequences(rows: list[Batch]) -> list[list[int]]:
    return [ids.tolist() for row in rows for ids in row.ids_T.split(row.lengths_S.tolist())]


def in_order(packed: PackedBatch) -> list[list[int]]:
    """The texts as restore puts their vectors."""
    texts = sequences(packed.embed_rows)
    for row in packed.read_rows:
        ids = row.ids_T.split(row.lengths_S.tolist())
        texts += [text.tolist() for text, reads in zip(ids, row.reads_S, strict=True) if not reads]
    return [texts[place] for place in packed.restore.tolist()]


def test_rows_hold_every_text_once_within_the_budget_and_restore_puts_them_back() -> None:
    half = MIXED.contrastive
    assert half is not None
    for budget in (1, 64, 10_000):
        packed = pack_batch(share_of(MIXED, TOKEN), budget, 1)
        for row in packed.rows:
            assert len(row.ids_T) <= budget or len(row.lengths_S) == 1 or sum(map(bool, row.reads_S)) == 1
        assert in_order(packed) == [text.ids.tolist() for text in (*half.queries, *half.passages)]
        assert packed.num_counted == sum(int(row.loss_mask_T.sum()) for row in packed.rows)
        assert packed.num_tokens == sum(len(row.ids_T) for row in packed.rows)
    assert packed.contrast is not None
    assert packed.contrast.owner_P.tolist() == half.owners
    torch.testing.assert_close(packed.contrast.query_words_Q, torch.tensor(half.query_words))


def test_an_answer_reads_all_passages_of_its_query_in_an_order_of_their_own() -> None:
    packed = pack_batch(share_of(MIXED, TOKEN), 10_000, 1)
    (row,) = packed.read_rows
    texts = sequences([row])
    orders = []
    for place, reads in enumerate(row.reads_S):
        if not reads:
            continue
        read = [row.ids_T[start:end].tolist() for start, end in reads]
        documents = texts[place - 3 : place]
        assert read == [documents[0], documents[1][1:], documents[2][1:]]
        half = MIXED.contrastive
        assert half is not None
        (owner,) = (i for i, answer in enumerate(half.answers) if answer and answer.ids.tolist() == texts[place])
        given = [half.passages[i].ids.tolist() for i, o in enumerate(half.owners) if o == owner]
        assert sorted(documents) == sorted(given)
        orders.append(documents.index(given[0]))
    assert len(orders) == 4
    assert len(set(orders)) > 1  # the positive stands anywhere


@settings(max_examples=25, deadline=None)
@given(
    world_size=st.integers(1, 6),
    next_token=st.sampled_from([NextToken(), NextToken(reduction="sample"), NextToken(reduction="mixed", group=4)]),
)
def test_shares_of_all_processes_are_the_whole_batch(world_size: int, next_token: NextToken) -> None:
    half = MIXED.contrastive
    assert half is not None
    shares = [share_of(MIXED, next_token.shares, rank, world_size) for rank in range(world_size)]
    whole = share_of(MIXED, next_token.shares)
    assert sum(share.num_counted for share in shares) == whole.num_counted
    told = []
    weighed = []
    for share in shares:
        part = share.mixed.contrastive
        assert part is not None
        assert part.owners[: len(part.queries)] == list(range(len(part.queries)))
        for number, query in enumerate(part.queries):
            own = [part.passages[i].ids.tolist() for i, owner in enumerate(part.owners) if owner == number]
            words = [part.passage_words[i] for i, owner in enumerate(part.owners) if owner == number]
            answer = part.answers[number]
            told.append((query.ids.tolist(), own, words, None if answer is None else answer.ids.tolist()))
            if answer is not None:
                weighed.append((answer.ids.tolist(), share.answer_shares[number]))
        weighed += [
            (example.ids.tolist(), factor)
            for example, factor in zip(share.mixed.generative, share.generative_shares, strict=True)
        ]
    assert sorted(map(str, told)) == sorted(
        str(
            (
                query.ids.tolist(),
                [half.passages[i].ids.tolist() for i, owner in enumerate(half.owners) if owner == number],
                [half.passage_words[i] for i, owner in enumerate(half.owners) if owner == number],
                None if answer is None else answer.ids.tolist(),
            )
        )
        for number, (query, answer) in enumerate(zip(half.queries, half.answers, strict=True))
    )
    expected = [(e.ids.tolist(), f) for e, f in zip(MIXED.generative, whole.generative_shares, strict=True)]
    expected += [(a.ids.tolist(), f) for a, f in zip(half.answers, whole.answer_shares, strict=True) if a is not None]
    assert sorted(weighed) == sorted(expected)
    loads = [sum(len(text) for text in share.mixed.generative) for share in shares]
    assert max(loads) - min(loads) <= max(len(example) for example in MIXED.generative)
