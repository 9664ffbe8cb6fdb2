"""A JSON schema made into a grammar, by llguidance; and a process that tries that: ``python -m gritkit_serve.grammar``.

A schema of a few kilobytes can take its compiler minutes, gigabytes or, by nesting, the stack. What comes from a client
is therefore compiled here first, in a process that may be lost, with less of everything than the server has.

    stdin     the schema
    stdout    READY, when it begins; then a line of JSON: {"wrong": why it cannot be used}, or null where it can

This module knows nothing about requests or sampling, and imports no torch.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from gritkit.errors import InputError
from gritkit_serve.rlimits import limit

READY = b"ready\n"
LARGEST_SCHEMA = 64 << 10
"""Bytes of a schema."""
SECONDS = 2
"""Of CPU, for trying one; its process starts within the first of them."""
MEMORY_BYTES = 768 << 20
"""Of addresses, for trying one: some 500 MiB are left to the grammar."""
_STACK_BYTES = 2 << 20  # a quarter of what threads of the server have
_NO_BLANKS = {"whitespace_flexible": False}
"""Between the parts of the JSON: a model that may write blanks may write them until its tokens are used up."""

_MEANINGS = {"NoExtensionBias": "no text obeys it"}
"""Of what llguidance says in its own words."""


def schema_text(schema: dict[str, Any]) -> str:
    """As it is compiled. Raises InputError for one that is too large."""
    text = json.dumps(schema)
    if len(text) > LARGEST_SCHEMA:
        raise InputError(f"the JSON schema has {len(text)} bytes and may have {LARGEST_SCHEMA}")
    return text


def compiled(tokenizer: Any, text: str) -> Any:
    """An llguidance.LLMatcher at the beginning of a text, that knows what may come first.

    Raises:
        InputError: for what is no schema, or one that the grammar cannot express.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)  # or an error tells of the parser's state
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, defaults=_NO_BLANKS)  # type: ignore[arg-type]
    except ValueError as error:
        raise unusable(error) from None
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some limits of the grammar show only with its first token
    if matcher.is_error():
        raise unusable(matcher.get_error())
    return matcher


def unusable(reason: object) -> InputError:
    """The error of a schema, with the beginning of what llguidance says."""
    said = " ".join(str(reason).split()).removesuffix(" <non-verbose/>") or "no reason given"
    if said.startswith("panic"):
        said = "it is too large for a grammar"
    return InputError(f"the JSON schema cannot be used: {_MEANINGS.get(said, said)[:200]}")


def _try(text: str) -> None:
    from llguidance import LLTokenizer

    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    wrong = None
    try:
        compiled(LLTokenizer("byte"), text)  # the time and memory of a schema hardly depend on the vocabulary
    except InputError as error:
        wrong = {"wrong": str(error)}
    print(json.dumps(wrong), flush=True)


def main() -> None:
    """Try the schema that comes in."""
    limit("RLIMIT_AS", MEMORY_BYTES)
    limit("RLIMIT_CPU", SECONDS)
    limit("RLIMIT_FSIZE", 0)
    limit("RLIMIT_CORE", 0)
    threading.stack_size(_STACK_BYTES)
    trial = threading.Thread(target=_try, args=(sys.stdin.read(),))
    trial.start()
    trial.join()


if __name__ == "__main__":
    main()
