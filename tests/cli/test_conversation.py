from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gritkit.cli.conversation import Conversation
from gritkit.errors import InputError
from gritkit.prompts import Message


class Partner:
    """Answers with the number of the turn; keeps all that passes."""

    def __init__(self, system: str | None = None, limit: int = 1000) -> None:
        self.asked: list[list[Message]] = []
        self.shown: list[str] = []
        self.notes: list[str] = []
        self.stop_after: int | None = None
        self.limit = limit
        self.chat = Conversation(
            answer=self.answer,
            fits=lambda messages: len(messages) <= self.limit,
            show=self.shown.append,
            note=self.notes.append,
            interrupted=lambda: len(self.shown) == self.stop_after,
            system=system,
        )

    def answer(self, messages: list[Message]) -> Iterator[str]:
        self.asked.append(messages)
        if messages[-1]["content"] == "bad":
            raise InputError("a bad message: pass truncate=True")
        yield "answer "
        yield ""
        if messages[-1]["content"] == "pull":
            raise KeyboardInterrupt
        yield str(len(self.asked))

    def run(self, *lines: str | type[BaseException]) -> list[bool]:
        """Feed lines, then end of file; returns whether each was asked for inside a long message."""
        waiting, more = list(lines), []

        def read(inside: bool) -> str:
            more.append(inside)
            if not waiting:
                raise EOFError
            line = waiting.pop(0)
            if isinstance(line, str):
                return line
            raise line

        self.chat.run(read)
        return more

    @property
    def contents(self) -> list[str]:
        return [message["content"] for message in self.chat.messages]


def test_history_grows_and_answers_stream() -> None:
    partner = Partner()
    partner.run("one", "", "  ", "two")
    assert partner.shown == ["answer ", "1", "\n", "answer ", "2", "\n"]
    assert [m["role"] for m in partner.asked[1]] == ["user", "assistant", "user"]
    assert partner.contents == ["one", "answer 1", "two", "answer 2"]


def test_reset_keeps_the_system_message() -> None:
    partner = Partner(system="be brief")
    partner.run("one", "/reset", "two")
    assert partner.contents == ["be brief", "two", "answer 2"]
    assert partner.asked[0][0] == {"role": "system", "content": "be brief"}


def test_a_message_of_several_lines() -> None:
    partner = Partner()
    assert partner.run('"""first', "  second", 'third"""', '"""one line"""') == [False, True, True, False, False]
    assert partner.asked[0][0]["content"] == "first\n  second\nthird"
    assert partner.asked[1][2]["content"] == "one line"


def test_the_end_inside_a_long_message_leaves() -> None:
    partner = Partner()
    partner.run('"""never closed')
    assert partner.asked == []


def test_exit_leaves() -> None:
    partner = Partner()
    partner.run("/exit", "not reached")
    assert partner.asked == []


def test_an_interrupt_at_the_prompt_drops_what_was_typed() -> None:
    partner = Partner()
    partner.run('"""half', KeyboardInterrupt, "whole")
    assert partner.contents == ["whole", "answer 1"]
    assert "/exit" in partner.notes[0]


def test_an_interrupt_stops_the_answer_and_keeps_it() -> None:
    partner = Partner()
    partner.stop_after = 1
    partner.run("one", "two")
    assert partner.contents == ["one", "answer ", "two", "answer 2"]
    assert partner.notes == ["\n(stopped)"]


def test_a_second_interrupt_inside_a_step_stops_too() -> None:
    partner = Partner()
    partner.run("pull", "two")
    assert partner.contents == ["pull", "answer ", "two", "answer 2"]


def test_an_error_takes_the_message_back_and_the_chat_goes_on() -> None:
    partner = Partner()
    partner.run("one", "bad", "two")
    assert partner.contents == ["one", "answer 1", "two", "answer 3"]
    assert partner.notes == ["Error: a bad message: pass --truncate"]


def test_the_oldest_turns_make_room() -> None:
    partner = Partner(system="s", limit=4)
    partner.run("one", "two", "three")
    assert [m["content"] for m in partner.asked[2]] == ["s", "two", "answer 2", "three"]
    assert partner.notes == ["(the conversation outgrew the context: its oldest turn was dropped)"]


def test_a_message_too_long_by_itself_costs_no_history() -> None:
    partner = Partner()
    partner.run("one")
    partner.limit = 0
    partner.run("bad")
    assert partner.contents == ["one", "answer 1"]


def test_save_and_load(tmp_path: Path) -> None:
    file = tmp_path / "a folder" / "chat.json"
    first = Partner(system="s")
    first.run("naïve 🦊", f"/save {file}")
    assert json.loads(file.read_bytes()) == first.chat.messages
    second = Partner()
    second.run(f"/load {file}", "more")
    assert second.contents == ["s", "naïve 🦊", "answer 1", "more", "answer 1"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("{}", "no list"),
        ("[]", "non-empty"),
        ('[{"role": "user"}]', "lacks"),
        ('[{"role": "user", "content": "a"}]', "without an answer"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(tmp_path: Path, content: str | bytes, says: str) -> None:
    file = tmp_path / "chat.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    partner = Partner()
    partner.run("one", f"/load {file}")
    assert partner.contents == ["one", "answer 1"]
    assert says in partner.notes[0]


@pytest.mark.parametrize("line", ["/nonsense", "/save", "/load", "/load no-such-file"])
def test_wrong_commands_are_notes(line: str) -> None:
    partner = Partner()
    partner.run(line)
    assert partner.notes[0].startswith("Error: ")
    assert partner.asked == []


def test_a_path_is_a_message() -> None:
    partner = Partner()
    partner.run("/usr/bin holds programs")
    assert partner.contents[0] == "/usr/bin holds programs"


def test_help_names_every_command() -> None:
    partner = Partner()
    partner.run("/help")
    for name in ("/reset", "/save", "/load", "/help", "/exit"):
        assert name in partner.notes[0]
