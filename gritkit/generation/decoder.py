"""Continuous batching: rows join and leave at any step, and each step is one packed forward over all of them.

A row is a request in a slot of the key-value store. A step feeds every decoding row its last token and, within a
budget, joining rows the next chunk of their prompts; rows whose prompt is through get their next token. A row may start
from documents that were read before: their keys are rotated to their places in the slot, and only the prompt is run -
with ``link_tokens``, after the first tokens of every document but the first, which are computed again where they stand.

A row that cannot go on (its logits are no numbers, its constraint or sampler raises) ends alone, with the error as its
event; what a forward pass raises is the step's, since all rows have a part in it.

This module knows nothing about chats, retrieval or threads; one caller drives the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from gritkit.backbone import Backbone
from gritkit.errors import GenerationError, GritkitError, InputError, UnsupportedModelError
from gritkit.generation.captured import captured_steps
from gritkit.generation.logprobs import Logprobs
from gritkit.generation.params import (
    Completion,
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    SamplingParams,
    StepEvent,
    TokenLogprob,
    Usage,
)
from gritkit.generation.prefixes import Choice, FreeSlots, Held
from gritkit.generation.sampling import Constraint, Sampler
from gritkit.generation.text import TextStream
from gritkit.kv.dockv import Join, ReadDocument, joined_ids, left_out
from gritkit.kv.slots import SlotStore
from gritkit.plan import Plan, Segment
from gritkit.rope import Rope

PREFILL_CHUNK = 512
"""Prompt tokens of one step beside decoding rows; bounds how long they wait for a joining one."""
_ALONE = 4
"""So many times as many where no row decodes, and nobody waits for a token."""
Piece = tuple[int, list[int]]
"""Place in the slot, tokens."""


@dataclass(frozen=True)
class Request:
    """A prompt to continue, after documents that need not be read again."""

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    documents: Sequence[ReadDocument] = ()
    join: Join = "no-bos"
    """What all documents but the first leave out."""
    link_tokens: int = 0
    """How many tokens of every document but the first are computed again, seeing all that stands before them (LegoLink,
    Hu et al. 2024, arXiv 2410.15332)."""
    num_computed: int = 0
    """How many of the documents' tokens were computed for this answer after all; for its usage alone."""
    top_logprobs: int | None = None
    """Log-probabilities of every token, and of so many likeliest ones in its place; None: none at all."""
    constraint: Constraint | None = None
    """What the text must be, such as JSON of a schema; of this request alone, as it remembers what came."""
    salt: str = ""
    """Requests of one salt share the key-values of what their prompts begin with."""

    @property
    def places(self) -> list[tuple[int, int]]:
        """(start, end) of every document in the slot."""
        places, at = [], 0
        for index, document in enumerate(self.documents):
            length = len(document.ids) - (left_out(document, self.join) if index else 0)
            places.append((at, at + length))
            at += length
        return places

    @property
    def num_laid(self) -> int:
        """Tokens that the documents take in the slot."""
        return self.places[-1][1] if self.documents else 0

    @property
    def num_cached(self) -> int:
        """Tokens that are not computed for this answer."""
        return (
            self.num_laid
            - self.num_computed
            - sum(min(self.link_tokens, end - start) for start, end in self.places[1:])
        )


@dataclass
class _Row:
    slot: int
    request: Request
    limit: int
    sampler: Sampler
    text: TextStream
    todo: list[Piece]
    """What is still to be computed, in order; then comes the next token."""
    num_shared: int = 0
    """Tokens of the prompt whose key-values were there already."""
    shown: list[str] = field(default_factory=list)
    produced: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_logprobs_given: int = 0

    @property
    def held(self) -> Held | None:
        """What its slot holds; None while its prompt is being computed, and where other documents stand before it."""
        if self.request.documents or not self.produced:
            return None
        return Held(np.array([*self.request.prompt_ids, *self.produced[:-1]]), self.request.salt)

    def new_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those that no event has carried yet."""
        new = tuple(self.logprobs[self.num_logprobs_given :])
        self.num_logprobs_given = len(self.logprobs)
        return new

    @property
    def num_todo(self) -> int:
        return sum(len(tokens) for _, tokens in self.todo)

    def split(self, count: int) -> tuple[list[Piece], list[Piece]]:
        """The next ``count`` tokens to compute, in as few pieces as there are gaps between them; and what is left."""
        taken, left = [], list(self.todo)
        while count and left:
            place, tokens = left.pop(0)
            if len(tokens) > count:
                left.insert(0, (place + count, tokens[count:]))
                tokens = tokens[:count]
            taken.append((place, tokens))
            count -= len(tokens)
        return taken, left


class Decoder:
    """The rows being generated on one model."""

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer,
        eos_ids: frozenset[int],
        *,
        num_slots: int,
        max_length: int,
        rope: Rope | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        share_prefixes: bool = False,
    ) -> None:
        self._logprobs = Logprobs(tokenizer)
        self._free = FreeSlots() if share_prefixes else None
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._rope = rope
        self._prefill_chunk = prefill_chunk
        self._windowed = any(window is not None for window in backbone.windows)
        self._store = SlotStore(num_slots, min(max_length, backbone.context_length))
        self._captured = captured_steps(backbone, self._store)
        self._rows: dict[int, _Row] = {}
        self._next = 0

    @property
    def num_free(self) -> int:
        """Slots that a request can join now."""
        return self._store.num_free

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._rows)

    def num_produced(self, row: int) -> int:
        """Tokens that a row has so far: 0 while its prompt is still being computed, and once it has finished."""
        return len(self._rows[row].produced) if row in self._rows else 0

    def room(self, request: Request) -> int:
        """Tokens that an answer can have. Raises InputError for an empty prompt or one that does not fit."""
        taken = request.num_laid + len(request.prompt_ids)
        if not request.prompt_ids:
            raise InputError("the prompt is empty: there is nothing to continue")
        if taken >= self._store.max_length:
            raise InputError(
                f"the prompt has {taken} tokens and the context holds {self._store.max_length} with the answer: "
                "shorten it or give fewer documents"
            )
        return self._store.max_length - taken

    def join(self, request: Request, sampler: Sampler | None = None) -> int:
        """Take a slot and lay the documents into it; returns the row's number, which its events carry.

        ``sampler`` chooses the tokens in the place of one by the request's parameters.

        Raises:
            InputError: for an empty prompt, one that does not fit the context, or when no slot is free.
            UnsupportedModelError: for documents on a model whose positions cannot be moved.
        """
        room = self.room(request)
        choice = self._take_slot(request)
        try:
            row = self._row(request, choice, room, sampler)
            if choice.source is not None:
                self._store.copy(choice.source, choice.slot, choice.length)
            self._lay(choice.slot, request)
        except BaseException:
            self._store.release(choice.slot)
            raise
        number, self._next = self._next, self._next + 1
        self._rows[number] = row
        return number

    def _row(self, request: Request, choice: Choice, room: int, sampler: Sampler | None) -> _Row:
        laid = joined_ids(request.documents, request.join)
        prompt_ids = list(request.prompt_ids)
        later = request.places[1:] if request.link_tokens else []
        links = [(start, laid[start : min(start + request.link_tokens, end)]) for start, end in later]
        return _Row(
            slot=choice.slot,
            request=request,
            limit=min(request.params.max_new_tokens, room),
            sampler=sampler or Sampler(request.params, laid + prompt_ids, request.constraint),
            text=TextStream(self._tokenizer, prompt_ids, request.params.stop),
            todo=[*links, (len(laid) + choice.length, prompt_ids[choice.length :])],
            num_shared=choice.length,
        )

    def _take_slot(self, request: Request) -> Choice:
        """Raises InputError when none is free."""
        if self._free is None or not self._store.num_free:
            return Choice(self._store.take())
        running = {row.slot: held for row in self._rows.values() if (held := row.held) is not None}
        prompt_ids = [] if request.documents else request.prompt_ids  # behind documents it has other positions
        choice = self._free.choose(self._store.free, running, prompt_ids, request.salt)
        self._store.take(choice.slot)
        return choice

    def leave(self, row: int) -> Completion:
        """End a row now, whatever it has produced, and free its slot. Raises InputError when it has ended already."""
        if row not in self._rows:
            raise InputError(f"row {row} is not running")
        return self._finish(row, "cancelled")

    @torch.inference_mode()
    def step(self) -> list[StepEvent]:
        """One forward over all rows. Returns the events of the rows that got a token or failed, in row order.

        What the forward raises leaves the rows as they were: the step can be repeated.
        """
        chosen = self._choose()
        if not chosen:
            return []
        ids: list[int] = []
        positions: list[int] = []
        segments, wanted = [], []
        left: dict[int, list[Piece]] = {}
        for number, count in chosen:
            row = self._rows[number]
            pieces, left[number] = row.split(count)
            for place, new in pieces:
                segments.append(Segment(len(ids), len(ids) + len(new), True, slot=row.slot, past=place))
                positions += range(place, place + len(new))
                ids += new
            if not left[number]:
                wanted.append((number, len(ids) - 1))
        found = _on_host(self._logits(ids, positions, segments, [place for _, place in wanted] or [len(ids) - 1]))
        for number, todo in left.items():  # now that it has been computed
            self._rows[number].todo = todo
        events: list[StepEvent] = []
        for (number, _), logits_V, usable in zip(wanted, *found, strict=False):
            events += self._go_on(number, logits_V) if usable else [self._poisoned(number)]
        return events

    def _logits(self, ids: list[int], positions: list[int], segments: list[Segment], keep: list[int]) -> Tensor:
        """Next-token logits [K, V] at the places ``keep`` of the packed row."""
        run = self._backbone.run
        if self._captured is None or run is None:
            return self._forward(ids, positions, segments, keep)
        # as a whole: a graph records what its own thread launches, and nothing of what it hands to another
        logits_KV: Tensor = run(lambda: self._forward(ids, positions, segments, keep))
        return logits_KV

    def _forward(self, ids: list[int], positions: list[int], segments: list[Segment], keep: list[int]) -> Tensor:
        """As :meth:`_logits`, in the thread that runs passes."""
        logits_KV = None
        if self._captured is not None and all(segment.length == 1 for segment in segments) and len(keep) == len(ids):
            rows = [(segment.slot or 0, token, segment.past) for segment, token in zip(segments, ids, strict=True)]
            logits_KV = self._captured.logits(rows)
        if logits_KV is None:
            device = self._backbone.device
            logits_KV = self._backbone.logits(
                torch.tensor(ids, device=device),
                torch.tensor(positions, device=device),
                Plan(tuple(segments), store=self._store),
                torch.tensor(keep, device=device),
            )
        return logits_KV

    def _go_on(self, number: int, logits_V: Tensor) -> Sequence[StepEvent]:
        """A row's next token. What goes wrong in it is of the row's own making: a sampler, a constraint, a text."""
        row = self._rows[number]
        try:
            token = row.sampler.pick(logits_V)
            if row.request.top_logprobs is not None and token not in self._eos_ids:
                row.logprobs.append(self._logprobs.of(logits_V, token, row.request.top_logprobs))
            return self._advance(number, token)
        except GritkitError as error:
            return [self._fail(number, error)]
        except Exception as error:
            failure = GenerationError(f"the answer cannot be continued: {type(error).__name__}")
            failure.__cause__ = error
            return [self._fail(number, failure)]

    def _poisoned(self, number: int) -> Failed:
        """The end of a row whose logits are no numbers; its key-values are none either."""
        count = len(self._rows[number].produced)
        error = GenerationError(f"the model's logits after {count} tokens of the answer are not finite")
        return self._fail(number, error)

    def run(self) -> Iterator[StepEvent]:
        """Steps until every row has finished."""
        while self.busy:
            yield from self.step()

    def _choose(self) -> list[tuple[int, int]]:
        """(row, tokens to feed): one of every decoding row, then prompts within the budget, oldest first."""
        decoding = [(number, 1) for number, row in self._rows.items() if row.produced]
        budget = self._prefill_chunk * (1 if decoding else _ALONE)
        joining = []
        for number, row in self._rows.items():
            if not row.produced and budget > 0:
                count = min(row.num_todo, budget)
                budget -= count
                joining.append((number, count))
        return decoding + joining

    def _advance(self, number: int, token: int) -> list[Event]:
        row = self._rows[number]
        place = row.request.num_laid + len(row.request.prompt_ids) + len(row.produced)
        row.produced.append(token)
        row.todo = [(place, [token])]
        if token in self._eos_ids:
            return self._close(number, "stop")
        events = self._shown(number, row.text.push(token))
        if row.text.stopped:
            return [*events, Finished(number, self._finish(number, "stop"))]
        if len(row.produced) >= row.limit:
            return events + self._close(number, "length")
        return events

    def _close(self, number: int, reason: FinishReason) -> list[Event]:
        """The end of a row, with the text that was held back until now."""
        row = self._rows[number]
        events = self._shown(number, row.text.end())
        return [*events, Finished(number, self._finish(number, "stop" if row.text.stopped else reason))]

    def _shown(self, number: int, text: str) -> list[Event]:
        """The event of new text, or of new log-probabilities whose text is still held back."""
        row = self._rows[number]
        logprobs = row.new_logprobs()
        if text:
            row.shown.append(text)
        return [Delta(number, text, logprobs)] if text or logprobs else []

    def _fail(self, number: int, error: GritkitError) -> Failed:
        self._remove(number, keep=False)
        return Failed(number, error)

    def _remove(self, number: int, *, keep: bool) -> _Row:
        """Free a row's slot; ``keep``: prompts that begin as it does may start from what it holds.

        What nobody may start from is wiped: its logits have not shown yet that it is numbers, or that it is not. Where
        layers have windows they never show it of what is far behind.
        """
        row = self._rows.pop(number)
        length = row.request.num_laid + len(row.request.prompt_ids) + len(row.produced)
        keep = keep and bool(row.produced) and (not self._windowed or self._store.finite(row.slot, length))
        if not keep:
            self._store.wipe(row.slot, length)
        self._store.release(row.slot)
        if self._free is not None:
            self._free.left(row.slot, row.held if keep else None)
        return row

    def _finish(self, number: int, reason: FinishReason) -> Completion:
        row = self._remove(number, keep=True)
        request, cached = row.request, row.request.num_cached + row.num_shared
        usage = Usage(request.num_laid + len(request.prompt_ids), cached, len(row.produced))
        return Completion("".join(row.shown), tuple(row.produced), reason, usage, tuple(row.logprobs))

    def _lay(self, slot: int, request: Request) -> None:
        """Rotate the documents' keys to their places, one after the other from 0, and write them to the slot."""
        if not request.documents:
            return
        if self._rope is None:
            raise UnsupportedModelError(
                "this model cannot move documents after they were read: answer with reuse='off'"
            )
        device = self._backbone.device
        for document, (start, end) in zip(request.documents, request.places, strict=True):
            tables = self._rope.tables(torch.arange(start, end, device=device))
            for layer in range(document.num_layers):
                keys, values = document.layer(layer, device)
                first = max(0, keys.shape[1] - (end - start))
                keys, values = keys[:, first:], values[:, first:]
                rotated = self._rope.rotate(keys[None], tables, layer)[0]
                self._store.write(layer, slot, end - keys.shape[1], rotated, values)


def _on_host(logits_KV: Tensor) -> tuple[Tensor, list[bool]]:
    """Float32 logits, and of which rows they can be used: a NaN is larger than all, -inf is a token that cannot be."""
    logits_KV = logits_KV.float()
    usable_K: list[bool] = logits_KV.amax(-1).isfinite().tolist()
    return logits_KV.cpu(), usable_K
