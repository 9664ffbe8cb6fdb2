"""A real Chromium before a real server with a tiny random model, and what a visitor does there.

Without a Chromium the tests are skipped. The model's answers are no words; the pictures for the documentation are made
by serve/screenshots.py.

    def test_something(visit):
        page = visit(server.url)         # fails afterwards for errors and violations that the browser reported

Pages are of Debian's Chromium, without a window, in a context of their own each: nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gritkit.config import EmbeddingConfig
from gritkit.model import GritModel
from gritkit_serve.bases import Bases
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings
from tests.models import language_model, tokenizer
from tests.serve.serving import Running, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
"""Debian's; where it is not, the one that playwright installs."""
PATIENCE_MS = 60_000
BEAVERS = "Beavers build dams of branches and mud.\nTheir ponds keep wolves away."


@contextlib.contextmanager
def page_server(folder: Path, **settings: Any) -> Iterator[Running]:
    """A server with knowledge bases, whose model has room for three long passages and an answer."""
    backbone = language_model("qwen3", max_position_embeddings=4096)
    model = GritModel.from_parts(backbone, tokenizer(), EmbeddingConfig(prompt_format="grit"))
    given = Settings(drain_seconds=2.0, **settings)

    def add_bases(service: Service) -> None:
        service.bases = Bases(folder, service.engine, settings=given)

    with serving(model, settings=given, prepare=add_bases) as running:
        yield running


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with api.sync_playwright() as playwright:
        path = CHROMIUM if CHROMIUM.exists() else Path(playwright.chromium.executable_path)
        if not path.exists():
            pytest.skip(f"there is no {CHROMIUM} and none that playwright has installed")
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox does not work for root
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Visits:
    """Opens pages and hears what the browser says about them."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._problems: list[str] = []
        self._expected = r"$^"

    def __call__(self, url: str, *, width: int = 1200, **context: Any) -> Page:
        page = self._browser.new_context(viewport={"width": width, "height": 800}, **context).new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self.hear(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.hear(f"error: {error}"))
        page.goto(url)
        return page

    def hear(self, message: str) -> None:
        if message.startswith(("error", "warning")):
            self._problems.append(message)

    def expect(self, pattern: str) -> None:
        """What the browser may report in this test: an answer of the server that it provokes."""
        self._expected = pattern

    def end(self) -> None:
        """Close all pages. Fails for what was reported and not expected."""
        for context in self._browser.contexts:
            context.close()
        unexpected = [problem for problem in self._problems if not re.search(self._expected, problem)]
        assert not unexpected, unexpected


def go(page: Page, area: str) -> None:
    page.click(f'nav a[href="#{area}"]')


def ask(page: Page, question: str, **settings: str) -> None:
    """Ask the knowledge base and wait for the end of the answer."""
    page.locator("#area-documents .pop").evaluate("pop => { pop.open = true; }")
    page.fill("#ask-max", "12")
    for name, value in settings.items():
        page.select_option(f"#ask-{name}", value)
    page.fill("#ask-text", question)
    page.press("#ask-text", "Enter")
    page.wait_for_selector("#answers article:first-child[aria-busy=false]")


def say(page: Page, message: str, tokens: int) -> None:
    """Send a chat message; the answer is of so many tokens at most, the likeliest ones."""
    page.locator("#area-chat .pop").evaluate("pop => { pop.open = true; }")
    page.fill("#chat-max", str(tokens))
    page.fill("#chat-temperature", "0")
    page.fill("#chat-text", message)
    page.press("#chat-text", "Enter")


def wait_for_words(page: Page) -> None:
    """Until the chat's answer has begun."""
    page.locator("#chat-log .reply").filter(has_text=re.compile(".{8}", re.DOTALL)).wait_for()


def drop(page: Page, *named: tuple[str, str]) -> None:
    """Drop files, (name, text) each, on the page's drop zone."""
    transfer = page.evaluate_handle(
        """(named) => {
            const transfer = new DataTransfer();
            for (const [name, text] of named) transfer.items.add(new File([text], name, { type: "text/plain" }));
            return transfer;
        }""",
        [list(one) for one in named],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def module(page: Page, name: str, call: str, given: Any = None) -> Any:
    """What ``call``, an expression of ``module`` and ``given``, makes of a module of the page."""
    return page.evaluate(f"async (given) => {{ const module = await import('/static/{name}'); return {call}; }}", given)


FOCUS = """() => {
    const focused = document.activeElement;
    const seen = (element) => element && getComputedStyle(element).outlineStyle !== "none";
    const named = [focused.ariaLabel, ...[...(focused.labels ?? [])].map((label) => label.innerText),
        document.getElementById(focused.getAttribute("aria-labelledby"))?.innerText, focused.innerText];
    return {
        id: focused.id,
        tag: focused.tagName,
        name: named.find((name) => name?.trim())?.trim() ?? "",
        visible: seen(focused) || (focused.matches("input[type=file]") && seen(focused.closest(".drop"))),
    };
}"""
"""What has the focus: what it is called, and whether one sees that it has it."""

WEAK_TEXTS = """() => {
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => color.slice(0, 3)
        .map((value) => value / 255)
        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const over = (top, alpha, below) => top.slice(0, 3).map((value, i) => alpha * value + (1 - alpha) * below[i]);
    const ground = (element) => {
        if (!element) return [255, 255, 255];
        const color = numbers(getComputedStyle(element).backgroundColor);
        const alpha = color[3] ?? 1;
        return alpha === 1 ? color : over(color, alpha, ground(element.parentElement));
    };
    const opacity = (element) => element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
    const weak = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const text = walker.currentNode.textContent.trim();
        if (!text || !element.checkVisibility({ visibilityProperty: true }) || element.closest(":disabled")) continue;
        const style = getComputedStyle(element);
        const plate = element.matches("text") && element.parentElement.querySelector("rect");
        const below = plate ? numbers(getComputedStyle(plate).fill) : ground(element);
        const color = over(numbers(element.matches("text") ? style.fill : style.color), opacity(element), below);
        const [high, low] = [light(color), light(below)].sort((a, b) => b - a);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) weak.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
    }
    return weak;
}"""
"""Texts whose contrast with what is behind them is below 4.5, WCAG's AA."""
