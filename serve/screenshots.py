"""Pictures of the server's page for the documentation, taken in a headless Chromium.

    python serve/screenshots.py MODEL                     # writes serve/screenshots/*.png

Any model will do. The pictures in the repository are of stories260K (Karpathy's 260,000 parameters that learned to tell
children's stories), so what it says are words rather than answers. Needs the packages playwright and pillow, and
Debian's chromium. This script knows nothing about how the page works but the names of what it clicks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from transformers import AutoModelForCausalLM, AutoTokenizer

from gritkit.model import GritModel
from gritkit_serve.app import create_app
from gritkit_serve.bases import Bases
from gritkit_serve.engine import Engine
from gritkit_serve.listening import bind
from gritkit_serve.server import Server
from gritkit_serve.service import Service

CHROMIUM = Path("/usr/bin/chromium")
FOLDER = Path(__file__).parent / "screenshots"
STORIES = {
    "lily.txt": "Lily had a red ball. She played with it in the park every day. One day the ball fell in the water. "
    "Lily was sad. Her dog Max jumped in the water and got the ball.",
    "tom.txt": "Tom the bear lived in a big forest. He liked to eat honey. One day he saw a little bird. The bird "
    "could not fly. Tom helped the bird, and they were friends.",
    "cake.txt": "Mom made a big cake with apples. The cake was hot. Ben wanted to eat it, but mom said he must wait. "
    "Ben went to play, and then they all had cake.",
    "boat.txt": "Sam had a little boat. The boat was blue. He put it on the lake, and the wind took it far away. A big "
    "duck found the boat and brought it back to Sam.",
}
TELLING = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
"""The chat template of a model that has none: it goes on telling what it was told."""


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or id of a model")
    model = _model(parser.parse_args().model)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as bases, _serving(model, Path(bases)) as url, _chromium() as browser:
        page = _visit(browser, url, width=1200, height=1190, scheme="light")
        _ask(page)
        _keep(page, "documents-light")
        page = _visit(browser, url, width=1200, height=900, scheme="dark")
        _plot(page)
        _keep(page, "embeddings-dark")
        page = _visit(browser, url, width=390, height=760, scheme="light")
        _chat(page)
        _keep(page, "chat-phone")


def _model(name: str) -> GritModel:
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = TELLING
    return GritModel.from_parts(AutoModelForCausalLM.from_pretrained(name), tokenizer)


@contextlib.contextmanager
def _serving(model: GritModel, folder: Path) -> Iterator[str]:
    service = Service("stories260K")
    engine = Engine(model)
    engine.start()
    service.attach(engine)
    service.bases = Bases(folder, engine)
    with contextlib.closing(bind("127.0.0.1", 0)) as listener:
        server = Server(service, create_app(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.leave()
            thread.join()


@contextlib.contextmanager
def _chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def _visit(browser: Browser, url: str, *, width: int, height: int, scheme: str) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector(".dot.good")
    return page


def _ask(page: Page) -> None:
    page.click('nav a[href="#documents"]')
    page.click("#base-make summary")
    page.fill("#base-name", "stories")
    page.fill("#base-chunk", "128")
    page.click("#base-new button")
    page.wait_for_selector("#bases li")
    files = [{"name": name, "mimeType": "text/plain", "buffer": text.encode()} for name, text in STORIES.items()]
    page.set_input_files("#files", files)  # type: ignore[arg-type]
    page.wait_for_selector("#report .good")
    page.click("#area-documents .pop summary")
    page.fill("#ask-max", "48")
    page.click("#area-documents .pop summary")
    for question in ("Where is the ball?", "What did Lily do when the ball fell in the water?"):
        page.fill("#ask-text", question)
        page.press("#ask-text", "Enter")
        page.wait_for_selector("#answers article:first-child[aria-busy=false]")
    page.evaluate("document.activeElement.blur()")
    page.evaluate("scrollTo(0, 0)")


def _plot(page: Page) -> None:
    page.click('nav a[href="#embeddings"]')
    page.fill("#embed-text", "\n".join(sentence for text in STORIES.values() for sentence in text.split(". ")[:3]))
    page.click("#embed-send")
    page.wait_for_selector("#plot svg")
    page.locator("#plot .point").first.focus()
    page.evaluate("scrollTo(0, 0)")


def _chat(page: Page) -> None:
    page.locator("#area-chat .pop").evaluate("pop => { pop.open = true; }")
    page.fill("#chat-max", "120")
    page.fill("#chat-temperature", "0")
    page.locator("#area-chat .pop").evaluate("pop => { pop.open = false; }")
    page.fill("#chat-text", "Once upon a time, a little dog and a bird went to the park.")
    page.press("#chat-text", "Enter")
    page.wait_for_selector("#chat-log .answer[aria-busy=false]")


def _keep(page: Page, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(FOLDER / f"{name}.png", optimize=True)
    page.context.close()


if __name__ == "__main__":
    main()
