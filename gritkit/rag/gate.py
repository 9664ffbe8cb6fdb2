"""What reuse costs: answers, distributions, seconds and bytes of every way, beside reading the documents in the prompt.

Each question is answered by full prefill first. That answer is the yardstick: every other way is shown the same chunks,
answers freely (quality, time), and is then led along the yardstick's own tokens, where its next-token distributions are
compared with those of full prefill.

    KL         sum over the vocabulary of p log(p / q), p full prefill's distribution, q the other's; nats a token
    agreement  share of the yardstick's tokens that are the other's likeliest token too
    same       share of questions with, word for word, the yardstick's answer

Search is outside the clock; fetching key-values, rotating them and computing the question are inside.
This module knows nothing about files, command lines or how blocks are kept.

Shapes: K tokens of an answer, V words of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Completion, Finished, SamplingParams, raising
from gritkit.generation.sampling import Sampler
from gritkit.kv.codecs import CodecName, StoredKV, check_codec
from gritkit.kv.dockv import Join, check_join
from gritkit.metrics import exact_match, match, normalize_answer, token_f1
from gritkit.model import GritModel
from gritkit.rag.answering import Prepared, Question
from gritkit.rag.documents import Reuse, Search
from gritkit.rag.ladder import LINK_TOKENS
from gritkit.rag.questions import Exam
from gritkit.rag.rag import Rag
from gritkit.rag.verdicts import Verdict

CLOSED = "closed"
"""The mode without documents: the question alone, as a chat where the model has a format for one."""
STORED = ("cached", "linked", "query_doc", "doc_query")
"""The modes that read stored key-values, so that a codec matters."""
MODES = (CLOSED, "off", *(mode for mode in get_args(Reuse) if mode != "off"))

Where = Callable[[int, int], Mapping[str, Any] | None]
"""(number of the question, top_k) -> which documents it may be answered from."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way of answering. Raises InputError for one that cannot be."""

    mode: str
    codec: CodecName = "exact"
    join: Join = "no-bos"
    link_tokens: int = 0
    top_k: int = 1
    """Chunks that an answer reads at most; 0 with ``closed`` alone."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode={self.mode!r} is not one of {', '.join(MODES)}")
        check_codec(self.codec)
        check_join(self.join)
        if (self.top_k < 1) != (self.mode == CLOSED):
            raise InputError(f"top_k={self.top_k} must be at least 1, and 0 with {CLOSED!r} alone")
        if (self.link_tokens < 1) == (self.mode == "linked"):
            raise InputError(f"link_tokens={self.link_tokens} must be at least 1 with 'linked', and 0 otherwise")


def settings_of(
    modes: Sequence[str],
    codecs: Sequence[str],
    *,
    top_ks: Sequence[int] = (1,),
    joins: Sequence[str] = ("no-bos",),
    link_tokens: Sequence[int] = (LINK_TOKENS,),
) -> list[Setting]:
    """Every combination that differs: joins where a second chunk follows, all codecs where answers start from blocks.

    The paper's own ways are measured with the first codec alone.
    """
    found: dict[Setting, None] = {}
    for top_k in top_ks:
        for mode in modes:
            for join in joins if top_k > 1 else joins[:1]:
                for codec in codecs if mode in ("cached", "linked") else codecs[:1]:
                    for links in link_tokens if mode == "linked" else (0,):
                        if mode == "linked" and top_k == 1:
                            continue  # the first document is never linked
                        given = {"codec": check_codec(codec), "join": check_join(join), "link_tokens": links}
                        one = Setting(mode=mode, top_k=0 if mode == CLOSED else top_k, **given)  # type: ignore[arg-type]
                        found[dataclasses.replace(one, join="no-bos") if mode == CLOSED else one] = None
    return list(found)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of one way over a question file. Quality in [0, 1], seconds, bytes; NaN where there is none."""

    setting: Setting
    num_questions: int
    match: float
    """Share of answers that hold an accepted one as a substring."""
    exact_match: float
    f1: float
    found: float
    """Share of questions with an accepted answer, in SQuAD's normal form, in the chunks that were read."""
    kl: float
    kl_first: float
    """The same of the answer's first token alone."""
    agreement: float
    same: float
    num_tokens: int
    """Tokens that KL and agreement are means over."""
    ttft_s: float
    """To the first token, search left out: the median, and the 95th percentile."""
    ttft_p95_s: float
    total_s: float
    """To the last token; median."""
    document_tokens: float
    """Mean tokens of the documents in the prompt."""
    bytes_per_token: float
    """What the key-values that an answer read take in a block, a token."""
    recomputed: int
    """Chunks whose key-values were missing and read anew; more than none, and the times are not those of reuse."""
    f1_each: tuple[float, ...]
    """The F1 of every question, in their order."""


@dataclass
class _Tally:
    """What one way gave, question by question."""

    quality: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ttft: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    agreed: list[Tensor] = field(default_factory=list)
    num_bytes: int = 0
    stored_tokens: int = 0
    recomputed: int = 0


@dataclass(frozen=True)
class _Run:
    """One answer, timed, with the logits [V] that each of its tokens was taken from."""

    completion: Completion
    logits: list[Tensor]
    ttft: float
    total: float


class _Watching(Sampler):
    """Keeps the logits that it is asked with; hands out ``tokens`` where they are given, the likeliest otherwise."""

    def __init__(self, tokens: Sequence[int] | None = None) -> None:
        super().__init__(SamplingParams(), ())
        self.logits: list[Tensor] = []
        self._tokens = None if tokens is None else iter(tokens)

    def pick(self, logits_V: Tensor) -> int:
        self.logits.append(logits_V)
        return super().pick(logits_V) if self._tokens is None else next(self._tokens)


def measure(
    rag_of: Callable[[str], Rag],
    exams: Sequence[Exam],
    settings: Sequence[Setting],
    *,
    max_new_tokens: int = 32,
    by: Search = "dense",
    where: Where | None = None,
    progress: bool = False,
) -> list[Measured]:
    """The figures of every setting over the questions, in the order given; full prefill is measured along.

    ``rag_of`` gives the open knowledge base of a codec, each over the same documents and the same model. All ways take
    turns at each question, so that a slow spell of the machine falls on all of them.

    Raises:
        InputError: without questions or settings, or for a question that no document fits beside.
        UnsupportedModelError: for key-values of a model whose documents cannot be moved, or that cannot write.
    """
    if not exams or not settings:
        raise InputError("there is nothing to measure: give at least one question and one way")
    params = SamplingParams(max_new_tokens=max_new_tokens)
    tallies = {setting: _Tally() for setting in settings}
    for number, exam in enumerate(tqdm(exams, unit=" questions", disable=None if progress else True)):
        for group in _groups(settings):
            top_k, join = group[0].top_k, group[0].join
            if not top_k:
                _closed(rag_of(group[0].codec).model, exam, tallies[group[0]], params)
                continue
            shown = _found(rag_of, exam, group, where(number, top_k) if where else None, by, params)
            first = group[0].codec
            yardstick = _timed(rag_of(first), shown[first], Setting(mode="off", join=join, top_k=top_k))
            for setting in group:
                _count(rag_of(setting.codec), exam, shown[setting.codec], setting, yardstick, tallies[setting])
    return [_figures(setting, tallies[setting]) for setting in settings]


def _groups(settings: Sequence[Setting]) -> Iterator[list[Setting]]:
    """Settings that are shown the same chunks, joined alike, so that they share a yardstick."""
    groups: dict[tuple[int, Join], list[Setting]] = {}
    for setting in settings:
        groups.setdefault((setting.top_k, setting.join), []).append(setting)
    yield from groups.values()


def _found(
    rag_of: Callable[[str], Rag],
    exam: Exam,
    group: Sequence[Setting],
    filters: Mapping[str, Any] | None,
    by: Search,
    params: SamplingParams,
) -> dict[str, Question]:
    """By codec, the chunks to read: the same ones, each where that codec's key-values are.

    Raises:
        InputError: for knowledge bases that do not hold the same documents.
    """
    top_k, join = group[0].top_k, group[0].join
    found: dict[str, Question] = {
        codec: rag_of(codec).find(exam.question, top_k=top_k, where=filters, by=by, join=join, params=params)
        for codec in dict.fromkeys(setting.codec for setting in group)
    }
    if len({tuple((row.id, row.token_ids) for row in question.rows) for question in found.values()}) > 1:
        raise InputError(f"the knowledge bases of {', '.join(found)} find other documents: index the same into each")
    return found


def _count(
    rag: Rag, exam: Exam, question: Question, setting: Setting, yardstick: tuple[_Run, Prepared], tally: _Tally
) -> None:
    reference, _ = yardstick
    if setting.mode == "off":
        run, prepared = yardstick
        led = reference.logits
    else:
        if setting.mode == "prefix":  # a prompt is kept when it is read, and served from there the next time
            _timed(rag, question, setting)
        run, prepared = _timed(rag, question, setting)
        led = forced_logits(rag.model, prepared.request, reference.completion.token_ids)
    _answered(exam, run, tally)
    read = " ".join(normalize_answer(row.text) for row in question.rows)
    tally.quality["found"].append(float(any(normalize_answer(one) in read for one in exam.answers)))
    tally.quality["same"].append(float(run.completion.text == reference.completion.text))
    tally.quality["document_tokens"].append(sum(len(row.token_ids) for row in question.rows))
    tally.kl.append(divergence(reference.logits, led))
    tally.agreed.append(_agreement(reference.completion.token_ids, led))
    tally.recomputed += prepared.recomputed
    for document in prepared.request.documents:
        if isinstance(document, StoredKV):
            tally.num_bytes += document.num_bytes
            tally.stored_tokens += len(document)


def _closed(model: GritModel, exam: Exam, tally: _Tally, params: SamplingParams) -> None:
    start = time.perf_counter()
    tokens = model.tokens
    if tokens.format.user is None and not getattr(tokens.hf, "chat_template", None):
        prompt = [*tokens.bos_ids, *tokens.question_prompt(exam.question)]
    else:
        prompt = tokens.chat_prompt([{"role": "user", "content": exam.question}])
    _answered(exam, _run(model, Request(prompt, params), start), tally)


def _answered(exam: Exam, run: _Run, tally: _Tally) -> None:
    text = run.completion.text.strip()
    for name, metric in (("match", match), ("exact_match", exact_match), ("f1", token_f1)):
        tally.quality[name].append(metric(text, exam.answers))
    tally.ttft.append(run.ttft)
    tally.total.append(run.total)


def _timed(rag: Rag, question: Question, setting: Setting) -> tuple[_Run, Prepared]:
    """One answer from chunks that were found already, and what gave it."""
    start = time.perf_counter()
    prepared = rag.prepare(question, setting.mode, setting.join, setting.link_tokens or None)
    return _run(rag.model, prepared.request, start), prepared


def _run(model: GritModel, request: Request, start: float) -> _Run:
    watching, first = _Watching(), None
    decoder = model.decoder(
        num_slots=1,
        max_length=request.num_laid + len(request.prompt_ids) + request.params.max_new_tokens,
        prefill_chunk=len(request.prompt_ids),
    )
    decoder.join(request, watching)
    while True:
        events = list(raising(decoder.step()))
        if first is None and watching.logits:
            first = time.perf_counter() - start
        for event in events:
            if isinstance(event, Finished):
                total = time.perf_counter() - start
                return _Run(event.completion, watching.logits, first or total, total)


def forced_logits(model: GritModel, request: Request, tokens: Sequence[int]) -> list[Tensor]:
    """Logits [V] of K steps of a request that is led along the given tokens, whatever it would have chosen."""
    watching = _Watching(tokens)
    params = SamplingParams(max_new_tokens=len(tokens))
    request = dataclasses.replace(request, params=params)
    decoder = model.decoder(num_slots=1, max_length=request.num_laid + len(request.prompt_ids) + len(tokens))
    decoder.join(request, watching)
    for _ in raising(decoder.run()):
        pass
    return watching.logits


def divergence(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """KL of the distributions of K steps, nats [K] float64."""
    log_p_KV, log_q_KV = (torch.stack(list(logits)).double().log_softmax(-1) for logits in (reference, other))
    return (log_p_KV.exp() * (log_p_KV - log_q_KV)).sum(-1).clamp_min(0.0)


def _agreement(tokens: Sequence[int], logits: Sequence[Tensor]) -> Tensor:
    return torch.tensor(tokens) == torch.stack(list(logits)).argmax(-1)


def _figures(setting: Setting, tally: _Tally) -> Measured:
    mean = {name: statistics.fmean(values) for name, values in tally.quality.items()}
    nan = float("nan")
    kl = torch.cat(tally.kl) if tally.kl else None
    ordered = sorted(tally.ttft)
    return Measured(
        setting=setting,
        num_questions=len(tally.ttft),
        match=mean["match"],
        exact_match=mean["exact_match"],
        f1=mean["f1"],
        found=mean.get("found", nan),
        kl=nan if kl is None else float(kl.mean()),
        kl_first=nan if kl is None else float(torch.stack([one[0] for one in tally.kl]).mean()),
        agreement=nan if kl is None else float(torch.cat(tally.agreed).double().mean()),
        same=mean.get("same", nan),
        num_tokens=0 if kl is None else len(kl),
        ttft_s=statistics.median(ordered),
        ttft_p95_s=ordered[math.ceil(0.95 * len(ordered)) - 1],
        total_s=statistics.median(tally.total),
        document_tokens=mean.get("document_tokens", 0.0),
        bytes_per_token=tally.num_bytes / tally.stored_tokens if tally.stored_tokens else nan,
        recomputed=tally.recomputed,
        f1_each=tuple(tally.quality["f1"]),
    )


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much a way may lose against full prefill before it is off by default."""

    f1: float = 0.02
    """Of token F1, in [0, 1]."""
    kl: float = 0.2
    """Nats a token."""


def judge(measured: Sequence[Measured], tolerance: Tolerance) -> list[Verdict]:
    """Verdicts on the cached and linked ways; one that was measured with several ``top_k`` is judged by its worst.

    Raises:
        InputError: where a way was measured without full prefill beside it.
    """
    off = {(one.setting.top_k, one.setting.join): one for one in measured if one.setting.mode == "off"}
    ways: dict[tuple[str, CodecName, Join, int], list[tuple[Measured, Measured]]] = {}
    for one in measured:
        at = one.setting
        if at.mode in ("cached", "linked"):
            if (at.top_k, at.join) not in off:
                raise InputError(f"{at.mode} with top_k={at.top_k} was measured without 'off' beside it: add that mode")
            pair = (one, off[at.top_k, at.join])
            ways.setdefault((at.mode, at.codec, at.join, at.link_tokens), []).append(pair)
    return [_verdict(*way, pairs, tolerance) for way, pairs in ways.items()]


def _verdict(
    mode: str,
    codec: CodecName,
    join: Join,
    link_tokens: int,
    pairs: Sequence[tuple[Measured, Measured]],
    tolerance: Tolerance,
) -> Verdict:
    lost = max(off.f1 - one.f1 for one, off in pairs)
    kl = max(one.kl for one, _ in pairs)
    worst, off = max(pairs, key=lambda pair: pair[1].f1 - pair[0].f1)
    allowed = lost <= tolerance.f1 and kl <= tolerance.kl
    reason = (
        f"F1 {worst.f1:.3f} against {off.f1:.3f} of full prefill (tolerance {tolerance.f1:g}), "
        f"KL {kl:.3f} nats a token (tolerance {tolerance.kl:g}), {worst.num_questions} questions"
    )
    figures = {
        "f1": worst.f1, "f1_off": off.f1, "kl": kl, "match": worst.match, "match_off": off.match,
        "ttft_s": worst.ttft_s, "ttft_off_s": off.ttft_s, "num_questions": float(worst.num_questions),
    }  # fmt: skip
    return Verdict(
        reuse=mode, codec=codec, join=join, link_tokens=link_tokens, allowed=allowed, reason=reason, figures=figures
    )
