from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.models import grit_model
from tests.serve.page.browsing import BEAVERS, Visits, ask, drop, go, page_server
from tests.serve.serving import Running, serving

pytestmark = pytest.mark.slow


def test_a_first_visitor_drops_a_file_asks_and_sees_the_answer_with_its_source(empty: Running, visit: Visits) -> None:
    page = visit(empty.url)
    go(page, "documents")
    assert page.inner_text("#bases-none").startswith("None yet.")
    assert page.is_disabled("#ask-send")

    drop(page, ("beavers.txt", BEAVERS))
    page.wait_for_selector("#report .good")
    assert page.inner_text("#report") == "Done: 1 added."
    assert page.inner_text("#bases li").startswith("documents\n1 document · 1 part · ")
    with empty.client() as client:
        assert [one["id"] for one in client.get("/v1/kb/documents/documents").json()["data"]] == ["beavers.txt"]

    question = "What do beavers build?"
    ask(page, question)
    card = page.locator("#answers article")
    assert card.locator("h3").inner_text() == question
    assert card.locator(".source-name").all_inner_texts() == ["beavers.txt"]
    assert card.locator(".passage").text_content() == BEAVERS
    assert card.locator("mark.asked", has_not_text="words").all_inner_texts() == ["Beavers", "build"]
    assert re.fullmatch(r"Search\n[\d.]+ m?s\nLoad\n[\d.]+ m?s\nFirst token\n[\d.]+ m?s\nTotal\n[\d.]+ m?s",
                        card.locator(".figures").inner_text())  # fmt: skip
    with empty.client() as client:
        same = client.post("/v1/kb/documents/ask", json={"question": question, "max_tokens": 12}).json()
    assert card.locator(".reply").text_content() == same["text"].strip()


def test_a_badge_tells_cached_key_values_from_computed_ones(filled: Running, visit: Visits) -> None:
    page = visit(filled.url + "#documents")
    page.wait_for_selector("#bases li")
    badge = page.locator("#answers article:first-child .badge")
    ask(page, "What hunts fish?", reuse="cached")
    assert badge.inner_text() == "Key-values cached"
    ask(page, "What hunts fish?", reuse="off")
    assert badge.inner_text() == "Key-values computed for this answer"
    assert page.locator("#answers article:first-child .sources li").count() == 3
    assert page.locator("#answers article").count() == 2


WATCH_PROGRESS = """() => {
    window.seen = [];
    const [text, bar] = ["indexing-text", "indexing-bar"].map((id) => document.getElementById(id));
    new MutationObserver(() => seen.push([text.textContent, bar.position]))
        .observe(document.getElementById("indexing"), { subtree: true, childList: true, characterData: true });
}"""
"""Keeps what is said and how far the bar is, -1 where it only moves."""


def test_a_single_document_is_being_read_until_it_is(empty: Running, visit: Visits) -> None:
    page = visit(empty.url + "#documents")
    page.wait_for_selector(".dot.good")
    page.evaluate(WATCH_PROGRESS)
    drop(page, ("beavers.txt", BEAVERS))
    page.wait_for_selector("#report .good")
    assert page.evaluate("seen") == [["Sending 1 file…", -1], ["Reading 1 document…", -1], ["Read 1 of 1 document", 1]]


def test_indexing_shows_its_progress_and_what_was_not_taken(empty: Running, visit: Visits) -> None:
    page = visit(empty.url + "#documents")
    page.wait_for_selector(".dot.good")
    page.evaluate(WATCH_PROGRESS)
    drop(page, ("good.txt", "One text."), ("empty.txt", " "), ("other.txt", "Another text."))
    page.wait_for_selector("#report .note")
    seen = page.evaluate("seen")
    assert seen[0] == ["Sending 3 files…", -1]
    assert seen[-1] == ["Read 3 of 3 documents", 1]
    assert page.inner_text("#report p") == "Done: 2 added, 1 not taken."
    assert page.inner_text("#report li").startswith("empty.txt: ")
    assert page.is_hidden("#indexing")


def test_a_pasted_text_is_listed_and_can_be_removed(empty: Running, visit: Visits) -> None:
    page = visit(empty.url + "#documents")
    page.wait_for_selector(".dot.good")
    page.click("#base-make summary")
    page.fill("#base-name", "notes")
    page.click("#base-new button")
    page.wait_for_selector("#bases li >> text=notes")
    page.click("#paste summary")
    page.fill("#paste-name", "first")
    page.fill("#paste-text", "Bread rises because of yeast.")
    page.click("#paste-form button")
    page.wait_for_selector("#report .good")
    assert page.input_value("#paste-text") == ""
    page.click("#contents summary")
    page.click("#contents-list >> text=Remove")
    page.wait_for_selector("#bases li >> text=empty")
    with empty.client() as client:
        assert client.get("/v1/kb/notes").json()["documents"] == 0


def test_a_document_is_removed_from_the_base_that_it_was_listed_of(filled: Running, visit: Visits) -> None:
    with filled.client() as client:
        client.post("/v1/kb", json={"name": "other"}).raise_for_status()
        documents = [{"id": "beavers.txt", "text": "The same name."}]
        client.post("/v1/kb/other/documents", json={"documents": documents}).raise_for_status()
    page = visit(filled.url + "#documents")
    page.click("#bases li >> text=animals")
    page.click("#contents summary")
    page.wait_for_selector("#contents-list >> text=beavers.txt")
    # a click that comes after the other base was chosen, and before its own list has come
    page.evaluate("""() => {
        const button = document.querySelector("#contents-list [aria-label='Remove beavers.txt']");
        [...document.querySelectorAll("#bases button")].find((one) => one.textContent.startsWith("other")).click();
        button.click();
    }""")
    page.wait_for_selector("#bases li >> text=2 documents")
    with filled.client() as client:
        counts = {base["name"]: base["documents"] for base in client.get("/v1/kb").json()["data"]}
    assert counts == {"animals": 2, "other": 1}


def test_deleting_asks_first(filled: Running, visit: Visits) -> None:
    page = visit(filled.url + "#documents")
    page.click("#base-delete")
    assert page.inner_text("#delete-title") == "Delete animals?"
    assert page.inner_text("#delete-what").startswith("3 documents and ")
    page.keyboard.press("Enter")  # the button that has the focus does no harm
    page.wait_for_selector("#delete-dialog", state="hidden")
    with filled.client() as client:
        assert client.get("/v1/kb/animals").status_code == 200
    page.click("#base-delete")
    page.click("#delete-dialog .danger")
    page.wait_for_selector("#bases-none:visible")
    with filled.client() as client:
        assert client.get("/v1/kb").json()["data"] == []


def test_what_the_server_refuses_is_said_in_its_words(filled: Running, visit: Visits) -> None:
    visit.expect(r"status of (400|409)")
    page = visit(filled.url + "#documents")
    page.click("#base-make summary")
    page.fill("#base-name", "animals")
    page.click("#base-new button")
    page.wait_for_selector("#report .note")
    with filled.client() as client:
        said = client.post("/v1/kb", json={"name": "animals"}).json()["error"]["message"]
    assert page.inner_text("#report").lower().startswith(said.lower())


def test_a_server_without_knowledge_bases_says_so(visit: Visits) -> None:
    with serving(grit_model("qwen3", prompt_format="grit")) as running:
        page = visit(running.url + "#documents")
        page.wait_for_selector("#bases-off:visible")
        assert "--kb" in page.inner_text("#bases-off")
        for offer in ("#bases-none", "#bases-only", "#base-make", "#drop", "#paste", "#base-delete", "#ask-form"):
            assert page.is_hidden(offer), offer


def test_a_server_of_one_base_offers_to_fill_it_alone(tmp_path: Path, visit: Visits) -> None:
    with page_server(tmp_path) as several, several.client() as client:
        client.post("/v1/kb", json={"name": "animals"}).raise_for_status()
    with page_server(tmp_path / "animals") as running:
        page = visit(running.url + "#documents")
        page.wait_for_selector("#bases-only:visible")
        for offer in ("#bases-none", "#bases-off", "#base-make", "#base-delete"):
            assert page.is_hidden(offer), offer
        drop(page, ("beavers.txt", BEAVERS))
        page.wait_for_selector("#report .good")
        assert page.inner_text("#bases li").startswith("animals\n1 document · ")
