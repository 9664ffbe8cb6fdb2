"""``gritkit chat``: a terminal around :class:`gritkit.cli.conversation.Conversation`.

What a terminal is (line editing, Ctrl-C, prompts) is known here and nowhere else; nothing here knows about the turns.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritkit.cli import options
from gritkit.cli.conversation import Conversation
from gritkit.cli.input import read_source
from gritkit.cli.loading import open_model
from gritkit.cli.output import note
from gritkit.errors import InputError
from gritkit.prompts import Message

if TYPE_CHECKING:
    from gritkit.generation.params import SamplingParams
    from gritkit.model import GritModel


def chat(
    source: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Model folder or hub id.")] = None,
    model: options.Model = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="How the model shall behave.")] = None,
    load: Annotated[str | None, typer.Option("--load", metavar="FILE", help="Go on from a saved conversation.")] = None,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopTokens = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    stop: options.Stop = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Talk with a model; /help in the chat lists what else it understands.

    When stdin is not a terminal, all of it is one message and the answer goes to stdout.
    """
    from gritkit.generation.params import SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
    )
    message = None
    if not sys.stdin.isatty():
        message = read_source(None)[1].strip()
        if not message:
            raise InputError("stdin is empty: there is no message to answer")
    name = source or model
    grit = open_model(
        name, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
    )
    switch = Switch()
    conversation = connect(grit, params, switch, system)
    if load is not None:
        conversation.load(load)
    if message is not None:
        conversation.say(message)
        return
    note(f"{name} on {grit.device}. /help lists commands, Ctrl-D leaves.")
    with switch:
        conversation.run(_line_reader(switch))


def connect(
    model: GritModel, params: SamplingParams, interrupted: Callable[[], bool], system: str | None
) -> Conversation:
    """A conversation with a model, its answers on stdout."""
    from gritkit.generation.decoder import Request
    from gritkit.generation.params import Delta, raising

    room = min(params.max_new_tokens, model.context_length // 4)

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def answer(messages: list[Message]) -> Iterator[str]:
        interrupted()  # a Ctrl-C from before this answer is not meant for it
        request = Request(model.tokens.chat_prompt(messages), params)
        decoder = model.decoder(num_slots=1, max_length=len(request.prompt_ids) + params.max_new_tokens)
        decoder.join(request)
        while decoder.busy:  # a piece per step, empty ones too, so that reading a long prompt can be stopped as well
            yield "".join(event.text for event in raising(decoder.step()) if isinstance(event, Delta))

    return Conversation(
        answer=answer,
        fits=lambda messages: len(model.tokens.chat_prompt(messages)) + room <= model.context_length,
        show=show,
        note=note,
        interrupted=interrupted,
        system=system,
    )


class Switch:
    """Ctrl-C as a question instead of an exception while an answer is given.

    An exception could strike in the middle of a forward pass or of a write; the question waits for the step to end. A
    second Ctrl-C before that raises after all, and so does one at the prompt (``reading``).
    """

    def __init__(self) -> None:
        self.reading = False
        self._pressed = False
        self._before: Any = None

    def __call__(self) -> bool:
        """Whether Ctrl-C was pressed since the last question."""
        pressed, self._pressed = self._pressed, False
        return pressed

    def __enter__(self) -> Switch:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._pressed or self.reading:
            self._pressed = False
            raise KeyboardInterrupt
        self._pressed = True


def _line_reader(switch: Switch) -> Callable[[bool], str]:
    """Lines from the terminal, edited by readline where there is one."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

    def read(more: bool) -> str:
        prompt = "... " if more else "> "
        if not sys.stdout.isatty():  # the prompt is not data
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        switch.reading = True
        try:
            return input(prompt)
        except EOFError:
            note("")
            raise
        finally:
            switch.reading = False

    return read


app = options.app_of(chat)
