from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit.errors import InputError, MissingExtraError, StoreError, UnsupportedModelError
from gritkit.generation.params import SamplingParams
from gritkit.model import GritModel
from gritkit.rag import AddReport, Document, Rag
from gritkit.rag.manifest import FILE_NAME
from tests.models import TEXTS, grit_model, shared_model

HOSTILE = [
    "it's",
    'say "hi"',
    "x' OR '1'='1",
    "'; DROP TABLE documents; --",
    "''",
    "back\\",
    "back\\'",
    "new\nline",
    "żółć 東京 🦊",
    "nul\0inside",
    "100%_",
    "`id`",
    " ",
    "]",
]


@pytest.fixture(scope="module")
def model() -> GritModel:
    return shared_model("llama")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kb"


@pytest.fixture
def rag(folder: Path, model: GritModel) -> Iterator[Rag]:
    with Rag.open(folder, model) as opened:
        yield opened


def blocks(folder: Path) -> list[Path]:
    return sorted((folder / "blocks").glob("??/*.kv"))


class Reads:
    """How many texts a model read, and in how many passes, while it is watched."""

    def __init__(self, model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_texts = self.calls = 0
        read = model.read_tokens

        def watched(sequences: Any, **options: Any) -> Any:
            self.num_texts += len(sequences)
            self.calls += 1
            return read(sequences, **options)

        monkeypatch.setattr(model, "read_tokens", watched)


# -- adding, replacing, deleting ---------------------------------------------------------------------------------


def test_documents_are_read_once(rag: Rag, model: GritModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(model, monkeypatch)
    assert rag.add(list(TEXTS)) == AddReport(added=len(TEXTS), chunks=len(TEXTS))
    assert (reads.num_texts, reads.calls) == (len(TEXTS), 1)
    assert rag.add(text for text in TEXTS) == AddReport(skipped=len(TEXTS))
    rag.search("fox")
    assert rag.ask("fox?", max_new_tokens=2).recomputed == 0
    assert reads.num_texts <= len(TEXTS) + 1  # and one that tells the shape of key-values
    assert len(rag) == len(blocks(folder)) == len(TEXTS)


def test_a_known_id_is_replaced(rag: Rag, folder: Path) -> None:
    assert rag.add(Document("the old text", id="a")) == AddReport(added=1, chunks=1)
    (old,) = blocks(folder)
    assert rag.add([Document("the new text", id="a"), Document("another", id="b")]) == AddReport(
        added=1, updated=1, chunks=2
    )
    assert {(hit.id, hit.text) for hit in rag.search("text")} == {("a", "the new text"), ("b", "another")}
    assert len(rag) == 2
    assert len(blocks(folder)) == 2
    assert old not in blocks(folder)  # nothing needs it any more


def test_new_metadata_does_not_read_again(rag: Rag, model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rag.add(Document("some text", id="a", metadata={"year": 1}))
    before = rag.search("text")[0]
    reads = Reads(model, monkeypatch)
    assert rag.add(Document("some text", id="a", metadata={"year": 2})) == AddReport(updated=1)
    assert reads.calls == 0
    assert rag.search("text", where={"year": 1}) == []
    (hit,) = rag.search("text", where={"year": 2})
    assert (hit.metadata, hit.score) == ({"year": 2}, before.score)
    assert rag.ask("what?", max_new_tokens=1).recomputed == 0


def test_an_id_twice_in_one_call_keeps_the_last(rag: Rag) -> None:
    twice = [Document("first", id="a"), Document("second", id="a"), Document("second", id="a")]
    assert rag.add(twice) == AddReport(added=1, updated=1, skipped=1, chunks=2)
    assert [hit.text for hit in rag.search("text")] == ["second"]


def test_equal_texts_share_a_block_until_the_last_is_gone(rag: Rag, folder: Path) -> None:
    rag.add([Document("the same", id="a"), Document("the same", id="b")])
    assert len(blocks(folder)) == 1
    assert rag.delete("a") == 1
    assert len(blocks(folder)) == 1
    assert rag.ask("same?", max_new_tokens=1).recomputed == 0
    assert rag.delete(["a", "b", "never there", "b"]) == 1
    assert blocks(folder) == []
    assert len(rag) == 0


def test_many_documents_in_commits(rag: Rag, model: GritModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(model, monkeypatch)
    documents = [Document(f"entry {i} of {i % 7}", metadata={"mod": i % 7}) for i in range(300)]
    assert rag.add(documents) == AddReport(added=300, chunks=300)
    assert len(rag) == len(blocks(folder)) == 300
    assert reads.calls < 8
    versions = len(list((folder / "documents_0.lance" / "_versions").iterdir()))
    assert versions < 20  # a write per commit, not per document
    assert len(rag.search("entry", top_k=300, where={"mod": 3})) == 43
    assert rag.delete(document.id for document in documents[:290]) == 290
    assert len(rag) == 10


def test_a_document_that_cannot_be_added_is_named(rag: Rag) -> None:
    with pytest.raises(InputError, match=r"document 'none' .* empty"):
        rag.add([Document("fine", id="small"), Document(" \n", id="none")])
    assert len(rag) == 0  # a commit is whole or absent
    with pytest.raises(InputError, match="int"):
        rag.add([1])  # type: ignore[list-item]
    for nothing in (5, b"text", {"a": 1}):
        with pytest.raises(InputError, match="iterable"):
            rag.add(nothing)  # type: ignore[arg-type]
    assert rag.add([]) == AddReport()


def test_a_long_document_is_chunks_that_are_found_and_deleted_together(rag: Rag, folder: Path) -> None:
    long = " ".join(f"word{i}" for i in range(600))
    report = rag.add([Document(long, id="big", metadata={"a": 1}), Document("short", id="small")])
    assert report.added == 2
    assert report.chunks == len(blocks(folder)) > 3
    assert len(rag) == 2
    hits = [hit for hit in rag.search("word", top_k=100) if hit.id == "big"]
    assert sorted(hit.chunk for hit in hits) == list(range(report.chunks - 1))
    assert all(hit.text in long and hit.metadata == {"a": 1} for hit in hits)
    assert rag.add(Document("short now", id="big")) == AddReport(updated=1, chunks=1)
    assert len(blocks(folder)) == 2
    assert rag.delete("big") == 1
    assert [hit.id for hit in rag.search("word", top_k=100)] == ["small"]


def test_documents_are_listed_without_their_texts(rag: Rag) -> None:
    assert rag.documents() == []
    rag.add([
        Document("# Title\n\n" + "words " * 900, id="long", metadata={"year": 1}, kind="markdown"),
        Document("# Title\n\nshort", id="own", metadata={"section": "mine"}, kind="markdown"),
        Document("plain", id="plain"),
    ])  # fmt: skip
    long, own, plain = rag.documents()
    assert (long.id, long.metadata) == ("long", {"year": 1})
    assert long.chunks > 1
    assert (own.metadata, plain.metadata, plain.chunks) == ({"section": "mine"}, {}, 1)
    assert [one.id for one in rag.documents(1, after="long")] == ["own"]
    assert rag.documents(after="plain") == []
    for limit in (0, -1, True, "3"):
        with pytest.raises(InputError, match="limit="):
            rag.documents(limit)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="id"):
        rag.documents(after="\ud800")


def test_a_smaller_share_of_memory_changes_no_answer(rag: Rag) -> None:
    rag.add(list(TEXTS))
    before = rag.ask("fox?", reuse="cached", max_new_tokens=3)
    rag.resize(0)
    after = rag.ask("fox?", reuse="cached", max_new_tokens=3)
    assert (after.text, after.sources, after.recomputed) == (before.text, before.sources, 0)
    assert rag.counts["memory"] == 0
    rag.resize(1 << 20)
    for _ in range(2):
        rag.ask("fox?", reuse="cached", max_new_tokens=3)
    assert rag.counts["memory"] == 3
    with pytest.raises(InputError, match="memory=-1"):
        rag.resize(-1)


def test_a_chunk_is_computed_again_as_it_was_cut(folder: Path) -> None:
    model = grit_model("llama", max_length=30)
    with Rag.open(folder, model) as rag:
        rag.add("one two three four five six seven eight nine ten " * 3)
        before = rag.ask("three?", max_new_tokens=6)
        assert len(before.sources) == 3
    with Rag.open(folder, grit_model("llama", max_length=100)) as rag:  # reads further now
        for path in blocks(folder):
            path.unlink()
        after = rag.ask("three?", max_new_tokens=6)
        assert (after.recomputed, after.text, after.usage) == (3, before.text, before.usage)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Document("a\ud800"), "surrogate"),
        (lambda: Document("text", id="a\ud800"), "surrogate"),
        (lambda: Document("text", id=""), "empty"),
        (lambda: Document(None), "not text"),  # type: ignore[arg-type]
        (lambda: Document("text", metadata={1: "a"}), "dict with text as keys"),  # type: ignore[dict-item]
        (lambda: Document("text", metadata={"a": object()}), "JSON"),
        (lambda: Document("text", metadata={"a": float("nan")}), "JSON"),
        (lambda: Document("text", metadata={"a": "\ud800"}), "surrogate"),
    ],
)
def test_what_is_no_document_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# -- searching ---------------------------------------------------------------------------------------------------


def test_search_is_exact(rag: Rag, model: GritModel) -> None:
    texts = [f"{text} {i}" for i in range(40) for text in TEXTS]
    rag.add(texts)
    scores = model.embed(texts) @ model.embed("the fox sees", role="query")
    hits = rag.search("the fox sees", top_k=7)
    assert [hit.text for hit in hits] == [texts[i] for i in np.argsort(-scores)[:7]]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:7], atol=1e-5)
    assert len(rag.search("the fox sees", top_k=1000)) == len(texts)


def test_filters_match_values_and_nothing_else(rag: Rag) -> None:
    values: list[Any] = [1, True, "1", None, 1.5, "true", [1], {"a": 1}, 0, False, "", *HOSTILE]
    rag.add([Document("same text", id=f"v{i}", metadata={"k": value, "all": 1}) for i, value in enumerate(values)])
    for i, value in enumerate(values):
        hits = rag.search("text", top_k=100, where={"k": value})
        assert [hit.id for hit in hits] == [f"v{i}"], value
        assert hits[0].metadata == {"k": value, "all": 1}
        assert [hit.id for hit in rag.search("text", top_k=1, where={"all": 1, "k": value})] == [f"v{i}"]
    assert [hit.id for hit in rag.search("text", where={"k": 1.0})] == ["v0"]
    assert len(rag.search("text", top_k=100, where={})) == len(values)
    assert rag.search("text", where={"K": 1}) == []
    assert rag.search("text", where={"k": 1, "all": 2}) == []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_ids_and_keys_are_only_text(rag: Rag, hostile: str) -> None:
    rag.add([Document("one", id=hostile, metadata={hostile: hostile}), Document("two", id="bystander")])
    assert rag.add(Document("one", id=hostile, metadata={hostile: hostile})).skipped == 1
    (hit,) = rag.search("one", where={hostile: hostile})
    assert (hit.id, hit.metadata) == (hostile, {hostile: hostile})
    assert rag.delete(hostile) == 1
    assert [hit.id for hit in rag.search("one")] == ["bystander"]


def test_an_instruction_is_for_queries(folder: Path) -> None:
    model = grit_model("llama", prompt_format="grit")
    with Rag.open(folder, model) as plain, Rag.open(folder, model, instruction="Find the text") as instructed:
        plain.add(list(TEXTS))
        scores = model.embed(list(TEXTS)) @ model.embed("fox", role="query", instruction="Find the text")
        found = {hit.text: hit.score for hit in instructed.search("fox")}
        np.testing.assert_allclose([found[text] for text in TEXTS], scores, atol=1e-5)
        assert plain.search("fox") != instructed.search("fox")
        assert instructed.add(list(TEXTS)).skipped == len(TEXTS)
    with pytest.raises(InputError, match="no place for an instruction"):
        Rag.open(folder, grit_model("llama", prompt_format="e5"), instruction="Find the text")


@pytest.fixture(scope="module")
def library(model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rag]:
    """Forty documents; words and vectors rank them differently. For tests that only look."""
    with Rag.open(tmp_path_factory.mktemp("library") / "kb", model) as rag:
        texts = [f"{text} {'fox ' * (i % 3)}{i}" for i in range(8) for text in TEXTS]
        rag.add([Document(text, id=str(i), metadata={"mod": i % 4}) for i, text in enumerate(texts)])
        yield rag


def test_text_search_finds_words(library: Rag) -> None:
    hits = library.search("foxes and a fox", top_k=100, by="text")
    assert hits
    assert all({"fox", "and", "a"} & set(hit.text.split()) for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert library.search("zebra", by="text") == []
    for hostile in ("fox AND (", '"fox', "text:fox", "fox*", "NOT fox", "fox~2"):
        library.search(hostile, by="text")
        library.search(hostile, by="hybrid")
    assert {hit.metadata["mod"] for hit in library.search("fox", by="text", where={"mod": 2})} == {2}


@pytest.mark.parametrize("where", [None, {"mod": 1}])
def test_hybrid_search_fuses_both_by_rank(library: Rag, where: dict[str, Any] | None) -> None:
    both = [library.search("the lazy fox", top_k=20, where=where, by=by) for by in ("dense", "text")]
    scores: dict[str, float] = {}
    for ranking in both:
        for rank, hit in enumerate(ranking, 1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1 / (60 + rank)
    hits = library.search("the lazy fox", top_k=5, where=where, by="hybrid")
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True)[:5])
    assert all(scores[hit.id] == pytest.approx(hit.score) for hit in hits)
    assert [hit.id for hit in hits] != [hit.id for hit in both[0][:5]]


@pytest.mark.parametrize("by", ["dense", "text", "hybrid"])
def test_reranking_is_by_the_likelihood_of_the_query(library: Rag, model: GritModel, by: Any) -> None:
    candidates = library.search("the lazy fox", top_k=12, by=by)
    scores = model.score("the lazy fox", [hit.text for hit in candidates])
    hits = library.search("the lazy fox", top_k=3, by=by, rerank=True)
    order = sorted(range(12), key=lambda i: -scores[i])
    assert [hit.id for hit in hits] == [candidates[i].id for i in order[:3]]
    assert [hit.score for hit in hits] == pytest.approx([scores[i] for i in order[:3]])
    assert library.search("zebra", by="text", rerank=True) == []


def test_answers_read_what_their_search_found(library: Rag) -> None:
    for options in ({"by": "text"}, {"by": "hybrid"}, {"rerank": True}, {"by": "hybrid", "where": {"mod": 3}}):
        answer = library.ask("the lazy fox?", max_new_tokens=1, **options)
        assert answer.sources == library.search("the lazy fox?", top_k=3, **options)  # type: ignore[arg-type]


def test_less_room_than_the_context_drops_documents(library: Rag) -> None:
    params = SamplingParams(max_new_tokens=5)
    whole = library.find("what lies where?", top_k=3, params=params)
    assert (len(whole.used), len(whole.dropped)) == (3, 0)
    prompt = library.prepare(whole, "cached", "no-bos").request
    size = prompt.num_laid + len(prompt.prompt_ids) + params.max_new_tokens
    enough = library.find("what lies where?", top_k=3, params=params, max_tokens=size)
    assert [one.hit for one in enough.used] == [one.hit for one in whole.used]
    less = library.find("what lies where?", top_k=3, params=params, max_tokens=size - 1)
    assert [one.hit for one in (*less.used, *less.dropped)] == [one.hit for one in whole.used]
    assert len(less.dropped) == 1
    with pytest.raises(InputError, match="no document fits"):
        library.find("what lies where?", params=params, max_tokens=8)


def test_a_search_that_makes_no_sense_is_refused(rag: Rag) -> None:
    rag.add("text")
    with pytest.raises(InputError, match="id"):
        rag.delete([5])  # type: ignore[list-item]
    for bad in ({"top_k": 0}, {"top_k": 1.5}, {"top_k": True}, {"where": "a = 1"}, {"where": {"a": object()}}):
        with pytest.raises(InputError):
            rag.search("text", **bad)  # type: ignore[arg-type]
    for query in ("", "  ", None, b"text"):
        with pytest.raises(InputError, match="query"):
            rag.search(query)  # type: ignore[arg-type]


# -- the folder --------------------------------------------------------------------------------------------------


def test_a_reopened_knowledge_base_is_the_same(folder: Path, model: GritModel) -> None:
    with Rag.open(folder, model) as rag:
        rag.add(list(TEXTS))
        hits, answer = rag.search("fox"), rag.ask("fox?", max_new_tokens=8)
    with pytest.raises(StoreError, match="closed"):
        rag.search("fox")
    with Rag.open(str(folder), grit_model("llama")) as again:
        assert again.search("fox") == hits
        later = again.ask("fox?", max_new_tokens=8)
        assert (later.text, later.sources, later.recomputed) == (answer.text, answer.sources, 0)


def test_the_codec_is_the_one_it_was_made_with(folder: Path, model: GritModel) -> None:
    Rag.open(folder, model, codec="bf16").close()
    with Rag.open(folder, model) as rag:
        assert rag.base.manifest.codec == "bf16"
    with Rag.open(folder.with_name("new"), model) as rag:
        assert rag.base.manifest.codec == "int8"
    with pytest.raises(InputError, match="codec='zip' is not one of"):
        Rag.open(folder.with_name("none"), model, codec="zip")
    assert not folder.with_name("none").exists()


def test_two_open_at_once_see_each_other(folder: Path, model: GritModel) -> None:
    with Rag.open(folder, model) as one, Rag.open(folder, model) as two:
        one.add("from one")
        two.add("from two")
        assert len(one) == len(two) == 2
        assert one.search("from") == two.search("from")
        two.delete(one.search("from one", top_k=1)[0].id)
        assert len(one) == 1


def test_another_model_is_refused(folder: Path, model: GritModel) -> None:
    Rag.open(folder, model).close()
    before = (folder / FILE_NAME).read_bytes()
    for other in (grit_model("mistral"), grit_model("llama", pooling="last"), grit_model("llama", prompt_format="e5")):
        with pytest.raises(StoreError, match=r"another model .*gritkit kb reindex"):
            Rag.open(folder, other)
    assert (folder / FILE_NAME).read_bytes() == before
    with pytest.raises(StoreError, match="another codec"):
        Rag.open(folder, model, codec="exact")
    Rag.open(folder, grit_model("llama", max_length=99)).close()  # no vector of a stored document depends on it


def test_folders_that_are_no_knowledge_base_are_refused(folder: Path, model: GritModel) -> None:
    Rag.open(folder, model).close()
    manifest = folder / FILE_NAME
    whole = manifest.read_bytes()
    manifest.write_text(json.dumps(json.loads(whole) | {"format_version": 99}))
    with pytest.raises(StoreError, match=r"format 99 and this gritkit reads \d"):
        Rag.open(folder, model)
    for broken in (b"", whole[:20], b"[]", b"{}", b"\xff\xfe"):
        manifest.write_bytes(broken)
        with pytest.raises(StoreError, match="damaged"):
            Rag.open(folder, model)
    manifest.unlink()
    with pytest.raises(StoreError, match="not empty"):
        Rag.open(folder, model)
    file = folder.with_name("file")
    file.write_text("text")
    with pytest.raises(StoreError, match="cannot open"):
        Rag.open(file, model)


def test_without_lancedb_the_error_names_the_extra(
    folder: Path, model: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingExtraError, match=r"lancedb.*gritkit\[rag\]"):
        Rag.open(folder, model)


def test_nothing_is_printed(rag: Rag, capfd: pytest.CaptureFixture[str]) -> None:
    rag.add(list(TEXTS), progress=True)
    rag.ask("fox?", max_new_tokens=2)
    assert capfd.readouterr() == ("", "")


# -- models that cannot do it all --------------------------------------------------------------------------------


def test_a_model_with_learned_positions_answers_without_caches(folder: Path) -> None:
    model = grit_model("gpt2")
    with pytest.raises(UnsupportedModelError):
        model.read(["text"])
    with Rag.open(folder, model) as rag:
        rag.add(list(TEXTS))
        assert blocks(folder) == []
        answer = rag.ask("fox?", max_new_tokens=4)
        assert (answer.reuse, answer.usage.cached_tokens) == ("off", 0)
        assert answer.text == rag.ask("fox?", max_new_tokens=4, reuse="off").text
        with pytest.raises(UnsupportedModelError, match="without document caches"):
            rag.ask("fox?", reuse="cached")


def test_a_model_that_only_embeds_searches(folder: Path) -> None:
    model = grit_model("llama")
    model.writes = False
    with Rag.open(folder, model) as rag:
        rag.add(list(TEXTS))
        assert blocks(folder) == []
        assert len(rag.search("fox")) == len(TEXTS)
        with pytest.raises(UnsupportedModelError, match="cannot generate"):
            rag.ask("fox?")
