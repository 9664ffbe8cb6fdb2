from __future__ import annotations

import torch

from gritkit.data import EmbeddingRecord, GenerativeRecord, Lengths, Mixer, load, pack_batch, tokenise
from gritkit.prompts import prompt_format
from gritkit.tokens import Tokens
from tests.models import tokenizer


def test_rows_hold_every_text_once_within_the_budget_and_restore_puts_them_back() -> None:
    records = [EmbeddingRecord.of("q " * (1 + i % 7), [f"p{i} " * (1 + i % 11)], [f"n{i}"]) for i in range(7)]
    chats = [GenerativeRecord.of([f"u{i}", "a " * (i + 1)]) for i in range(9)]
    tokens = Tokens(tokenizer(), prompt_format("grit"))
    data = tokenise(load([*records, *chats]), tokens, Lengths(query=99, passage=99, generative=99))
    mixed = Mixer(data, embedding_batch_size=7, generative_batch_size=9).draw()
    half = mixed.contrastive
    assert half is not None
    texts = [*half.queries, *half.passages]
    for budget in (1, 64, 10_000):
        packed = pack_batch(mixed, budget)
        for row in [*packed.embed_rows, *packed.next_token_rows]:
            assert len(row.ids_T) <= budget or len(row.lengths_S) == 1
        parts = [ids for row in packed.embed_rows for ids in row.ids_T.split(row.lengths_S.tolist())]
        for text, place in zip(texts, packed.restore.tolist(), strict=True):
            assert parts[place].tolist() == text.ids.tolist()
        assert packed.num_targets == sum(int(row.loss_mask_T.sum()) for row in packed.next_token_rows) > 0
        assert packed.num_tokens == sum(len(row.ids_T) for row in [*packed.embed_rows, *packed.next_token_rows])
    assert packed.contrast is not None
    assert packed.contrast.owner_P.tolist() == [*range(7), *range(7)]
    torch.testing.assert_close(packed.contrast.query_words_Q, torch.tensor(half.query_words))
