"""The reuse ladder: which way an answer comes by its documents, decided for each request.

    prefix   exactly this beginning of a prompt was read before: nothing changes, nothing is computed
    cached   each document was read on its own: another function than reading them together, which the gate judges
    linked   the same with the first tokens of every document but the first computed again in context
    off      read everything

``auto`` takes the first that is there, that no verdict of the gate forbids for this model, and that is not slower to
load than to compute by this machine's measured rates. What is asked for by name is taken, whatever the gate says.

This module knows nothing about models, caches or how anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from gritkit.errors import InputError
from gritkit.kv.dockv import Join
from gritkit.rag.documents import Reuse
from gritkit.rag.verdicts import Verdict

LINK_TOKENS = 16
"""Where no gate chose (LegoLink saw no gain beyond 32; Hu et al. 2024, arXiv 2410.15332, section 4)."""


@dataclass(frozen=True)
class Way:
    """The decision."""

    reuse: Reuse
    reason: str
    join: Join = "no-bos"
    link_tokens: int = 0


@dataclass(frozen=True)
class Facts:
    """What it is decided by."""

    movable: bool
    """Whether the model's documents can be laid anywhere."""
    exact_alone: bool
    """Whether the one document is, as it is kept, exactly the beginning of its prompt (causal embeddings)."""
    has_prefix: bool
    load_s: float | None
    """Seconds to load the documents' key-values; None where nothing was measured."""
    prefill_s: float | None
    """Seconds to read them in the prompt."""


def check_reuse(asked: str) -> None:
    """Raises InputError for a way that there is not."""
    known = ("auto", *get_args(Reuse))
    if asked not in known:
        raise InputError(f"reuse={asked!r} is not one of {', '.join(map(repr, known))}")


def join_of(asked: Join | None, verdicts: Sequence[Verdict], codec: str) -> Join:
    """What documents leave out: as asked for, else as the best verdict about this codec has it, else the beginning."""
    if asked is not None:
        return asked
    allowed = [one for one in verdicts if one.codec == codec and one.allowed]
    return min(allowed, key=_price).join if allowed else "no-bos"


def _price(verdict: Verdict) -> tuple[int, float]:
    """Tokens computed again first, then what is lost."""
    return verdict.link_tokens, verdict.figures.get("kl", 0.0)


def choose(
    asked: str, facts: Facts, verdicts: Sequence[Verdict], *, codec: str, join: Join, link_tokens: int | None
) -> Way:
    """The way for one request; ``link_tokens`` None leaves them to the gate's verdict, else the default."""
    about = sorted(
        (one for one in verdicts if one.codec == codec and one.join == join),
        key=lambda one: (not one.allowed, *_price(one)),
    )
    if asked != "auto":
        reuse: Reuse = asked  # type: ignore[assignment]  # checked by check_reuse
        if asked != "linked":
            return Way(reuse, "asked for", join)
        judged = [one.link_tokens for one in about if one.link_tokens]
        return Way(reuse, "asked for", join, link_tokens or (judged[0] if judged else LINK_TOKENS))
    if not facts.movable:
        return Way("off", "this model's documents cannot be moved after they were read", join)
    if facts.has_prefix:
        return Way("prefix", "these documents were read in this order before", join)
    if facts.exact_alone:
        return Way("prefix", "one document of causal embeddings is the beginning of its prompt", join)
    if facts.load_s is not None and facts.prefill_s is not None and facts.load_s > facts.prefill_s:
        why = f"loading would take {facts.load_s * 1e3:.0f} ms and reading {facts.prefill_s * 1e3:.0f} ms"
        return Way("off", why, join)
    if not about:
        return Way("cached", "no gate has judged this model", join)
    best = about[0]
    if not best.allowed:
        return Way("off", f"the gate allows nothing else: {best.reason}", join)
    return Way("linked" if best.link_tokens else "cached", f"the gate allows it: {best.reason}", join, best.link_tokens)
