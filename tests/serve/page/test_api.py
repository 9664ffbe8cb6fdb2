from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.serve.page.browsing import Visits, module, page_server, say
from tests.serve.serving import Running

pytestmark = pytest.mark.slow

KEY = "a-key-for-the-page"


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(tmp_path: Path, visit: Visits) -> None:
    visit.expect("status of 401")
    with page_server(tmp_path, api_keys=(KEY,)) as locked:
        page = visit(locked.url)
        page.wait_for_selector("#key-dialog[open]")
        assert page.is_hidden("#key-refused")
        page.keyboard.type("not-the-key")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-refused:visible")
        assert page.input_value("#key") == ""
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(".dot.good")

        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []
        assert KEY not in page.content()

        say(page, "Hello", 4)
        page.wait_for_selector("#chat-log .foot >> text=written")
        page.reload()
        page.wait_for_selector(".dot.good")  # the tab still has it
        page.click("text=Forget the key")
        page.wait_for_selector("#key-dialog[open]")
        assert page.evaluate("sessionStorage.length") == 0


def test_without_a_key_the_page_says_so_and_asks_again(tmp_path: Path, visit: Visits) -> None:
    visit.expect("status of 401")
    with page_server(tmp_path, api_keys=(KEY,)) as locked:
        page = visit(locked.url)
        page.wait_for_selector("#key-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#state >> text=No key")
        say(page, "Hello", 4)
        page.wait_for_selector("#key-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#chat-log .note")
        assert page.inner_text("#chat-log .note p").startswith("This server needs an API key")
        page.click("text=Enter the key")
        page.wait_for_selector("#key-dialog[open]")
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(".dot.good")


def test_the_page_waits_for_a_server_that_loads(loading: Running, visit: Visits) -> None:
    visit.expect("status of 503")
    page = visit(loading.url)
    page.wait_for_selector("#state >> text=Starting…")
    assert re.search(r"\bbad\b", page.get_attribute("#state-dot", "class") or "")


EVENTS = """await (async () => {
    const [bytes, size] = given;
    const pieces = new ReadableStream({
        start(to) {
            for (let i = 0; i < bytes.length; i += size) to.enqueue(Uint8Array.from(bytes.slice(i, i + size)));
            to.close();
        },
    });
    const all = [];
    for await (const event of module.events(pieces)) all.push([event.event, event.data]);
    return all;
})()"""


def test_events_are_read_however_they_are_cut(loading: Running, visit: Visits) -> None:
    visit.expect("status of 503")
    page = visit(loading.url)
    lines = [
        ": a comment", "data: one", "", "event: delta", "data:two", "data:  three: 3", "id: 7", "retry: 10", "",
        "event: nothing", "", "data: naïve 東京 🦊", "", "data", "", "data: cut off",
    ]  # fmt: skip
    for end in ("\n", "\r\n", "\r"):
        for size in (1, 2, 3, 1000):
            got = module(page, "api.js", EVENTS, [list(end.join(lines).encode()), size])
            assert got == [
                ["message", "one"], ["delta", "two\n three: 3"], ["message", "naïve 東京 🦊"], ["message", ""],
            ], (end, size)  # fmt: skip


MARKED = "module.marked(...given).map((node) => (node.nodeName ? [node.className, node.textContent] : node))"


def test_shared_words_are_marked_whatever_their_case_and_accents(loading: Running, visit: Visits) -> None:
    visit.expect("status of 503")
    text = "The Café of the beaver's pond, CAFE 7 and 東京: dams."
    question, answer = "Is the café at 東京 of a beaver?", "Dams. The 7 ponds"
    got = module(visit(loading.url), "answers.js", MARKED, [text, question, answer])
    assert "".join(node if isinstance(node, str) else node[1] for node in got) == text
    assert [node for node in got if isinstance(node, list)] == [
        ["asked", "Café"], ["asked", "beaver's"], ["asked", "CAFE"], ["said", "7"], ["asked", "東京"], ["said", "dams"],
    ]  # fmt: skip
