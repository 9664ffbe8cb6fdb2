"""Every format string of the project: how texts to embed, chats and questions about documents are written down.

A :class:`PromptFormat` is a named preset. ``{bos}`` and ``{eos}`` never appear as literals: they are added as ids of
the tokenizer by ``gritkit.tokens``, so text that happens to spell a special token stays text.

This module knows nothing about tokenizers, ids or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gritkit.errors import InputError

Role = Literal["query", "passage"]
Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": str}``"""


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """Templates of one family of checkpoints."""

    name: str
    query: str = ""
    """What stands before a query that has no instruction."""
    query_instructed: str | None = None
    """The same with ``{instruction}``; None where the format has no place for one."""
    passage: str = ""
    passage_instructed: str | None = None
    append_eos: bool = False
    """Whether an embedded text ends with the end-of-text token (what last-token pooling reads)."""
    user: str | None = None
    """One user turn and the opening of the answer, with ``{content}``; None: the tokenizer's own chat template."""
    turn_separator: str = ""
    """Between the end of an answer and the next user turn."""
    ask: str = "\n\nQuestion: {question}\nAnswer:"
    """A question about documents that stand before it, for a checkpoint without a chat template."""
    ask_before: str = "\n\nPassage: {document}\nAnswer to the question before it:"
    """A document that is read after the key-values of a query."""
    ask_between: str = "\nAnswer to the question:"
    """What follows the key-values of a query and then of documents."""
    ask_after: str = "\nAnswer:"
    """What follows the key-values of documents and then of a query."""
    markers: tuple[str, ...] = ()
    """The format's own words; a tokenizer trained for it may make each a single token."""
    score: str = "Passage: {document}\nQuestion that the passage answers: "
    """What stands before a query whose likelihood is measured."""

    def embed_prefix(self, role: Role, instruction: str | None) -> str:
        """What stands before the text. Raises InputError for an unknown role or an instruction without a place."""
        if role not in ("query", "passage"):
            raise InputError(f"role={role!r} is neither 'query' nor 'passage'")
        plain, instructed = (
            (self.query, self.query_instructed) if role == "query" else (self.passage, self.passage_instructed)
        )
        if not instruction:
            return plain
        if instructed is None:
            raise InputError(f"the prompt format {self.name!r} has no place for an instruction in a {role}")
        return instructed.replace("{instruction}", instruction)


# Muennighoff et al. 2024, arXiv 2402.09906, appendix; the sentences about documents and queries are those of its
# caching modes (their templates: the authors' code, rag/).
GRIT = PromptFormat(
    name="grit",
    query="<|embed|>\n",
    query_instructed="<|user|>\n{instruction}\n<|embed|>\n",
    passage="<|embed|>\n",
    passage_instructed="<|user|>\n{instruction}\n<|embed|>\n",
    user="<|user|>\n{content}\n<|assistant|>\n",
    markers=("<|user|>", "<|embed|>", "<|assistant|>"),
    turn_separator="\n",
    score="<|user|>\n{document}\n\nWrite a question that the text above answers\n<|assistant|>\n",
    ask="\n<|user|>\n{question}\n\nAnswer the prior query while optionally using the context prior to it"
    "\n<|assistant|>\n",
    ask_before="\n<|user|>\n{document}\n\nOptionally using the prior context answer the query prior to it"
    "\n<|assistant|>\n",
    ask_between="\n<|user|>\nOptionally using the prior context answer the query prior to it\n<|assistant|>\n",
    ask_after="\n<|user|>\nAnswer the prior query while optionally using the context prior to it\n<|assistant|>\n",
)

PLAIN = PromptFormat(name="plain", query_instructed="{instruction}\n", passage_instructed="{instruction}\n")

# Wang et al. 2022, arXiv 2212.03533, section 4.
E5 = PromptFormat(name="e5", query="query: ", passage="passage: ")

# Wang et al. 2023, arXiv 2401.00368, eq. 1; also the form of SFR, gte-Qwen and Qwen3 embedding checkpoints.
INSTRUCT_QUERY = PromptFormat(
    name="instruct-query", query_instructed="Instruct: {instruction}\nQuery: ", append_eos=True
)


@dataclass(frozen=True)
class EmbeddingTask:
    """What vectors are often wanted for."""

    instruction: str
    two_sided: bool = False
    """Whether queries alone get the instruction, and passages none; otherwise all texts get it, as queries."""


TASKS = {
    "retrieval": EmbeddingTask("Given a question, retrieve passages that answer it", two_sided=True),
    "similarity": EmbeddingTask("Retrieve semantically similar text"),
    "classification": EmbeddingTask("Identify the category of the text"),
    "clustering": EmbeddingTask("Identify the topic of the text"),
}
"""Instructions by name, for callers that have none of their own."""

FORMATS = {preset.name: preset for preset in (GRIT, PLAIN, E5, INSTRUCT_QUERY)}


def prompt_format(name: str) -> PromptFormat:
    """The preset of that name. Raises InputError with the known names."""
    if name not in FORMATS:
        raise InputError(f"prompt_format={name!r} is unknown; choose one of {', '.join(sorted(FORMATS))}")
    return FORMATS[name]


def grit_turns(messages: Sequence[Message]) -> list[tuple[str, str | None]]:
    """Messages -> (user, assistant) turns; the last assistant may be missing. A system message joins the first user's.

    Raises:
        InputError: when the roles do not alternate, or a message is not of the form of :data:`Message`.
    """
    check_messages(messages)
    system = ""
    turns: list[tuple[str, str | None]] = []
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "system" and index == 0:
            system = content + "\n\n"
        elif role == "user" and (not turns or turns[-1][1] is not None):
            turns.append((system + content, None))
            system = ""
        elif role == "assistant" and turns and turns[-1][1] is None:
            turns[-1] = (turns[-1][0], content.strip())
        else:
            raise InputError(f"message {index} has role {role!r} out of turn: user and assistant alternate, user first")
    if not turns:
        raise InputError("a chat needs at least one user message")
    return turns


def check_messages(messages: Sequence[Message]) -> None:
    """Raises InputError for anything but a non-empty list of ``{"role": str, "content": str}``."""
    if isinstance(messages, (str, bytes)) or not messages:
        raise InputError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise InputError(f"message {index} lacks 'role' or 'content': {message!r:.80}")
        if message["role"] not in ("system", "user", "assistant") or not isinstance(message["content"], str):
            raise InputError(
                f"message {index} needs a role of system, user or assistant and text content: {message!r:.80}"
            )


def chat_template(preset: PromptFormat, *, with_bos: bool) -> str | None:
    """The preset's chat format as a Jinja template for the tokenizer, so that other libraries format alike."""
    if preset.user is None:
        return None
    before, after = (part.replace("\n", "\\n") for part in preset.user.split("{content}"))
    separator = preset.turn_separator.replace("\n", "\\n")
    head, opening = after.split("\\n", 1)
    bos = "{{ bos_token }}" if with_bos else ""
    return (
        f"{bos}{{% set ns = namespace(system='') %}}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}"
        "{% elif message['role'] == 'user' %}"
        f"{{{{ '{before}' + ns.system + message['content'] + '{head}' }}}}{{% set ns.system = '' %}}"
        f"{{% if not loop.last %}}{{{{ '\\n{opening}' }}}}{{% endif %}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ message['content'].strip() + eos_token }}}}{{% if not loop.last %}}{{{{ '{separator}' }}}}{{% endif %}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '\\n{opening}' }}}}{{% endif %}}"
    )
