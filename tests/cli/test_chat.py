from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gritkit.cli.chat import Switch, connect
from gritkit.generation.params import SamplingParams
from gritkit.model import GritModel
from tests.cli.conftest import Result, environment
from tests.models import grit_model

Run = Callable[..., Result]


def test_piped_input_is_one_message(run: Run, model_folder: Path) -> None:
    result = run("chat", "--max-new-tokens", "6", stdin=b"first line\nsecond line\n")
    model = GritModel.from_pretrained(model_folder)
    answer = model.chat([{"role": "user", "content": "first line\nsecond line"}], max_new_tokens=6)
    assert (result.code, result.out, result.stderr) == (0, answer.text + "\n", "")


def test_flags_reach_the_sampling(run: Run, model_folder: Path) -> None:
    flags = ["--temperature", "1.5", "--top-p", "0.9", "--top-k", "50", "--min-p", "0.01", "--seed", "7"]
    more = ["--repetition-penalty", "1.2", "--stop", "zz", "--stop", "qq", "--system", "be brief"]
    result = run("chat", model_folder, "--max-new-tokens", "8", *flags, *more, stdin=b"hello")
    answer = GritModel.from_pretrained(model_folder).chat(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        max_new_tokens=8,
        temperature=1.5,
        top_p=0.9,
        top_k=50,
        min_p=0.01,
        seed=7,
        repetition_penalty=1.2,
        stop=("zz", "qq"),
    )
    assert result.out == answer.text + "\n"


def test_load_goes_on(run: Run, model_folder: Path, tmp_path: Path) -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "chat.json").write_text(json.dumps(history))
    result = run("chat", "--load", "chat.json", "--max-new-tokens", "5", stdin=b"c")
    model = GritModel.from_pretrained(model_folder)
    assert result.out == model.chat([*history, {"role": "user", "content": "c"}], max_new_tokens=5).text + "\n"


@pytest.mark.parametrize("stdin", [b"", b" \n "])
def test_no_message_is_one_line(run: Run, stdin: bytes) -> None:
    result = run("chat", stdin=stdin)
    assert result.code == 1
    assert "no message" in result.error


@pytest.mark.parametrize(
    ("args", "stdin", "says"),
    [
        (["--temperature", "-1"], b"a", "temperature=-1.0"),
        (["--load", "missing.json"], b"a", "missing.json"),
        ([], b"\xff", "UTF-8"),
        ([], b"word " * 600, "context"),
        (["--prompt-format", "plain"], b"a", "--prompt-format grit"),
    ],
)
def test_what_cannot_be_answered_is_one_line(run: Run, args: list[str], stdin: bytes, says: str) -> None:
    if "plain" in args:  # a checkpoint that has no chat template: the same one without gritkit's
        folder = Path("bare")
        model = grit_model("mistral")
        model.tokenizer.chat_template = None
        model.save_pretrained(folder)
        args = ["-m", str(folder)]
    result = run("chat", *args, stdin=stdin)
    assert result.code == 1
    assert says in result.error
    assert result.out == ""


def test_a_long_conversation_fits_the_context_by_dropping_turns(capsys: pytest.CaptureFixture[str]) -> None:
    model = grit_model("mistral_window", prompt_format="grit")  # 512 tokens of context
    chat = connect(model, SamplingParams(max_new_tokens=20), lambda: False, "be brief")
    for turn in range(6):
        chat.say(f"{turn} " + "word " * 30)
    assert "dropped" in capsys.readouterr().err
    assert chat.messages[0]["role"] == "system"
    assert len(model.tokens.chat_prompt(chat.messages[:-1])) + 20 <= model.context_length


def test_the_switch_asks_between_steps_and_raises_at_the_prompt() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Switch() as switch:
        os.kill(os.getpid(), signal.SIGINT)
        assert switch()
        assert not switch()
        switch.reading = True
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        switch.reading = False
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


class Terminal:
    """``gritkit chat`` behind a real pseudo-terminal."""

    def __init__(self, *args: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gritkit", "chat", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(TERM="dumb"),
            start_new_session=True,
            preexec_fn=_controlling_terminal,
        )
        os.close(slave)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until the text has come; what came before it is forgotten."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} not in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the other side closed
                    break
        assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]

    def press_until(self, key: str, text: str) -> None:
        """Press again where nothing comes: a signal just before readline waits is noticed with the next key only."""
        for _ in range(30):
            self.type(key)
            try:
                return self.wait_for(text, 2)
            except AssertionError:
                continue
        raise AssertionError(f"{text!r} never came: {self.seen!r}")

    def wait_for_more(self, length: int, seconds: float = 60) -> None:
        """Read until so many characters more have come."""
        end = time.monotonic() + seconds
        while len(self.seen) < length:
            assert time.monotonic() < end, f"only {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def _controlling_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(model_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    endless = tmp_path / "endless"  # greedy, it never says the end of text, and its context is long
    shutil.copytree(model_folder, endless)
    config = json.loads((endless / "config.json").read_text(encoding="utf-8"))
    (endless / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 65536}), encoding="utf-8")
    terminal = Terminal(str(endless), "--max-new-tokens", "60000")
    try:
        terminal.wait_for("Ctrl-D leaves")
        terminal.wait_for("> ")
        terminal.press_until("\x03", "/exit leaves")
        terminal.wait_for("> ")
        terminal.type("hello there\n")
        terminal.wait_for("hello there")
        terminal.wait_for_more(100)
        terminal.type("\x03")
        terminal.wait_for("(stopped)", 10)
        terminal.wait_for("> ")
        terminal.type(f"/save {saved}\n")
        terminal.wait_for("2 messages")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
    messages = json.loads(saved.read_bytes())
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "hello there"
