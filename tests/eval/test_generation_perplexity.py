from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from gritkit.errors import InputError, RecordError
from gritkit_eval.generation.perplexity import predict, read_texts, spans, windows
from tests.models import CONTEXT, TEXTS, exact, grit_model, shared_model

LONG = "documents are read once and answered from many times, naïve café 東京 " * 30


@pytest.mark.parametrize("window", [None, 2, 16, 100])
def test_it_is_what_transformers_computes_window_by_window(window: int | None) -> None:
    model = exact(grit_model("llama", dtype=torch.float64))
    size, stride = spans(model, window)
    texts = [LONG, TEXTS[3], "a"] if window != 2 else [TEXTS[3], "a"]
    nats, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([0, *model.tokenizer.encode(text, add_special_tokens=False)])
        done, start = 1, 0
        while done < len(ids):  # each token once, after what its window holds
            end = min(start + size, len(ids))
            with torch.no_grad():
                log_TV = model.lm(ids[None, start:end]).logits[0].log_softmax(-1)
            nats -= sum(float(log_TV[place - start - 1, ids[place]]) for place in range(done, end))
            count += end - done
            done, start = end, end + stride - size if end + stride <= len(ids) else max(0, len(ids) - size)
    made = predict(model, texts, window=window)
    assert made.nats == pytest.approx(nats, rel=1e-10)
    assert made.num_tokens == count
    scores = made.scores
    size_bytes = sum(len(text.encode("utf-8")) for text in texts)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / size_bytes, rel=1e-6)
    assert scores["token_perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-6)
    assert scores["word_perplexity"] == pytest.approx(math.exp(nats / sum(len(t.split()) for t in texts)), rel=1e-6)


def test_windows_predict_each_token_once_with_half_a_window_before_it() -> None:
    for length in (1, 2, 7, 8, 9, 12, 13, 40):
        ids = list(range(length))
        made = windows(ids, 8, 4)
        assert [i for _, predicted in made for i in predicted] == ids[1:]
        for context, predicted in made:
            assert list(context) == list(range(predicted[0] - len(context), predicted[0]))
            assert len(context) + len(predicted) <= 8
        assert all(len(context) >= 4 for context, _ in made[1:])


def test_a_model_that_knows_nothing_needs_all_bits() -> None:
    model = grit_model("llama")
    with torch.no_grad():
        model.lm.get_output_embeddings().weight.zero_()
    made = predict(model, ["the quick brown fox"])
    assert made.scores["token_perplexity"] == pytest.approx(model.config.vocab_size, rel=1e-4)


def test_a_window_beyond_the_model_is_refused() -> None:
    assert spans(shared_model(), None) == (CONTEXT, CONTEXT // 2)
    with pytest.raises(InputError, match=f"window={CONTEXT + 1} must be between 2"):
        spans(shared_model(), CONTEXT + 1)


def test_texts_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\n\ntwo", encoding="utf-8")
    assert read_texts(tmp_path / "a.txt") == ["one\n\ntwo"]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in ("one", " ", "two", "three")))
    assert read_texts(tmp_path / "b.jsonl.gz") == ["one", "two", "three"]
    assert read_texts(tmp_path / "b.jsonl.gz", 2) == ["one", "two"]


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": 3}\nnonsense\n{"title": "a"}\n')
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8 \(byte 0\)"):
        read_texts(tmp_path / "a.txt")
    with pytest.raises(RecordError, match=r"(?s)b\.jsonl:2: text is not text: 3.*b\.jsonl:3.*b\.jsonl:4.*no text"):
        read_texts(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match=r"c\.txt has no words"):
        read_texts(tmp_path / "c.txt")
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        read_texts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="no such file"):
        read_texts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"cannot read .*[Dd]irectory"):
        read_texts(tmp_path)
