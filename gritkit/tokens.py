"""Text -> token ids with masks: which tokens are pooled and which are trained on is decided here, once.

Nobody edits a mask later. Special tokens are ids that the tokenizer itself adds; a text that spells one ("</s>") is
encoded as the characters it is, so a document or a user can never end a turn.

This module knows nothing about models, attention or batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from gritkit.encoding import beginning, encoded_each, inner_of, leading
from gritkit.errors import InputError, TooLongError, UnsupportedModelError
from gritkit.prompts import Message, PromptFormat, Role, check_messages, grit_turns

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TokenSeq:
    """One sequence of n tokens: ids [n] int64, what is pooled [n] bool, what is a next-token target [n] bool."""

    ids: Ids
    pool_mask: Mask
    loss_mask: Mask

    def __len__(self) -> int:
        return len(self.ids)


def sequence(ids: Sequence[int] | Ids, *, pool: Any = False, loss: Any = False) -> TokenSeq:
    """A TokenSeq from ids and masks that are broadcast to their length."""
    array = np.asarray(ids, dtype=np.int64)
    pool_mask, loss_mask = (np.broadcast_to(np.asarray(mask, dtype=bool), array.shape).copy() for mask in (pool, loss))
    return TokenSeq(array, pool_mask, loss_mask)


class Tokens:
    """A tokenizer together with a prompt format.

    Raises:
        UnsupportedModelError: for a tokenizer without the fast backend, whose character offsets the masks need.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} has no fast backend; save it with a tokenizer.json (AutoTokenizer does so)"
            )
        self.hf = tokenizer
        self.format = prompt_format
        # An own copy: texts are encoded without truncation, padding or special tokens found inside them.
        saved = backend.to_str()
        self._text = Tokenizer.from_str(saved)
        self._text.no_truncation()
        self._text.no_padding()
        self._text.encode_special_tokens = True
        self._inner = inner_of(self._text, saved)
        """For what does not stand first in its row: without the space that some tokenizers put before a first word."""
        marked = self._text.encode("a")
        inner = [index for index, special in enumerate(marked.special_tokens_mask) if not special]
        if not inner:
            raise UnsupportedModelError(f"{type(tokenizer).__name__} encodes the letter 'a' to nothing")
        self.bos_ids: list[int] = marked.ids[: inner[0]]
        """What the tokenizer itself puts before a text (often its beginning-of-text token, often nothing)."""
        self._eos_added: list[int] = marked.ids[inner[-1] + 1 :]
        self.eos_id: int | None = tokenizer.eos_token_id
        self.special_ids: frozenset[int] = frozenset(tokenizer.all_special_ids)
        specials = [token for token in self._text.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile(
            "|".join(
                r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip
                for token in sorted(specials, key=lambda token: -len(token.content))
            )
            or r"(?!)"
        )

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer that encodes texts; also decodes."""
        return self._text

    def encode(self, text: str) -> list[int]:
        """Ids of a bare text: no beginning, no end, nothing parsed as special."""
        return list(self._text.encode(check_text(text, "text"), add_special_tokens=False).ids)

    def is_longer(self, text: str, num_tokens: int) -> bool:
        """Whether a text is so large, and so much longer than so many tokens, that it is better not encoded: what
        encoding takes would otherwise be for whoever sent it to say."""
        return len(beginning(self._text, text, num_tokens)) < len(text)

    # -- texts to embed ------------------------------------------------------------------------------------------

    def to_embed(
        self,
        texts: Sequence[str],
        role: Role,
        instruction: str | None,
        max_length: int,
        *,
        truncate: bool,
        first: int = 0,
    ) -> list[TokenSeq]:
        """Formatted texts, pooled over the text's own tokens (neither beginning, instruction nor format).

        A token that starts inside the prefix is the prefix's, as in the original GRIT code; but a word that took the
        space before it ("query: cat" -> ..., ":", " cat") is the text's. An end-of-text token is pooled and survives
        truncation.

        Raises:
            InputError: naming the index: empty or too long a text, a lone surrogate, an instruction that fills it all.
        """
        prefix = self.format.embed_prefix(role, check_text(instruction, "instruction") if instruction else None)
        for index, text in enumerate(texts, first):
            check_text(text, f"text {index}")
            if not text.strip():
                raise InputError(f"text {index} is empty: drop it or give it words, there is nothing to embed")
        needed = [prefix + beginning(self._text, text, max_length) for text in texts]
        return [
            self._to_embed(
                item.ids, leading(item.offsets, prefix), max_length, truncate, index,
                is_whole=len(needed[index - first]) == len(prefix) + len(texts[index - first]),
            )
            for index, item in enumerate(encoded_each(self._text, needed), first)
        ]  # fmt: skip

    def ids_to_embed(
        self,
        texts: Sequence[Sequence[int]],
        role: Role,
        instruction: str | None,
        max_length: int,
        *,
        truncate: bool,
    ) -> list[TokenSeq]:
        """:meth:`to_embed` for texts that are ids already, without prompt, beginning or end (as :meth:`encode` gives).

        A prompt that ends with a space ("query: ") keeps it: ids cannot take it as a text's first word may.

        Raises:
            InputError: as :meth:`to_embed`.
        """
        prompt = self.encode(self.format.embed_prefix(role, instruction))
        for index, ids in enumerate(texts):
            if not len(ids):
                raise InputError(f"text {index} is empty: drop it or give it words, there is nothing to embed")
        return [
            self._to_embed([*prompt, *ids], len(prompt), max_length, truncate, index) for index, ids in enumerate(texts)
        ]

    def _to_embed(
        self,
        prompted: Sequence[int],
        num_prompt: int,
        max_length: int,
        truncate: bool,
        index: int,
        *,
        is_whole: bool = True,
    ) -> TokenSeq:
        """A text, or as much of it as matters, behind ``num_prompt`` tokens of its prompt, with beginning and end."""
        tail = self._tail
        ids = [*self.bos_ids, *prompted, *tail]
        if len(ids) > max_length:
            if not truncate:
                size = f"{len(ids)}" if is_whole else f"more than {max_length}"
                raise TooLongError(
                    f"text {index} is {size} tokens long and max_length is {max_length}: "
                    "raise max_length, split the text, or pass truncate=True"
                )
            ids = [*ids[: max_length - len(tail)], *tail]
        pooled = np.ones(len(ids), dtype=bool)
        begins = len(self.bos_ids) + num_prompt
        pooled[:begins] = False
        if not pooled[: len(ids) - len(tail)].any():
            raise InputError(
                f"text {index} has no token left beside its prompt of {begins} tokens "
                f"(max_length {max_length}): shorten the instruction or raise max_length"
            )
        return sequence(ids, pool=pooled)

    def prompt_length(self, role: Role, instruction: str | None = None) -> int:
        """Tokens of a text to embed that are not its own: beginning, prompt and end."""
        return len(self.bos_ids) + self.prefix_length(role, instruction) + len(self._tail)

    def prefix_length(self, role: Role, instruction: str | None = None) -> int:
        """Tokens of the prompt alone."""
        return self._length(self.format.embed_prefix(role, instruction))

    @property
    def _tail(self) -> list[int]:
        """What ends a text to embed."""
        return self._eos_added or ([self.eos_id] if self.format.append_eos and self.eos_id is not None else [])

    def _length(self, text: str) -> int:
        return len(self._text.encode(text, add_special_tokens=False).ids)

    # -- chats ---------------------------------------------------------------------------------------------------

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant is to speak.

        Raises:
            InputError: for malformed messages, or a checkpoint that has neither a chat format nor a chat template.
        """
        if self.format.user is None:
            return self._templated(messages)
        turns = grit_turns(messages)
        if turns[-1][1] is not None:
            raise InputError("the last message is the assistant's: a chat ends with a user message to answer")
        return list(self._turns(turns).ids)

    def chat_example(self, messages: Sequence[Message]) -> TokenSeq:
        """A whole conversation to train on; targets are the assistant's tokens and the end of its turns, in every turn.

        Raises:
            InputError: for malformed messages, a last user message without an answer, or a format without turns.
        """
        if self.format.user is None:
            raise InputError(
                f"training on chats needs a prompt format with turns, not {self.format.name!r} (use 'grit')"
            )
        turns = grit_turns(messages)
        if turns[-1][1] is None:
            raise InputError("the last message is the user's: there is no answer to train on")
        return self._turns(turns)

    def answer_example(self, question: str, answer: str, max_length: int) -> TokenSeq:
        """A question about documents that stand before it, and its answer; no beginning of its own.

        Targets are the answer's tokens and the end of text, which a cut answer keeps. The question stands exactly as
        :meth:`question_prompt` puts it.

        Raises:
            InputError: when ``max_length`` leaves nothing of the answer, or the tokenizer has no end of text.
        """
        if self.format.user is None and getattr(self.hf, "chat_template", None):
            raise InputError(
                f"training answers needs a prompt format with turns, not {self.format.name!r} (use 'grit')"
            )
        if self.eos_id is None:
            raise InputError("the tokenizer has no end-of-text token to end an answer with")
        opening = self.format.ask.replace("{question}", check_text(question, "question"))
        encoded = self._text.encode(opening + check_text(answer, "answer"), add_special_tokens=False)
        start = leading(encoded.offsets, opening)
        ids = [*encoded.ids, self.eos_id]
        if len(ids) > max_length:
            ids = [*ids[: max_length - 1], self.eos_id]
        if len(ids) - 1 <= start or start == 0:
            raise InputError(f"nothing of the answer is within {max_length} tokens: the question alone has {start}")
        loss = np.arange(len(ids)) >= start
        return sequence(ids, loss=loss)

    def text_example(self, text: str) -> TokenSeq:
        """Raw text to train on, with an end-of-text token; everything but the beginning is a target."""
        ids = [*self.bos_ids, *self.encode(text), *([] if self.eos_id is None else [self.eos_id])]
        loss = np.ones(len(ids), dtype=bool)
        loss[: max(1, len(self.bos_ids))] = False
        return sequence(ids, loss=loss)

    def _turns(self, turns: Sequence[tuple[str, str | None]]) -> TokenSeq:
        """(user, answer) turns; an answer is encoded with the turn before it, as one string, and split by offsets."""
        assert self.format.user is not None
        ids, loss = list(self.bos_ids), [False] * len(self.bos_ids)
        for number, (user, answer) in enumerate(turns):
            opening = self.format.user.replace("{content}", check_text(user, f"turn {number}"))
            if number:
                opening = self.format.turn_separator + opening
            text = opening + check_text(answer or "", f"turn {number}")
            encoded = (self._inner if ids else self._text).encode(text, add_special_tokens=False)
            ids += encoded.ids
            own = len(encoded.ids) - leading(encoded.offsets, opening)
            loss += [False] * (len(encoded.ids) - own) + [True] * own
            if answer is not None:
                if self.eos_id is None:
                    raise InputError("the tokenizer has no end-of-text token to end a turn with")
                ids.append(self.eos_id)
                loss.append(True)
        return sequence(ids, loss=loss)

    def _templated(self, messages: Sequence[Message]) -> list[int]:
        check_messages(messages)
        if not getattr(self.hf, "chat_template", None):
            raise InputError(
                "this checkpoint has no chat template: use complete() with a raw prompt, "
                "or load it with prompt_format='grit'"
            )
        contents = [check_text(message["content"], f"message {index}") for index, message in enumerate(messages)]
        # A mark inside every special token that a message spells: the template's own ones alone are then parsed.
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if not any(chr(code) in text for text in contents))
        shielded = [
            {**message, "content": self._special.sub(lambda found: mark.join(found[0]), message["content"])}
            for message in messages
        ]
        try:
            rendered = str(self.hf.apply_chat_template(shielded, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template raises whatever its author chose
            raise InputError(f"the checkpoint's chat template refuses these messages: {error}") from None
        if mark not in rendered:
            return list(self.hf.encode(rendered, add_special_tokens=False))
        ids: list[int] = []
        at = 0
        for found in [*self._special.finditer(rendered), None]:
            between = rendered[at : found.start() if found else None].replace(mark, "")
            if between:
                ids += (self._inner if ids else self._text).encode(between, add_special_tokens=False).ids
            if found:
                ids += [i for i in [self._text.token_to_id(found[0].strip())] if i is not None]
                at = found.end()
        return ids

    def to_score(self, query: str, documents: Sequence[str], max_length: int, *, truncate: bool) -> list[TokenSeq]:
        """Each document, then the query, under the format's ``score`` template; the query's tokens are the targets.

        ``truncate`` cuts documents that do not fit. Raises InputError otherwise, and for an empty query or document.
        """
        if not check_text(query, "query").strip():
            raise InputError("the query is empty: there is nothing to score")
        if self.is_longer(query, max_length):
            raise InputError(f"the query is more than {max_length} tokens long, which the context has: shorten it")
        if isinstance(documents, (str, bytes)):
            raise InputError("documents must be a list of texts, not one text")
        head, tail = self.format.score.split("{document}")
        result = []
        for index, document in enumerate(documents):
            if not check_text(document, f"document {index}").strip():
                raise InputError(f"document {index} is empty: drop it or give it words")
            needed = beginning(self._text, document, max_length)
            example = self._to_score(f"{head}{needed}{tail}", query)
            if len(example) > max_length and truncate:
                spare = len(example) - max_length
                cut = self._text.encode(needed, add_special_tokens=False).offsets
                end = cut[max(0, len(cut) - spare - 8)][0]  # a few more: tokens may split anew at the cut
                example = self._to_score(f"{head}{needed[:end]}{tail}", query)
            if len(example) > max_length and truncate:
                raise TooLongError(
                    f"the query and its prompt are {len(example)} tokens long without a document and the context is "
                    f"{max_length}: shorten the query"
                )
            if len(example) > max_length:
                size = f"{len(example)}" if len(needed) == len(document) else f"more than {max_length}"
                raise TooLongError(
                    f"document {index} and the query are {size} tokens long and the context is {max_length}: "
                    "shorten the document or pass truncate=True"
                )
            result.append(example)
        return result

    def _to_score(self, opening: str, query: str) -> TokenSeq:
        encoded = self._text.encode(opening + query, add_special_tokens=False)
        loss = np.ones(len(self.bos_ids) + len(encoded.ids), dtype=bool)
        loss[: len(self.bos_ids) + leading(encoded.offsets, opening)] = False
        return sequence([*self.bos_ids, *encoded.ids], loss=loss)

    # -- prompts -------------------------------------------------------------------------------------------------

    def raw_prompt(self, text: str) -> list[int]:
        """Ids of a prompt to continue: the tokenizer's beginning and the text as it is."""
        return [*self.bos_ids, *self.encode(text)]

    def question_prompt(self, question: str, earlier: Sequence[Message] = ()) -> list[int]:
        """Ids of a question that follows documents already read: no beginning of its own.

        ``earlier`` is the conversation that led to it: a system message, turns. A checkpoint with a chat template gets
        all of it by that template.

        Raises:
            InputError: for messages that do not lead to a question, or a checkpoint that has no form for them.
        """
        check_text(question, "question")
        messages = [*earlier, {"role": "user", "content": question}]
        if self.format.user is None and getattr(self.hf, "chat_template", None):
            ids = self._templated(messages)
            return ids[len(self.bos_ids) :] if ids[: len(self.bos_ids)] == self.bos_ids else ids
        before: list[int] = []
        if earlier:
            if self.format.user is None:
                raise InputError("this checkpoint has no chat format: ask without a conversation before the question")
            *turns, (question, _) = grit_turns(messages)
            if turns:
                before = self.encode(self.format.turn_separator) + self._turns(turns).ids[len(self.bos_ids) :].tolist()
        return before + self.encode(self.format.ask.replace("{question}", question))


def check_text(text: object, what: str) -> str:
    """The text itself. Raises InputError when it is not a str or holds a lone surrogate."""
    if not isinstance(text, str):
        raise InputError(f"{what} is {type(text).__name__}, not text: {text!r:.60}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{what} has a lone surrogate at character {error.start} (wrongly decoded bytes): "
                "decode its source with errors='replace'"
            ) from None
    return text
