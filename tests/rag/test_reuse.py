"""The ways of reuse as a user meets them: which is taken and why, what it keeps, and whose it is."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit.files import home
from gritkit.rag import Budget, Document, Rag, verdicts
from gritkit.rag.verdicts import Verdict
from tests.models import TEXTS, grit_model, shared_model

QUESTION = "what does the fox do?"


@pytest.fixture(scope="module")
def model() -> GritModel:
    return shared_model("llama")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kb"


@pytest.fixture
def rag(folder: Path, model: GritModel) -> Iterator[Rag]:
    with Rag.open(folder, model) as opened:
        opened.add(list(TEXTS))
        yield opened


def blocks(folder: Path) -> list[Path]:
    return sorted((folder / "blocks").glob("??/*.kv"))


# -- ways of reuse -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts of these tests are not found by others."""
    monkeypatch.setenv("GRITKIT_HOME", str(tmp_path / "home"))


def test_every_way_can_be_asked_for_and_is_reported_and_counted(rag: Rag) -> None:
    ways = ["off", "cached", "linked", "query", "query_doc", "doc_query"]
    answers = {way: rag.ask(QUESTION, reuse=way, max_new_tokens=4) for way in ways}
    assert [(answer.reuse, answer.reason) for answer in answers.values()] == [(way, "asked for") for way in ways]
    assert rag.answers == dict.fromkeys(ways, 1)
    assert answers["off"].usage.cached_tokens == 0
    assert answers["linked"].usage.cached_tokens < answers["cached"].usage.cached_tokens
    assert rag.ask(QUESTION, reuse="linked", link_tokens=1, max_new_tokens=1).usage.cached_tokens == (
        answers["cached"].usage.cached_tokens - 2
    )
    assert len({answer.text for answer in answers.values()}) > 3  # other functions of the same documents


def test_the_same_beginning_is_read_once(rag: Rag, model: GritModel) -> None:
    off = rag.ask(QUESTION, reuse="off", max_new_tokens=8)
    assert rag.ask(QUESTION, max_new_tokens=1).reuse == "cached"  # asked by name, off keeps nothing
    first, second = (rag.ask(QUESTION, reuse="prefix", max_new_tokens=8) for _ in range(2))
    assert (first.reuse, second.reuse) == ("off", "prefix")
    assert first.reason == "its beginning was not read before"
    assert off.text == first.text == second.text
    assert first.usage == off.usage
    assert second.usage.prompt_tokens == off.usage.prompt_tokens
    assert second.usage.prompt_tokens - second.usage.cached_tokens == len(model.tokens.question_prompt(QUESTION))
    auto = rag.ask(QUESTION, max_new_tokens=8)
    assert (auto.reuse, auto.text) == ("prefix", off.text)
    assert "read in this order before" in auto.reason
    assert rag.ask(QUESTION, top_k=2, max_new_tokens=1).reuse == "cached"  # another beginning


def test_what_was_deleted_is_in_no_memory(rag: Rag, folder: Path) -> None:
    rag.ask(QUESTION, reuse="prefix", max_new_tokens=1)
    answer = rag.ask(QUESTION, reuse="cached", max_new_tokens=1)
    gone = answer.sources[0]
    rows = rag.base.store.get([gone.id])[gone.id]
    assert rag.delete(gone.id) == 1
    assert rag._cache is not None
    assert rag._cache.get_many([row.block_key for row in rows]) == [None]
    left = rag.ask(QUESTION, max_new_tokens=1)
    assert gone.id not in {hit.id for hit in left.sources}
    rag.add(Document(gone.text, id=gone.id))
    assert rag.ask(QUESTION, max_new_tokens=1).reuse == "cached"  # no beginning of a prompt survived either


@pytest.mark.usefixtures("own_home")
@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ({0: True}, ("cached", 0, "the gate allows it: 0 tokens")),
        ({0: False, 2: True, 8: True}, ("linked", 4, "the gate allows it: 2 tokens")),
        ({0: False, 2: False}, ("off", None, "the gate allows nothing else: 0 tokens")),
    ],
)
def test_auto_goes_by_the_gate(
    folder: Path, model: GritModel, rag: Rag, allowed: dict[int, bool], expected: tuple[str, int | None, str]
) -> None:
    verdicts.save(
        model.fingerprint,
        [
            Verdict(
                reuse="linked" if k else "cached",
                codec="int8",
                join="whole",
                link_tokens=k,
                allowed=is_allowed,
                reason=f"{k} tokens",
            )
            for k, is_allowed in allowed.items()
        ],
    )
    way, computed, says = expected
    with Rag.open(folder, model) as judged:
        joined = {} if way != "off" else {"join": "whole"}
        answer = judged.ask(QUESTION, max_new_tokens=1, **joined)
        assert (answer.reuse, answer.reason) == (way, says)
        if computed is not None:
            question = len(model.tokens.question_prompt(QUESTION))
            assert answer.usage.prompt_tokens - answer.usage.cached_tokens == question + computed
            whole = rag.ask(QUESTION, join="whole", reuse="cached", max_new_tokens=1)
            assert answer.usage.prompt_tokens == whole.usage.prompt_tokens  # its join is the gate's
        assert judged.ask(QUESTION, reuse="cached", max_new_tokens=1).reuse == "cached"  # by name, whatever it says
        again = judged.ask(QUESTION, max_new_tokens=1, **joined)
        assert again.reuse == ("prefix" if way == "off" else way)


@pytest.mark.usefixtures("own_home")
def test_a_gate_that_cannot_be_read_forbids_nothing(
    folder: Path, model: GritModel, rag: Rag, caplog: pytest.LogCaptureFixture
) -> None:
    gates = home() / "gates"
    gates.mkdir(parents=True)
    (gates / f"{model.fingerprint}.json").write_text('{"format_version": 99}')
    with Rag.open(folder, model) as judged:
        assert judged.ask(QUESTION, max_new_tokens=1).reuse == "cached"
    assert "another format and are not used" in caplog.text


@pytest.mark.parametrize(("disk", "prefill", "way"), [(10.0, 1e9, "off"), (1e12, 1.0, "cached")])
def test_what_is_slower_to_load_than_to_read_is_read(
    folder: Path, model: GritModel, rag: Rag, disk: float, prefill: float, way: str
) -> None:
    (file,) = [rag.base.blocks.folder / f"rates-{model.fingerprint[:16]}-cpu.json"]
    file.write_text(json.dumps({"disk": disk, "prefill": prefill}))
    with Rag.open(folder, model) as measured:
        answer = measured.ask(QUESTION, max_new_tokens=4)
        assert answer.reuse == way
        assert answer.reason.startswith("loading would take" if way == "off" else "no gate")
        if way == "off":
            assert measured.ask(QUESTION, max_new_tokens=4).reuse == "prefix"  # what was read for it is kept
            measured.ask(QUESTION, top_k=2, reuse="cached", max_new_tokens=1)
            assert measured.ask(QUESTION, top_k=2, max_new_tokens=1).reuse == "cached"  # in memory: nothing to load
    assert json.loads(file.read_text()).keys() <= {"disk", "prefill"}


def test_one_document_of_causal_embeddings_is_exactly_its_prompt(folder: Path) -> None:
    model = grit_model("llama", embedding_attention="causal")
    with Rag.open(folder, model, codec="exact") as rag:
        rag.add(list(TEXTS))
        one, off = (rag.ask(QUESTION, top_k=1, reuse=reuse, max_new_tokens=8) for reuse in ("auto", "off"))
        assert (one.reuse, one.text) == ("prefix", off.text)
        assert one.usage.cached_tokens > 0 == off.usage.cached_tokens
        assert rag.ask(QUESTION, top_k=2, max_new_tokens=1).reuse == "cached"
    with Rag.open(folder.with_name("coded"), model, codec="int8") as rag:
        rag.add(list(TEXTS))
        assert rag.ask(QUESTION, top_k=1, max_new_tokens=1).reuse == "cached"  # int8 is not exactly


# -- tiers, budgets, tenants ---------------------------------------------------------------------------------------


def test_reads_are_counted_by_tier(folder: Path, model: GritModel, rag: Rag) -> None:
    with Rag.open(folder, model, budget=Budget(device=1 << 30)) as tiers:
        texts = [tiers.ask(QUESTION, reuse="cached", max_new_tokens=4).text for _ in range(3)]
        assert tiers.counts == {"disk": 3, "device": 6}
    with Rag.open(folder, model) as tiers:
        texts += [tiers.ask(QUESTION, reuse="cached", max_new_tokens=4).text for _ in range(3)]
        assert tiers.counts == {"disk": 3, "memory": 6}
    assert len(set(texts)) == 1


def test_a_full_budget_on_disk_costs_recomputing_and_no_answer(folder: Path, model: GritModel, rag: Rag) -> None:
    everything = len(TEXTS)
    whole = rag.ask(QUESTION, top_k=everything, max_new_tokens=4)
    size = max(path.stat().st_size for path in blocks(folder))
    with Rag.open(folder, model, budget=Budget(disk=2 * size, memory=0)) as small:
        blocks(folder)[0].unlink()
        first, second = (small.ask(QUESTION, top_k=everything, max_new_tokens=4) for _ in range(2))
        assert first.text == second.text == whole.text
        assert first.recomputed == 1  # writing it makes room
        assert second.recomputed >= everything - 2
        assert small.counts["evicted"] > 0
        assert sum(path.stat().st_size for path in blocks(folder)) <= 2 * size


def test_half_of_the_free_disk_is_the_budget_and_what_is_there(folder: Path, model: GritModel, rag: Rag) -> None:
    free = shutil.disk_usage(folder).free
    taken = sum(path.stat().st_size for path in blocks(folder))
    with Rag.open(folder, model) as opened:
        assert opened.base.blocks.max_bytes == pytest.approx(free // 2 + taken, rel=0.05)
    assert taken > 0


@pytest.mark.parametrize("wrong", [{"disk": -1}, {"memory": -5}, {"device": 1.5}, {"memory": "1 GB"}])
def test_budgets_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"a budget of {name}={value!r} is no number of bytes"):
        Budget(**wrong)


def test_tenants_do_not_share_key_values(folder: Path, model: GritModel, rag: Rag) -> None:
    mine = rag.ask(QUESTION, max_new_tokens=8)
    before = blocks(folder)
    with Rag.open(folder, model, tenant="other", budget=Budget(memory=0)) as other:
        first, second = (other.ask(QUESTION, max_new_tokens=8) for _ in range(2))
        assert (first.recomputed, second.recomputed) == (3, 0)
        assert first.text == second.text == mine.text
        assert other.counts["lost"] >= 3
    assert len(blocks(folder)) == len(before) + 3
    assert set(before) <= set(blocks(folder))
    with Rag.open(folder, model, budget=Budget(memory=0)) as again:
        assert again.ask(QUESTION, max_new_tokens=8).recomputed == 0
    with pytest.raises(InputError, match="tenant"):
        Rag.open(folder, model, tenant=5)  # type: ignore[arg-type]


def test_two_at_once_on_one_folder(folder: Path, model: GritModel, rag: Rag) -> None:
    """One answers while the other adds and deletes: every answer is whole, and nothing is left over."""
    errors: list[BaseException] = []

    def change() -> None:
        try:
            with Rag.open(folder, model) as other:
                for i in range(6):
                    other.add([Document(f"the fox number {i} does it", id=f"fox{i}"), Document(TEXTS[0], id="same")])
                    other.delete(f"fox{i - 1}")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    answers = []
    while thread.is_alive() or not answers:
        answers.append(rag.ask(QUESTION, max_new_tokens=2))
    thread.join()
    assert errors == []
    assert all(len(answer.sources) == 3 for answer in answers)
    assert len(rag) == len(TEXTS) + 2
    report = rag.verify()
    assert (report.damaged, report.repaired, report.documents) == ([], [], len(rag))


def test_verify_computes_what_is_missing(folder: Path, rag: Rag, model: GritModel) -> None:
    paths = blocks(folder)
    before = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[1].write_bytes(before[1][:-1])
    report = rag.verify()
    assert (report.damaged, report.missing, report.documents) == ([], 0, len(TEXTS))
    assert len([line for line in report.repaired if "were computed again" in line]) == 2
    assert [path.read_bytes() for path in paths] == before
