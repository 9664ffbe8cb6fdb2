"""The chat loop: lines in, streamed answers out, a history that fits the context.

It talks to callbacks alone, so it is tested without a terminal or a model. This module knows nothing about either, nor
about signals: ``interrupted`` says whether the answer being given should stop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gritkit.cli.wording import as_flags, one_line
from gritkit.errors import GritkitError, InputError
from gritkit.files import resolve, write_atomic
from gritkit.prompts import Message, check_messages

HELP = """\
/reset       forget the conversation (the system message stays)
/save FILE   write the conversation as JSON messages
/load FILE   go on from a saved conversation
/help        this list
/exit        leave (as Ctrl-D does); Ctrl-C stops an answer
\"\"\"          begins and ends a message of several lines"""
QUOTES = '"""'


@dataclass(kw_only=True)
class Conversation:
    """One conversation and what it is connected to."""

    answer: Callable[[list[Message]], Iterator[str]]
    """Pieces of the answer to these messages, as they come."""
    fits: Callable[[list[Message]], bool]
    """Whether the messages and an answer of useful length have room in the context."""
    show: Callable[[str], None]
    """A piece of an answer: data."""
    note: Callable[[str], None]
    """A line about the conversation: not data."""
    interrupted: Callable[[], bool] = lambda: False
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def run(self, read: Callable[[bool], str]) -> None:
        """Turns until ``read`` raises EOFError or /exit. ``read(more)`` gives a line; ``more``: inside a long message.

        A KeyboardInterrupt from ``read`` abandons what is being typed.
        """
        while True:
            try:
                text = _message(read)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.note("\n(Ctrl-D or /exit leaves)")
                continue
            if not text.strip():
                continue
            try:
                if not self._command(text):
                    self.say(text)
            except KeyboardInterrupt:
                self.note("\n(stopped)")
            except _LeaveError:
                return
            except (GritkitError, OSError) as error:
                self.note(f"Error: {as_flags(one_line(str(error)))}")

    def say(self, text: str) -> None:
        """One turn: the message, its streamed answer, and both in the history.

        An answer that was cut short by Ctrl-C stays as far as it came; an error takes the message back.
        """
        before, spoken = list(self.messages), []
        self.messages.append({"role": "user", "content": text})
        try:
            self._make_room()
            for piece in self.answer(list(self.messages)):
                if piece:
                    self.show(piece)
                    spoken.append(piece)
                if self.interrupted():
                    raise KeyboardInterrupt
            self.show("\n")
        except GritkitError:
            spoken.clear()
            raise
        finally:
            if spoken:
                self.messages.append({"role": "assistant", "content": "".join(spoken)})
            else:  # a turn without an answer is malformed in many chat templates
                self.messages = before

    def load(self, file: str) -> None:
        """Go on from saved messages. Raises InputError for a file that holds no conversation."""
        content = resolve(file).read_bytes()
        try:
            messages = json.loads(content)
        except ValueError as error:
            raise InputError(f"{file} is not JSON: {error}") from None
        if not isinstance(messages, list):
            raise InputError(f"{file} holds no list of messages")
        check_messages(messages)
        if messages[-1]["role"] == "user":
            raise InputError(f"{file} ends with a user message without an answer: remove it")
        self.messages = [{"role": m["role"], "content": m["content"]} for m in messages]

    def save(self, file: str) -> None:
        """Write the messages as JSON."""
        write_atomic(resolve(file), (json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n").encode())

    def _make_room(self) -> None:
        """Drop the oldest turns until the rest fits; the system message and the new message stay."""
        start = 1 if self.messages[0]["role"] == "system" else 0
        dropped = 0
        while len(self.messages) - start > 1 and not self.fits(self.messages):
            del self.messages[start]
            while len(self.messages) - start > 1 and self.messages[start]["role"] != "user":
                del self.messages[start]
            dropped += 1
        if dropped:
            self.note(f"(the conversation outgrew the context: its {_turns(dropped)} dropped)")

    def _command(self, text: str) -> bool:
        """Whether the line was a command; it is carried out."""
        if not text.startswith("/") or "\n" in text:
            return False
        name, _, rest = text.strip().partition(" ")
        file = rest.strip()
        if name in ("/exit", "/quit"):
            raise _LeaveError
        if name == "/help":
            self.note(HELP)
        elif name == "/reset":
            self.reset()
            self.note("(forgotten)")
        elif name in ("/save", "/load"):
            if not file:
                raise InputError(f"{name} needs a file: {name} FILE")
            (self.save if name == "/save" else self.load)(file)
            self.note(f"({name[1:]}: {len(self.messages)} messages, {file})")
        elif name[1:].isalpha():
            raise InputError(f"unknown command {name}: /help lists them")
        else:
            return False  # "/usr/bin is a folder" is a message
        return True


class _LeaveError(Exception):
    """/exit was given."""


def _turns(count: int) -> str:
    return "oldest turn was" if count == 1 else f"{count} oldest turns were"


def _message(read: Callable[[bool], str]) -> str:
    """A line, or what stands between two lines that begin and end with three quotes."""
    line = read(False)
    if not line.lstrip().startswith(QUOTES):
        return line
    lines = [line.lstrip()[len(QUOTES) :]]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read(True))
    lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
    return "\n".join(lines).strip("\n")
