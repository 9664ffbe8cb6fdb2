from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.kv.codecs import DEFAULT_CODEC
from gritkit.metrics import exact_match, match, token_f1
from gritkit.model import GritModel
from gritkit.rag.documents import Document
from gritkit.rag.gate import (
    CLOSED,
    Measured,
    Setting,
    Tolerance,
    divergence,
    forced_logits,
    judge,
    measure,
    settings_of,
)
from gritkit.rag.questions import Exam, Passage
from gritkit.rag.rag import Rag
from tests.models import TEXTS, grit_model

EXAMS = (
    Exam("what does the fox do?", ("jumps over", "leaps"), (Passage(TEXTS[0], True),)),
    Exam("how often are documents read?", ("once",), (Passage(TEXTS[2], True),)),
)
NEW = 6


@pytest.fixture(scope="module")
def model() -> GritModel:
    return grit_model("llama")


@pytest.fixture(scope="module")
def rag_of(model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Rag]]:
    """Knowledge bases of the same texts, exact and int4."""
    folder = tmp_path_factory.mktemp("gate")
    bases = {codec: Rag.open(folder / codec, model, codec=codec) for codec in ("exact", "int4")}
    for rag in bases.values():
        rag.add([Document(text, metadata={"number": number}) for number, text in enumerate(TEXTS)])
    yield bases.__getitem__
    for rag in bases.values():
        rag.close()


def by_hand(model: GritModel, ids: list[int]) -> Tensor:
    """Logits [n, V] float64 of a plain causal pass over ids, by transformers' own attention."""
    from tests.models import language_model

    with torch.no_grad():
        logits: Tensor = language_model("llama")(torch.tensor([ids])).logits[0].double()
    return logits


def test_full_prefill_is_what_a_plain_pass_answers(model: GritModel, rag_of: Callable[[str], Rag]) -> None:
    (measured,) = measure(rag_of, EXAMS, [Setting(mode="off", top_k=2)], max_new_tokens=NEW)
    scores: dict[str, list[float]] = {"match": [], "exact_match": [], "f1": []}
    for exam in EXAMS:
        answer = rag_of("exact").ask(exam.question, top_k=2, reuse="off", max_new_tokens=NEW)
        found = rag_of("exact").find(exam.question, top_k=2, params=SamplingParams(max_new_tokens=NEW))
        first, second = (list(row.token_ids) for row in found.rows)
        ids = [*first, *second[len(model.tokens.bos_ids) :], *model.tokens.question_prompt(exam.question)]
        for _ in range(answer.usage.completion_tokens):
            ids.append(int(by_hand(model, ids)[-1].argmax()))
        written = [i for i in ids[-answer.usage.completion_tokens :] if i != model.tokens.eos_id]
        assert model.tokens.backend.decode(written).strip() == answer.text.strip()
        for name, metric in (("match", match), ("exact_match", exact_match), ("f1", token_f1)):
            scores[name].append(metric(answer.text.strip(), exam.answers))
    assert measured.num_questions == 2
    for name, values in scores.items():
        assert getattr(measured, name) == pytest.approx(sum(values) / 2)
    assert (measured.kl, measured.kl_first, measured.agreement, measured.same) == (0.0, 0.0, 1.0, 1.0)
    assert measured.found == 0.5 * sum(
        any(one in " ".join(hit.text for hit in rag_of("exact").search(exam.question, 2)) for one in exam.answers)
        for exam in EXAMS
    )
    assert math.isnan(measured.bytes_per_token)


def test_distance_is_that_of_the_block_mask(model: GritModel, rag_of: Callable[[str], Rag]) -> None:
    """KL and agreement of cached documents against distributions computed apart from the gate."""
    settings = settings_of(["off", "cached"], ["exact"], top_ks=[2])
    off, cached = measure(rag_of, EXAMS[:1], settings, max_new_tokens=NEW)
    rag, question = rag_of("exact"), EXAMS[0].question
    found = rag.find(question, top_k=2, params=SamplingParams(max_new_tokens=NEW))
    first, second = (list(row.token_ids) for row in found.rows)
    prompt = model.tokens.question_prompt(question)
    full = [*first, *second[len(model.tokens.bos_ids) :], *prompt]
    (answer,) = model.generate([Request(full, SamplingParams(max_new_tokens=NEW))])
    _, documents = model.read([row.text for row in found.rows])
    kl, agreed = [], []
    for count, token in enumerate(answer.token_ids):
        led = list(answer.token_ids[:count])
        log_p = by_hand(model, full + led)[-1].log_softmax(-1)
        request = Request([*prompt, *led], SamplingParams(max_new_tokens=1), documents)
        log_q = forced_logits(model, request, [token])[0].double().log_softmax(-1)
        kl.append(float((log_p.exp() * (log_p - log_q)).sum()))
        agreed.append(float(log_q.argmax() == token))
    assert sum(kl) > 1e-4
    assert cached.kl == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert cached.kl_first == pytest.approx(kl[0], rel=1e-3)
    assert cached.agreement == pytest.approx(sum(agreed) / len(agreed))
    assert cached.num_tokens == off.num_tokens == len(answer.token_ids)
    assert cached.recomputed == 0


def test_divergence_of_known_distributions() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    found = divergence([p.log(), p.log() + 3], [q.log(), p.log()])
    assert found.tolist() == pytest.approx([0.25 * math.log(2), 0.0], abs=1e-7)


def test_codecs_joins_and_the_papers_ways(rag_of: Callable[[str], Rag], model: GritModel) -> None:
    modes = [CLOSED, "off", "prefix", "cached", "linked", "query", "query_doc", "doc_query"]
    settings = settings_of(modes, ["exact", "int4"], top_ks=[1, 2], joins=["no-bos", "whole"], link_tokens=[2])
    assert len(settings) == len(set(settings)) == 1 + (2 + 2 + 3) + 2 * (2 + 2 + 2 + 3)
    found = dict(zip(settings, measure(rag_of, EXAMS[:1], settings, max_new_tokens=NEW), strict=True))
    assert [one.setting for one in found.values()] == settings

    def kl(mode: str, codec: str = "exact", top_k: int = 2, join: str = "no-bos", links: int = 0) -> float:
        at = Setting(mode=mode, codec=codec, top_k=top_k, join=join, link_tokens=links)  # type: ignore[arg-type]
        return found[at].kl

    assert kl("prefix") < 1e-6  # the same function
    assert kl("cached") != kl("cached", "int4")
    assert kl("cached") != kl("cached", join="whole")
    assert kl("cached") != kl("linked", links=2)
    size = model.config
    exact = 2 * size.num_hidden_layers * size.num_key_value_heads * (size.hidden_size // size.num_attention_heads) * 4
    for at, one in found.items():
        if at.mode in ("cached", "linked", "query_doc", "doc_query"):
            assert one.bytes_per_token == exact if at.codec == "exact" else 0 < one.bytes_per_token < exact / 2
        else:
            assert math.isnan(one.bytes_per_token)
        assert 0 < one.ttft_s <= one.ttft_p95_s
        assert one.ttft_s <= one.total_s
    closed = found[settings[0]]
    assert math.isnan(closed.kl)
    assert math.isnan(closed.found)
    assert closed.document_tokens == 0


def test_which_documents_a_question_may_be_answered_from(rag_of: Callable[[str], Rag]) -> None:
    asked = [EXAMS[1], EXAMS[1]]
    setting = Setting(mode="off", top_k=1)
    (given,) = measure(rag_of, asked, [setting], max_new_tokens=2, where=lambda number, _: {"number": (2, 0)[number]})
    assert given.found == 0.5  # "once" stands in the third text and not in the first


def test_missing_key_values_are_counted(model: GritModel, tmp_path: Path) -> None:
    with Rag.open(tmp_path / "kb", model, codec="exact") as rag:
        rag.add(TEXTS[0])
        for file in (tmp_path / "kb").rglob("*"):
            if file.is_file() and "blocks" in file.parts and len(file.name) > 30:
                file.unlink()
        (measured,) = measure(lambda _: rag, EXAMS[:1], [Setting(mode="cached", top_k=1)], max_new_tokens=2)
    assert measured.recomputed == 1


def test_what_cannot_be_measured(model: GritModel, rag_of: Callable[[str], Rag], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        measure(rag_of, [], [Setting(mode="off")])
    with pytest.raises(InputError, match="mode='quick' is not one of"):
        settings_of(["quick"], ["exact"])
    with pytest.raises(InputError, match="codec='int3'"):
        settings_of(["cached"], ["int3"])
    with pytest.raises(InputError, match="link_tokens=0 must be at least 1 with 'linked'"):
        Setting(mode="linked")
    with pytest.raises(InputError, match="top_k=0 must be at least 1"):
        Setting(mode="off", top_k=0)
    with Rag.open(tmp_path / "other", model, codec="int8") as other:
        other.add("something else")
        bases = {"exact": rag_of("exact"), "int8": other}
        ways = settings_of(["off", "cached"], ["exact", "int8"])
        with pytest.raises(InputError, match="find other documents"):
            measure(bases.__getitem__, EXAMS, ways)


# -- the verdict -------------------------------------------------------------------------------------------------


def figures(setting: Setting, f1: float, kl: float) -> Measured:
    numbers = dict.fromkeys((field.name for field in dataclasses.fields(Measured)), 0.0)
    given = {"setting": setting, "f1": f1, "kl": kl, "num_questions": 9, "f1_each": (f1,) * 9}
    return Measured(**{**numbers, **given})  # type: ignore[arg-type]


def test_a_way_is_judged_by_its_worst() -> None:
    measured = [
        figures(Setting(mode="off", codec=DEFAULT_CODEC, top_k=1), 0.80, 0.0),
        figures(Setting(mode="cached", codec=DEFAULT_CODEC, top_k=1), 0.79, 0.05),
        figures(Setting(mode="off", codec=DEFAULT_CODEC, top_k=3), 0.80, 0.0),
        figures(Setting(mode="cached", codec=DEFAULT_CODEC, top_k=3), 0.70, 0.05),
        figures(Setting(mode="linked", codec=DEFAULT_CODEC, top_k=3, link_tokens=8), 0.79, 0.05),
    ]
    cached, linked = judge(measured, Tolerance(f1=0.02, kl=0.2))
    assert (cached.reuse, cached.allowed, linked.reuse, linked.allowed) == ("cached", False, "linked", True)
    assert "F1 0.700 against 0.800" in cached.reason
    assert linked.link_tokens == 8
    assert judge(measured, Tolerance(f1=0.2, kl=0.2))[0].allowed
    assert not judge(measured, Tolerance(f1=0.2, kl=0.01))[0].allowed
    with pytest.raises(InputError, match="without 'off' beside it"):
        judge(measured[1:2], Tolerance())
