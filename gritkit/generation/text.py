"""Token ids -> text that may be shown: never half a character, never a part of a stop string.

A tokenizer without state between calls decodes a window of the last ids before and after each new one; what the longer
text adds is new. Text that ends in an unfinished character, or that may begin a stop string, is held back.

This module knows nothing about models or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 8  # tokens; after that many an unfinished character is taken for broken bytes and shown as such
_CONTEXT = 6  # prompt tokens in the first window: they decide whether the first word begins with a space


class TextStream:
    """The growing text of one row."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids = list(prompt_ids[-_CONTEXT:])
        # Half a character at the start of the window would break the bytes of every character right after it.
        while len(self._ids) > 1 and self._decode(self._ids).startswith(_UNFINISHED):
            del self._ids[0]
        self._window, self._shown_ids = 0, len(self._ids)
        self._given: int | None = None
        self._held = ""
        self.stopped = False
        """Whether a stop string was met; nothing comes after it."""

    def push(self, token_id: int) -> str:
        """The text that this token makes showable, often nothing or more than its own."""
        self._ids.append(token_id)
        return self._release(self._decoded(last=False), last=False)

    def end(self) -> str:
        """What was held back, once it is known that nothing follows."""
        return "" if self.stopped else self._release(self._decoded(last=True), last=True)

    def _decoded(self, *, last: bool) -> str:
        before = self._given
        if before is None:
            before = len(self._decode(self._ids[self._window : self._shown_ids]))
        after = self._decode(self._ids[self._window :])
        if after.endswith(_UNFINISHED) and not last:
            if len(self._ids) - self._shown_ids < _LONGEST_CHARACTER:
                return ""
            self._given = max(before, len(after) - 1)  # the last one may yet become a character
            return after[before : self._given]
        if len(after) <= before and not last:
            return ""
        self._window, self._shown_ids, self._given = self._shown_ids, len(self._ids), None
        return after[before:]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _release(self, new: str, *, last: bool) -> str:
        text = self._held + new
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
