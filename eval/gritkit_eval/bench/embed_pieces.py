"""Where the time of embedding goes: pieces of the passes, which add up, beside plain products of the model's shapes.

The passes are the library's own, watched from outside: by hooks on the modules of ``bench embed``'s Mistral, and by the
plan's key hook, which is called where attention begins. Time belongs to one piece at a time: nothing is counted twice
or lost. Each packed row is embedded as users do it, then watched, then come its plain products: a slow spell of the
machine falls on all three.

This module knows nothing about processes or tables.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gritkit import GritModel
from gritkit.backbone import Backbone
from gritkit.batch import pack, rows_of, token_budget
from gritkit.embedding import batch_plan, pool_texts
from gritkit.errors import GritkitError
from gritkit.pooling import unit
from gritkit.tokens import TokenSeq

MOST_TEXTS = 4096
"""``GritModel.embed`` tokenises and packs so many at a time; up to here its rows are those that are watched."""
_MOST_ROWS = 16
"""So many rows are recorded operation by operation, which takes memory."""
_SAME = 1e-3
"""Components of unit vectors that differ by less came from the same passes, whatever the rounding."""

TOKENISING = "tokenising"
LINEAR = "linear layers"
ATTENTION = "attention"
ROTARY = "rotary positions"
POOLING = "packing and pooling"
BETWEEN = "between the modules"
_OF_CLASS = {
    "Embedding": "looking up tokens",
    "Linear": LINEAR,
    "RMSNorm": "norms",
    "RotaryEmbedding": ROTARY,
    "Attention": ROTARY,  # up to the key hook
    "MLP": "activation and gate",
    "DecoderLayer": "residual sums",
}
"""End of a module's class -> the piece that its time belongs to, what is inside its own parts left out."""
PIECES = (TOKENISING, POOLING, *dict.fromkeys(_OF_CLASS.values()), ATTENTION, BETWEEN)


@dataclass(frozen=True)
class Products:
    """Plain products [T, inner] x [inner, outer] of all linear layers of one shape, for all rows of T tokens."""

    inner: int
    outer: int
    count: int
    """Layers of this shape."""
    seconds: float


@dataclass(frozen=True)
class Round:
    """One embedding of all texts, row by row, one that was watched, and the plain products."""

    embed: float
    """Seconds of tokenising and of ``GritModel.embed_tokens``, not watched."""
    pieces: dict[str, float]
    products: tuple[Products, ...]

    @property
    def plain(self) -> float:
        """Seconds of all plain products."""
        return sum(one.seconds for one in self.products)

    @property
    def watched(self) -> float:
        """Seconds of all pieces."""
        return sum(self.pieces.values())


class Watch:
    """A stopwatch with one hand: time belongs to the innermost piece that is open."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, piece: str) -> None:
        self._account()
        self._open.append(piece)

    def leave(self) -> None:
        self._account()
        self._open.pop()

    def turn(self, piece: str) -> None:
        """The open piece ends, and another begins in its place."""
        self._account()
        self._open[-1] = piece

    def _account(self) -> None:
        now = seconds_on(self._device)
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def seconds_on(device: torch.device) -> float:
    """The time, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class WatchedModel:
    """A model of ``bench embed`` and the texts that it embeds.

    Raises:
        GritkitError: where the model's modules are not those that the pieces are named by.
    """

    def __init__(self, model: GritModel, texts: Sequence[str]) -> None:
        self.model = model
        self.texts = list(texts)[:MOST_TEXTS]
        self.decoder: nn.Module = Backbone(model.lm).base.get_decoder()
        missing = set(_OF_CLASS.values()) - {_piece_of(module) for module in self.decoder.modules()}
        if missing:
            raise GritkitError(f"{type(self.decoder).__name__} has no module for {', '.join(sorted(missing))}")
        sequences = self._tokenised()
        rows = rows_of([len(sequence) for sequence in sequences], token_budget(model.device))
        self.rows = [[sequences[i] for i in row] for row in rows]
        self._plain = PlainProducts(self.decoder, self.row_tokens)

    def _tokenised(self) -> list[TokenSeq]:
        limit = min(self.model.embedding_config.max_length, self.model.context_length)
        return self.model.tokens.to_embed(self.texts, "passage", None, limit, truncate=False)

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence) for row in self.rows for sequence in row)

    @property
    def row_tokens(self) -> int:
        """Of the longest row."""
        return max(sum(map(len, row)) for row in self.rows)

    @property
    def linear_operations(self) -> int:
        """2 for each weight of a linear layer and token: a product and a sum."""
        return 2 * sum(weight.numel() for weight in self._plain.weights) * self.num_tokens

    @property
    def attention_operations(self) -> int:
        """4 L H a token and layer: product and sum with the text's L keys and L values, of H numbers in all heads."""
        config = self.model.config
        width = config.num_attention_heads * config.head_dim
        squares = sum(len(sequence) ** 2 for row in self.rows for sequence in row)
        return int(4 * squares * width * config.num_hidden_layers)

    def round(self) -> Round:
        """Everything once.

        Raises:
            GritkitError: where the watched passes do not give the vectors that ``embed_tokens`` gives.
        """
        device = self.model.device
        watch, products = Watch(device), dict.fromkeys(self._plain.shapes, 0.0)
        start = seconds_on(device)
        self._tokenised()
        embed = seconds_on(device) - start
        watch.enter(TOKENISING)
        self._tokenised()
        watch.leave()
        for row in self.rows:
            start = seconds_on(device)
            vectors = torch.from_numpy(self.model.embed_tokens(row))
            embed += seconds_on(device) - start
            with torch.inference_mode(), watched_modules(self.decoder, watch):
                watched = _pass(self.model, row, watch)
            if not torch.allclose(watched, vectors, rtol=0, atol=_SAME):
                raise GritkitError("the watched passes do not give the vectors of embed, so no figure counts")
            for shape, seconds in self._plain.seconds(sum(map(len, row))).items():
                products[shape] += seconds
        made = tuple(Products(*shape, count, products[shape]) for shape, count in self._plain.shapes.items())
        return Round(embed, {piece: watch.seconds[piece] for piece in PIECES}, made)

    def outside_operations(self) -> float:
        """The share of the passes' time in which no operation of torch runs on this thread, by torch.profiler.

        What the profiler itself does counts in it, so it is at most this. Over some of the rows, spread evenly.
        """
        from torch.profiler import ProfilerActivity, profile

        rows = self.rows[:: -(-len(self.rows) // _MOST_ROWS)]
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            start = time.perf_counter()
            for row in rows:
                self.model.embed_tokens(row)
            whole = time.perf_counter() - start
        outermost = [event for event in recorded.events() if event.cpu_parent is None]
        return 1 - float(sum(event.time_range.elapsed_us() for event in outermost)) / 1e6 / whole


def _piece_of(module: nn.Module) -> str | None:
    name = type(module).__name__
    return next((piece for end, piece in _OF_CLASS.items() if name.endswith(end)), None)


@contextlib.contextmanager
def watched_modules(decoder: nn.Module, watch: Watch) -> Iterator[None]:
    """While it is open, modules tell the watch when they begin and end."""

    def begin(piece: str) -> Any:
        return lambda *_: watch.enter(piece)

    handles = []
    for module in decoder.modules():
        piece = _piece_of(module)
        if piece is not None:
            handles.append(module.register_forward_pre_hook(begin(piece)))
            handles.append(module.register_forward_hook(lambda *_: watch.leave()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pass(model: GritModel, row: Sequence[TokenSeq], watch: Watch) -> Tensor:
    """Unit vectors of one packed row, as ``gritkit.embedding`` makes them."""

    def attention_begins(layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        watch.turn(ATTENTION)
        return query, key

    watch.enter(POOLING)
    batch = pack(row).to(model.device)
    watch.turn(BETWEEN)
    plan = batch_plan(batch, model.embedding_config, key_hook=attention_begins)
    hidden = Backbone(model.lm).hidden(batch.ids_T, batch.positions_T, plan)
    watch.turn(POOLING)
    vectors = unit(pool_texts(hidden, batch, model.embedding_config.pooling)).float().cpu()
    watch.leave()
    return vectors


class PlainProducts:
    """One matrix product with the weight of each linear layer, into memory that is there already, and no more."""

    def __init__(self, decoder: nn.Module, most_tokens: int) -> None:
        self.weights = [module.weight.detach() for module in decoder.modules() if isinstance(module, nn.Linear)]
        self.shapes = Counter((weight.shape[1], weight.shape[0]) for weight in self.weights)
        """(inner, outer) -> how many layers."""
        device, dtype = self.weights[0].device, self.weights[0].dtype
        inner, outer = ({shape[side] for shape in self.shapes} for side in (0, 1))
        self._inputs = {size: torch.randn(most_tokens, size, device=device).to(dtype) for size in inner}
        self._outputs = {size: torch.zeros(most_tokens, size, device=device, dtype=dtype) for size in outer}

    def seconds(self, num_tokens: int) -> dict[tuple[int, int], float]:
        """Of the products of a row of so many tokens, by shape."""
        taken = dict.fromkeys(self.shapes, 0.0)
        for weight in self.weights:
            outer, inner = weight.shape
            left, out = self._inputs[inner][:num_tokens], self._outputs[outer][:num_tokens]
            start = seconds_on(weight.device)
            torch.mm(left, weight.t(), out=out)
            taken[inner, outer] += seconds_on(weight.device) - start
        return taken
