from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest

from tests.serve.page.browsing import Visits, page_server, say, wait_for_words
from tests.serve.serving import Running

pytestmark = pytest.mark.slow


def test_a_chat_streams_and_stops_and_goes_on(server: Running, visit: Visits) -> None:
    page = visit(server.url)
    page.wait_for_selector(".dot.good")
    say(page, "Hello there", 3000)
    wait_for_words(page)
    assert page.is_visible("#chat-stop")
    assert page.get_attribute("#chat-log .answer", "aria-busy") == "true"
    page.click("#chat-stop")
    page.wait_for_selector("#chat-log .foot >> text=Stopped.")
    assert page.is_visible("#chat-send")
    said = page.text_content("#chat-log .reply") or ""

    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "And then?", 4)
    page.wait_for_selector("#chat-log .answer:nth-child(4)[aria-busy=false]")
    first, answer, second = json.loads(sent.value.post_data or "")["messages"]
    assert (first, second) == tuple({"role": "user", "content": text} for text in ("Hello there", "And then?"))
    assert answer["role"] == "assistant"
    assert answer["content"].lstrip() == said  # as the model wrote it: what was computed of it can be used again
    assert re.search(r"tokens read.* 4 tokens written$", page.inner_text("#chat-log .answer:nth-child(4) .foot"))
    page.click("#chat-new")
    assert page.locator("#chat-log article").count() == 0


def test_a_chat_answers_from_a_knowledge_base(filled: Running, visit: Visits) -> None:
    page = visit(filled.url)
    page.wait_for_selector("#chat-kb option[value=animals]", state="attached")
    page.select_option("#chat-kb", "animals")
    say(page, "What do beavers build?", 8)
    page.wait_for_selector("#chat-log .answer[aria-busy=false]")
    page.click("#chat-log .answer summary >> text=3 sources")
    assert "beavers.txt" in page.locator("#chat-log .source-name").all_inner_texts()
    assert page.locator("#chat-log .badge").count() == 1
    assert page.locator("#chat-log .figures").count() == 1


def test_a_busy_server_says_when_to_try_again(tmp_path: Path, visit: Visits) -> None:
    visit.expect("status of 429")
    most = 8  # a browser has six connections at most
    with page_server(tmp_path, max_requests=most) as busy, busy.client() as client:
        page = visit(busy.url)
        page.wait_for_selector(".dot.good")
        page.wait_for_load_state("networkidle")
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3500, "temperature": 0, "stream": True}
        with contextlib.ExitStack() as others:
            for _ in range(most):
                others.enter_context(client.stream("POST", "/v1/chat/completions", json=body))
            say(page, "Hello", 4)
            note = page.locator("#chat-log .note")
            note.wait_for()
            assert "as many as it may" in note.inner_text()
            assert note.locator("button").is_disabled()
            assert re.search(r"Try again in \d s", note.inner_text())
        note.locator("button").click()  # waits until it can be used
        page.wait_for_selector("#chat-log .foot >> text=written")
        assert page.locator("#chat-log .answer").count() == 1


def test_a_server_that_is_gone_is_said_to_be(tmp_path: Path, visit: Visits) -> None:
    visit.expect("ERR_CONNECTION|status of 503")
    with page_server(tmp_path) as gone:
        page = visit(gone.url)
        page.wait_for_selector(".dot.good")
    say(page, "Hello", 4)
    page.wait_for_selector("#chat-log .note")
    assert page.inner_text("#chat-log .note p") == "The server cannot be reached. Is it still running?"
