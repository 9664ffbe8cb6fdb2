from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gritkit.errors import GritkitError
from gritkit_eval.bench import embed_pieces
from gritkit_eval.bench.embed import make_model
from gritkit_eval.bench.embed_pieces import (
    ATTENTION,
    LINEAR,
    PIECES,
    PlainProducts,
    Products,
    Round,
    Watch,
    WatchedModel,
)
from gritkit_eval.bench.embed_profile import Profile, described, parsed, profile
from tests.models import TEXTS, grit_model


def test_time_belongs_to_the_innermost_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1, 3, 6, 10, 15, 100, 107])
    monkeypatch.setattr(embed_pieces, "seconds_on", lambda _: next(clock))
    watch = Watch(torch.device("cpu"))
    watch.enter("outer")  # 0
    watch.enter("inner")  # 1
    watch.turn("other")  # 3
    watch.leave()  # 6
    watch.enter("inner")  # 10
    watch.leave()  # 15
    # what lies between two outermost pieces is nobody's
    watch._open.clear()
    watch.enter("outer")  # 100
    watch.leave()  # 107
    assert watch.seconds == {"outer": 1 + 4 + 7, "inner": 2 + 5, "other": 3}


def test_pieces_are_all_there_and_no_more_than_the_time_that_passed() -> None:
    model = grit_model("mistral", prompt_format="grit")
    watched = WatchedModel(model, TEXTS * 5)
    start = time.perf_counter()
    made = watched.round()
    passed = time.perf_counter() - start
    assert set(made.pieces) == set(PIECES)
    assert all(seconds > 0 for seconds in made.pieces.values())
    assert made.embed + made.watched + made.plain < passed
    assert (sum(one.count for one in made.products), sum(one.seconds > 0 for one in made.products)) == (3 * 7, 4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert 0 < watched.outside_operations() < 1


def test_operations_by_formula_are_those_that_torch_counts() -> None:
    """torch's counter knows products but no fused attention, so attention is run as products."""
    watched = WatchedModel(grit_model("mistral", prompt_format="grit"), TEXTS)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        for row in watched.rows:
            watched.model.embed_tokens(row)
    assert watched.linear_operations + watched.attention_operations == counted.get_total_flops()
    by_operation = counted.get_flop_counts()["Global"]
    assert by_operation[torch.ops.aten.mm] == watched.linear_operations


def test_plain_products_are_of_the_models_shapes() -> None:
    model = grit_model("mistral")
    plain = PlainProducts(model.lm.get_decoder(), 16)
    assert plain.shapes == {(32, 32): 6, (32, 16): 6, (32, 48): 6, (48, 32): 3}
    with FlopCounterMode(display=False) as counted:
        assert set(plain.seconds(11)) == set(plain.shapes)
    assert counted.get_total_flops() == 2 * 11 * sum(a * b * n for (a, b), n in plain.shapes.items())


def test_other_modules_and_other_vectors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GritkitError, match=r"GPT2Model has no module for .*norms"):
        WatchedModel(grit_model("gpt2"), TEXTS)
    watched = WatchedModel(grit_model("mistral"), TEXTS)
    monkeypatch.setattr(embed_pieces, "unit", lambda vectors: -vectors)
    with pytest.raises(GritkitError, match="do not give the vectors of embed"):
        watched.round()


def made_of(*rounds: Round, dtype: str = "float32") -> Profile:
    return Profile(
        dtype=dtype, threads=2, num_texts=10, num_tokens=1000, row_tokens=500, linear_operations=2 * 1000 * 96 * 10**6,
        attention_operations=10**10, outside_operations=0.031, rounds=rounds,
    )  # fmt: skip


def round_of(embed: float, plain: float) -> Round:
    products = (Products(8000, 8000, 1, plain / 4), Products(8000, 4000, 1, plain * 3 / 4))
    return Round(embed, {LINEAR: plain + 0.25, ATTENTION: 0.5}, products)


def test_the_section_names_bounds_rates_and_pieces() -> None:
    one = made_of(round_of(5.0, 4.0), round_of(3.0, 2.0), round_of(9.0, 6.0))
    text = described([one, made_of(round_of(2.0, 1.0), dtype="bfloat16")])
    assert (
        "| float32 | 5.000 s | 192.0 GFLOP | 48.0 GFLOP/s | 4.000 s | 80% (67% - 80%) | 1.25x as fast "
        "| 10.0 GFLOP, 0.208 s |" in text
    )
    assert "| (500 x 8,000) (8,000 x 8,000) | 1 | 128.0 GFLOP/s | 512.0 GFLOP/s |" in text
    assert "| linear layers | 4.250 s, 89.5% | 1.250 s, 71.4% |" in text
    assert "| together | 4.750 s | 1.750 s |" in text
    assert "| embedding, not watched | 5.000 s | 2.000 s |" in text
    assert "3.1% (float32) and 3.1% (bfloat16)" in text


@pytest.mark.slow
def test_the_worker_measures_in_a_process_of_its_own(tmp_path: Path) -> None:
    texts = ["a few words", "and many more of them, to be packed beside the first"]
    num_tokens = make_model(tmp_path / "model", texts, "6M")
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    made = profile(tmp_path, "float32", 2, "cpu")
    assert (made.num_texts, made.num_tokens, len(made.rounds)) == (2, num_tokens, 2)
    assert made == parsed("float32", json.loads((tmp_path / "float32-profile.json").read_text(encoding="utf-8")))
    shares = [float(share) for share in re.findall(r"s, ([\d.]+)%", described([made]))]
    assert sum(shares) == pytest.approx(100, abs=1)
