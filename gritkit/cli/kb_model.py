"""``gritkit kb gate`` and ``gritkit kb reindex``: what of ``gritkit kb`` needs a model.

This module knows nothing about how answers are measured or documents are read.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritkit.cli import options
from gritkit.cli.loading import open_model
from gritkit.cli.output import note, to_json, write
from gritkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gritkit.rag.gate import Measured
    from gritkit.rag.verdicts import Verdict

Base = Annotated[str, typer.Argument(metavar="KB", help="Folder of the knowledge base, or its address.")]


def gate(
    kb: Base,
    questions: Annotated[
        str,
        typer.Argument(metavar="QUESTIONS", help='JSON Lines of {"question": ..., "answer": ...}, .gz or .zst too.'),
    ],
    model: options.Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Chunks that an answer reads.")] = 3,
    join: Annotated[
        list[str] | None,
        typer.Option("--join", help="What later documents leave out: no-bos, text, whole; all three if not given."),
    ] = None,
    link_tokens: Annotated[
        list[int] | None,
        typer.Option("--link-tokens", min=1, help="First tokens of later documents to compute again; may be repeated."),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 32,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first questions.")] = None,
    lost_f1: Annotated[float, typer.Option("--lost-f1", min=0, help="F1 that a way may lose to full prefill.")] = 0.02,
    kl: Annotated[
        float, typer.Option("--kl", min=0, help="KL from full prefill that is tolerated, nats a token.")
    ] = 0.2,
    format: Annotated[
        options.Report, typer.Option("--format", help="A table, or one JSON object.")
    ] = options.Report.text,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Measure what reuse of key-values costs a model on your questions, and switch off by default what costs too much.

    Every question is answered by full prefill and by every way of reuse; a way that loses more than the tolerance is no
    longer taken by --reuse auto for this model and codec. 'gritkit info' shows the verdicts.
    """
    grit = open_model(
        model, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
    )
    from gritkit.rag import Rag, verdicts
    from gritkit.rag.base import KnowledgeBase
    from gritkit.rag.gate import Tolerance, judge, measure, settings_of
    from gritkit.rag.questions import load_exams

    exams = load_exams(questions, limit=limit)
    with KnowledgeBase.open(kb) as base:
        codec = base.manifest.codec
    settings = settings_of(
        ("off", "cached", "linked"),
        (codec,),
        top_ks=(top_k,),
        joins=tuple(join or ("no-bos", "text", "whole")),
        link_tokens=tuple(link_tokens or (4, 16)),
    )
    with Rag.open(kb, grit, codec=codec) as rag:
        if not len(rag):
            raise InputError(f"{kb} holds no documents: index some first")
        measured = measure(lambda _: rag, exams, settings, max_new_tokens=max_new_tokens, progress=True)
    judged = judge(measured, Tolerance(f1=lost_f1, kl=kl))
    verdicts.save(grit.fingerprint, judged)
    if format is options.Report.json:
        facts = {"codec": codec, "questions": len(exams)}
        write(to_json({**facts, "measured": _plain(measured), "verdicts": _plain(judged)}) + "\n")
        return
    write(_table(measured, judged))
    allowed = [verdict for verdict in judged if verdict.allowed]
    note(
        f"{len(allowed)} of {len(judged)} ways are on by default for this model with {codec}"
        if allowed
        else f"no way is within the tolerance: --reuse auto reads documents in full for this model with {codec}"
    )


def reindex(
    kb: Base,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Read everything again with another model.

    Until that is done, what there is stays in use; then it changes at once. Chunks stay as they were cut.
    """
    grit = open_model(
        model, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
    )
    from gritkit.rag import reindex

    report = reindex(kb, grit, progress=True)
    note(f"{report.updated} documents ({report.chunks} chunks) of {kb} were read again")


def _table(measured: Sequence[Measured], judged: Sequence[Verdict]) -> str:
    """Aligned columns; the last says whether a way is on by default."""
    found = {(one.reuse, one.join, one.link_tokens): one.allowed for one in judged}
    rows = [["way", "join", "match", "F1", "KL", "first token ms", "total ms", "bytes/token", "default"]]
    for one in measured:
        at = one.setting
        allowed = found.get((at.mode, at.join, at.link_tokens))
        rows.append(
            [
                f"{at.mode} {at.link_tokens}" if at.link_tokens else at.mode,
                at.join,
                f"{one.match:.3f}",
                f"{one.f1:.3f}",
                f"{one.kl:.3f}",
                f"{one.ttft_s * 1e3:.0f}",
                f"{one.total_s * 1e3:.0f}",
                "-" if math.isnan(one.bytes_per_token) else f"{one.bytes_per_token:.0f}",
                "-" if allowed is None else "on" if allowed else "off",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _plain(items: Sequence[Any]) -> list[dict[str, Any]]:
    """JSON-ready; a figure that there is none of is null."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cleaned(inner) for name, inner in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return [cleaned(dataclasses.asdict(item)) for item in items]
