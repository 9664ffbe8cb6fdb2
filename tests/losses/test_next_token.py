from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from gritkit.batch import pack
from gritkit.errors import InputError
from gritkit.losses import NextToken
from tests.models import TEXTS, grit_model, language_model


def test_shares_of_rows_add_up_to_the_mean_over_all_targets() -> None:
    model = grit_model("mistral", prompt_format="grit")
    plain = language_model("mistral")
    examples = [model.tokens.text_example(text) for text in TEXTS]
    examples.append(
        model.tokens.chat_example([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a b"}])
    )
    count = sum(int(example.loss_mask.sum()) for example in examples)
    rows = [pack(examples[:1]), pack(examples[1:4]), pack(examples[4:])]
    loss = NextToken()
    with torch.no_grad():
        total = sum(loss(model("next_token", row), count) for row in rows)
        logits, targets = [], []
        for example in examples:
            ids = torch.from_numpy(example.ids)
            labels = torch.where(torch.from_numpy(example.loss_mask), ids, -100)
            logits.append(plain(ids[None]).logits[0, :-1])
            targets.append(labels[1:])
        expected = cross_entropy(torch.cat(logits), torch.cat(targets))
    torch.testing.assert_close(total, expected)


def test_other_reductions_are_refused() -> None:
    with pytest.raises(InputError, match="reduction='sample'"):
        NextToken(reduction="sample")  # type: ignore[arg-type]
