"""Prompts -> ids as lm-evaluation-harness makes them, and ids -> the text that was written.

Texts are encoded by the checkpoint's own tokenizer with its own special tokens, a trailing space of a context belongs
to what follows it, and what was written is decoded without its prompt: so figures compare with the harness's.

This module knows nothing about tasks, scores or models beyond their tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gritkit.errors import InputError
from gritkit.generation.params import SamplingParams
from gritkit.prompts import Message
from gritkit.tokens import check_text
from gritkit_eval.generation.scoring import Pair


class Texts:
    """A tokenizer as the harness reads it.

    Raises:
        InputError: for a tokenizer that has neither a beginning nor an end of text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None and eos is None:
            raise InputError("the tokenizer has no beginning and no end of text: nothing stands before a first token")
        self.prefix_id: int = eos if bos is None else bos
        """What stands before a text that has nothing before it."""
        self._prefix: str = tokenizer.decode(self.prefix_id)

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Ids, with the tokenizer's own special tokens unless ``special`` is false or the text brings them along."""
        check_text(text, "prompt")
        if special is None and self._prefix and text.startswith(self._prefix):
            special = False
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special is not False)
        return ids

    def pair(self, context: str, continuation: str) -> Pair:
        """Ids of both, split where the context alone would end; its last spaces go to the continuation.

        Raises:
            InputError: for a continuation without a token.
        """
        if context:
            text = context.rstrip()
            whole, first = self.encode(context + continuation), self.encode(text)
            pair = (first, whole[len(first) :])
        else:
            ids = self.encode(continuation, special=False)
            pair = (ids[:1], ids[1:]) if ids[:1] == [self.prefix_id] else ([self.prefix_id], ids)
        if not pair[1]:
            raise InputError(f"nothing is left to predict of {continuation!r:.60}")
        return pair

    def chat(self, messages: Sequence[Message], *, unfinished: bool = False) -> str:
        """A conversation up to where the assistant is to speak, by the checkpoint's template; ``unfinished``: the last
        message is the assistant's, and to be continued.

        Raises:
            InputError: where there is no template, or it refuses the messages.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError("this checkpoint has no chat template: leave out --chat")
        try:
            made = self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=not unfinished,
                continue_final_message=unfinished,
                tokenize=False,
            )
        except Exception as error:  # a template raises whatever its author chose
            raise InputError(f"the checkpoint's chat template refuses the prompt: {error}") from None
        return str(made)

    def written(self, ids: Sequence[int], stop: Sequence[str]) -> str:
        """The text of new ids, up to the first stop string."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        for end in stop:
            text = text.split(end)[0] if end else text
        return text

    def prompt(self, text: str, max_new_tokens: int, limit: int) -> tuple[list[int], bool]:
        """Ids of a prompt to continue, and whether it lost its beginning, as it left too little room.

        Raises:
            InputError: where the answer alone would fill the context, or the prompt has no token.
        """
        if max_new_tokens >= limit:
            raise InputError(f"{max_new_tokens} new tokens leave no room for a prompt in a context of {limit}")
        ids = self.encode(text)
        if not ids:
            raise InputError("the prompt is empty: there is nothing to continue")
        room = limit - max_new_tokens
        return ids[-room:], len(ids) > room


def greedy(max_new_tokens: int, stop: Sequence[str], **more: Any) -> SamplingParams:
    """Greedy unless ``more`` says otherwise. More stop strings than a row takes only cost time: the text is cut."""
    return SamplingParams(max_new_tokens=max_new_tokens, stop=tuple(end for end in stop if end)[:16], **more)
