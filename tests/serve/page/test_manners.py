"""What holds on all of the page: hostile texts stay texts, everything by keyboard, legible, and as wide as a phone."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.serve.page.browsing import BEAVERS, FOCUS, WEAK_TEXTS, Visits, ask, drop, go, say, wait_for_words
from tests.serve.serving import Running

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

HOSTILE = "<script>pwned()</script><img src=x onerror='pwned()'><svg onload='pwned()'> javascript:pwned() beavers"
AREAS = ("chat", "documents", "embeddings")


def use_everything(page: Page, text: str) -> None:
    """Bring a text to every place where the page shows one."""
    go(page, "documents")
    drop(page, (f"{text[:60].replace('/', '')}.txt", f"{text}\n{BEAVERS}"))
    page.wait_for_selector("#report .note")
    page.click("#contents summary")
    page.wait_for_selector("#contents-list li")
    ask(page, text)
    go(page, "chat")
    say(page, text, 4)
    page.wait_for_selector("#chat-log .foot >> text=written")
    go(page, "embeddings")
    page.fill("#embed-text", f"{text}\n{text} again\nbread rises\nshort")
    page.click("#embed-send")
    page.wait_for_selector("#plot svg")
    page.locator("#plot .point").first.focus()


def test_hostile_texts_stay_texts(empty: Running, visit: Visits) -> None:
    page = visit(empty.url)
    page.expose_function("pwned", lambda: visit.hear("error: a text was run"))
    foreign = "script, img, iframe, object, embed, form, [onerror], [onload]"
    before = page.locator(foreign).count()
    use_everything(page, HOSTILE)
    assert page.locator(foreign).count() == before
    assert page.locator("svg").count() == 2  # the bar of the milliseconds, and the plot
    for place in ("#answers .passage", "#answers h3", "#contents-list .source-name", "#chat-log .asked-turn", "#plot"):
        assert "<script>pwned" in (page.locator(place).first.text_content() or ""), place


def test_the_browser_itself_refuses_markup_from_text(empty: Running, visit: Visits) -> None:
    visit.expect("Trusted(HTML|Script)|Content Security Policy")
    page = visit(empty.url)
    markup = "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; } }"
    assert page.evaluate(markup) == "TypeError"
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.append("window.ran = true");
        try { document.body.append(script); } catch {}
        document.body.setAttribute("style", "color: rgb(1, 2, 3)");
    }""")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(1, 2, 3)"


def test_everything_by_keyboard(empty: Running, visit: Visits) -> None:
    page = visit(empty.url)
    # Choosers are caught from here on. expect_file_chooser() would tell the page to do so just before the key press,
    # which takes another way and may come first: the chooser is then opened and not heard of. What is asked of the page
    # between here and there is answered after it.
    page.on("filechooser", lambda _: None)
    page.wait_for_selector(".dot.good")
    press = page.keyboard.press

    def tab_to(id: str) -> None:
        for _ in range(60):
            press("Tab")
            focus = page.evaluate(FOCUS)
            assert focus["visible"], focus
            assert focus["name"], focus
            if focus["id"] == id or focus["name"] == id:
                return
        raise AssertionError(f"Tab does not reach {id}")

    press("Tab")
    assert page.evaluate(FOCUS)["name"] == "Skip to the content"
    tab_to("Documents")
    press("Enter")
    page.wait_for_function("document.activeElement.id === 'main'")  # the press is over before the address's event is

    tab_to("files")
    with page.expect_file_chooser() as chooser:
        press("Enter")
    chooser.value.set_files({"name": "beavers.txt", "mimeType": "text/plain", "buffer": BEAVERS.encode()})
    page.wait_for_selector("#report .good")
    tab_to("ask-text")
    page.keyboard.type("What do beavers build?")
    press("Enter")
    page.wait_for_selector("#answers article[aria-busy=false]")

    page.locator("#ask-send").focus()
    press("Tab")
    assert page.evaluate(FOCUS)["name"].startswith("beavers.txt")
    assert page.is_visible("#answers .passage")
    press("Enter")
    assert page.is_hidden("#answers .passage")

    page.locator("#bases button").focus()
    tab_to("base-delete")
    press("Enter")
    assert page.evaluate(FOCUS)["name"] == "Cancel"
    press("Escape")
    assert page.evaluate(FOCUS)["id"] == "base-delete"
    press("Enter")
    press("Tab")
    assert page.evaluate(FOCUS)["name"] == "Delete"
    press("Enter")
    page.wait_for_selector("#bases-none:visible")
    assert page.evaluate("document.activeElement.id") == "files"


def test_a_chat_is_stopped_by_escape(empty: Running, visit: Visits) -> None:
    page = visit(empty.url)
    page.wait_for_selector(".dot.good")
    say(page, "Hello", 3000)
    wait_for_words(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("#chat-log .foot >> text=Stopped.")
    assert page.inner_text("#announcer") == "Stopped."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(empty: Running, visit: Visits, scheme: str) -> None:
    page = visit(empty.url, color_scheme=scheme, reduced_motion="reduce")
    weak = page.evaluate(WEAK_TEXTS)
    go(page, "documents")
    page.wait_for_selector(".dot.good")
    weak += page.evaluate(WEAK_TEXTS)
    use_everything(page, "beavers build dams")
    page.evaluate("document.querySelector('#plot svg').classList.remove('looking')")  # what is dimmed is in the table
    for area in AREAS:
        go(page, area)
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        weak += page.evaluate(WEAK_TEXTS)
    page.evaluate("document.querySelectorAll('dialog').forEach((dialog) => dialog.show())")
    assert weak + page.evaluate(WEAK_TEXTS) == []


@pytest.mark.parametrize("width", [320, 390, 820])
def test_nothing_is_wider_than_the_page(empty: Running, visit: Visits, width: int) -> None:
    page = visit(empty.url, width=width)
    page.wait_for_selector(".dot.good")
    use_everything(page, "averylongwordwithoutanyplacetobreak" * 6)
    for area in AREAS:
        go(page, area)
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == width, area


def test_nothing_moves_for_those_who_asked_for_that(empty: Running, visit: Visits) -> None:
    page = visit(empty.url, reduced_motion="reduce")
    page.wait_for_selector(".dot.good")
    say(page, "Hello", 3000)
    page.wait_for_selector("#chat-log [aria-busy=true]")
    cursor = "getComputedStyle(document.querySelector('#chat-log .reply'), '::after').animationName"
    assert page.evaluate(cursor) == "none"
    page.click("#chat-stop")


def test_the_structure_is_one_that_screen_readers_can_tell(empty: Running, visit: Visits) -> None:
    page = visit(empty.url)
    page.wait_for_selector(".dot.good")
    use_everything(page, "beavers build dams")
    assert page.get_attribute("html", "lang") == "en"
    for area in AREAS:
        go(page, area)
        levels = page.locator("h1:visible, h2:visible, h3:visible, h4:visible").evaluate_all(
            "all => all.map((heading) => Number(heading.tagName[1]))"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert page.locator("nav [aria-current=page]").inner_text().lower() == area
    unlabelled = page.locator("input, select, textarea").evaluate_all(
        "all => all.filter((field) => !field.labels.length).map((field) => field.id)"
    )
    assert unlabelled == []
    ids = page.locator("[id]").evaluate_all("all => all.map((one) => one.id)")
    assert len(ids) == len(set(ids))
