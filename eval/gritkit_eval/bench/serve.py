"""The server against its peers: ``transformers serve`` for chat, sentence-transformers behind FastAPI for embeddings.

All servers run on the same weights, each in a process of its own, and a client in another one asks them in turn over
real HTTP. Before any figure is reported the answers are compared with the library's. At the end gritkit alone is asked
about documents, in turn with :class:`gritkit.rag.Rag` on the same knowledge base.

This module knows nothing about how servers are run and asked, figures follow from times, or a section is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import typer

from gritkit.errors import GritkitError
from gritkit_eval.bench import serve_servers as servers
from gritkit_eval.bench.serve_contest import (
    Contest,
    Endpoint,
    Settings,
    body_of,
    by_client,
    contestants,
    worker_of,
)
from gritkit_eval.bench.serve_figures import (
    TIES,
    TOLERANCE,
    AskRow,
    ChatRow,
    EmbedRow,
    GapRow,
    MemoryRow,
    chat_row,
    embed_row,
    gap_row,
    is_same_text,
    vectors_of,
)
from gritkit_eval.bench.serve_material import make
from gritkit_eval.bench.serve_servers import Server, memory_of

TITLE = "bench serve"
Row = TypeVar("Row", ChatRow, EmbedRow)


@dataclass(frozen=True)
class Report:
    """All that one run measured."""

    settings: Settings
    num_parameters: int
    long_tokens: int
    versions: dict[str, str]
    skipped: dict[str, str]
    """Peer -> why it was not there."""
    batching: list[str]
    """The options of transformers' continuous batching."""
    near_ties: dict[str, int]
    """Server -> how many of the compared answers left the library's at a near-tie."""
    num_compared: int
    difference: float
    """Largest, of any server's vectors to the library's."""
    chats: list[ChatRow]
    embeddings: list[EmbedRow]
    gaps: list[GapRow]
    memory: list[MemoryRow]
    asks: list[AskRow]


def run(settings: Settings) -> Report:
    """Raises GritkitError where servers' answers are not the library's, or a server that is there does not work."""
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name, ExitStack() as stack:
        place = Path(name)
        typer.echo("making a model and texts", err=True)
        material = make(
            place / "model", size=settings.size, device=settings.device, num_texts=max(settings.num_texts, 64),
            long_tokens=settings.long_tokens, num_documents=settings.num_documents,
            document_tokens=settings.document_tokens, num_questions=settings.num_questions,
        )  # fmt: skip
        client, library = (worker_of(stack, name) for name in ("client", "library"))
        current = Contest(place, settings, material, client, library, stack)
        ours, chats, embeddings = contestants(current)
        near_ties, num_compared = _compare_chats(current, chats)
        difference = _compare_vectors(current, embeddings)
        chat_rows = [row for clients in settings.clients for row in _chats(current, chats, clients)]
        embed_rows = [
            row
            for texts in settings.texts
            for clients in settings.clients
            for row in _embeddings(current, embeddings, texts, clients)
        ]
        gap_rows = _gaps(current, [one for one in chats if one.name != "transformers serve"])
        memory = _memory(ours, chats, embeddings)
        stack.close()  # nothing runs beside the last part
        asks: list[AskRow] = []
        if settings.num_documents:
            with ExitStack() as last:
                current.client, current.library = (worker_of(last, name) for name in ("client", "library"))
                current.stack = last
                asks, with_base = _asks(current)
                memory += with_base
        versions = {**client.versions, **library.versions, **current.versions}
    return Report(
        settings, material.num_parameters, material.long_tokens, versions, current.skipped, current.batching, near_ties,
        num_compared, difference, chat_rows, embed_rows, gap_rows, memory, asks,
    )  # fmt: skip


# -- the same answers --------------------------------------------------------------------------------------------------


def _compare_chats(current: Contest, chats: Sequence[Endpoint]) -> tuple[dict[str, int], int]:
    """Answers that many clients wait for at once against the library's, which answers alone."""
    typer.echo("comparing answers", err=True)
    clients = min(8, max(current.settings.clients))
    bodies = current.bodies(2 * clients)
    prompts = [body["messages"][0]["content"] for body in bodies]
    longest = max(body["max_tokens"] for body in bodies)
    expected = current.ask_library("answers", prompts=prompts, max_tokens=longest)
    near_ties = {}
    for endpoint in chats:
        made = current.chat(endpoint.server, bodies, clients)
        wanted = [tokens[: body["max_tokens"]] for tokens, body in zip(expected, bodies, strict=True)]
        answers = zip(made["requests"], by_client(wanted, clients), strict=True)
        try:
            same = [is_same_text(one["text"], tokens, TIES[current.settings.dtype]) for one, tokens in answers]
        except GritkitError as error:
            raise GritkitError(f"{endpoint.name}: {error}; no figure counts") from None
        near_ties[endpoint.name] = same.count(False)
    return near_ties, len(bodies)


def _compare_vectors(current: Contest, embeddings: Sequence[Endpoint]) -> float:
    """The largest difference of a component to the library's."""
    typer.echo("comparing vectors", err=True)
    texts = list(current.material.texts[:32])
    expected = np.array(current.ask_library("vectors", texts=texts), dtype=np.float32)
    largest = 0.0
    for endpoint in embeddings:
        jobs = [[{"input": texts[at : at + 8], "encoding_format": "base64"}] for at in range(0, len(texts), 8)]
        made = current.embed(endpoint, jobs, keep=True)
        difference = float(np.abs(vectors_of(made["requests"]) - expected).max())
        if not difference <= TOLERANCE[current.settings.dtype]:
            raise GritkitError(
                f"{endpoint.name}: vectors differ from the library's by {difference:.1e}, so no figure counts"
            )
        largest = max(largest, difference)
    return largest


# -- figures -----------------------------------------------------------------------------------------------------------


def _interleaved(count: int, rounds: int, run_one: Callable[[int, int], Any]) -> list[list[Any]]:
    """What ``run_one(round, index)`` gives in the counted rounds, by index; the first round is not counted, and the
    order rotates."""
    made: list[list[Any]] = [[] for _ in range(count)]
    for number in range(rounds + 1):
        turn = number % count
        for index in [*range(turn, count), *range(turn)]:
            one = run_one(number, index)
            if number:
                made[index].append(one)
    return made


def _chats(current: Contest, chats: Sequence[Endpoint], clients: int) -> list[ChatRow]:
    settings = current.settings
    typer.echo(f"chat, {clients} clients, {settings.rounds} rounds", err=True)
    count = settings.num_chats(clients)
    bodies = [current.bodies(count) for _ in range(settings.rounds + 1)]
    made = _interleaved(
        len(chats), settings.rounds,
        lambda number, index: current.chat(chats[index].server, bodies[number], clients),
    )  # fmt: skip
    tokens = sum(settings.lengths(count))
    return _said(
        [chat_row(endpoint.name, clients, rounds, tokens) for endpoint, rounds in zip(chats, made, strict=True)]
    )


def _embeddings(current: Contest, embeddings: Sequence[Endpoint], texts: int, clients: int) -> list[EmbedRow]:
    settings, material = current.settings, current.material
    typer.echo(f"embeddings, {clients} clients, {texts} texts a request, {settings.rounds} rounds", err=True)
    count = max(-(-settings.num_texts // texts), 2 * clients)
    places = [[(number * texts + one) % len(material.texts) for one in range(texts)] for number in range(count)]
    bodies = [{"input": [material.texts[at] for at in some], "encoding_format": "base64"} for some in places]
    jobs = [bodies[client::clients] for client in range(clients)]
    made = _interleaved(len(embeddings), settings.rounds, lambda number, index: current.embed(embeddings[index], jobs))
    tokens = sum(material.text_tokens[at] for some in places for at in some)
    return _said(
        [
            embed_row(endpoint.name, clients, texts, rounds, tokens)
            for endpoint, rounds in zip(embeddings, made, strict=True)
        ]
    )


def _said(rows: list[Row]) -> list[Row]:
    """The same rows, told at once: a run that is cut short has then said what it found."""
    for row in rows:
        typer.echo(f"  {row.server}: {row.throughput:,.0f} tokens/s", err=True)
    return rows


def _gaps(current: Contest, chats: Sequence[Endpoint]) -> list[GapRow]:
    """Of servers that decode one request beside another."""
    settings = current.settings
    typer.echo(f"a running stream beside a prompt of {current.material.long_tokens} tokens", err=True)
    rounds = [
        {
            "alone": body_of(next(current.material.longs), 2),
            "running": body_of(next(current.material.prompts), settings.running_tokens),
            "beside": body_of(next(current.material.longs), 2),
        }
        for _ in range(settings.rounds + 1)
    ]

    def one(number: int, index: int) -> Any:
        return current.ask(current.client, kind="gap", url=chats[index].server.url, after=16, **rounds[number])

    made = _interleaved(len(chats), settings.rounds, one)
    return [gap_row(endpoint.name, rounds) for endpoint, rounds in zip(chats, made, strict=True)]


def _memory(ours: Server, chats: Sequence[Endpoint], embeddings: Sequence[Endpoint]) -> list[MemoryRow]:
    """One process for both jobs, and two peers for one each, after all that work."""
    groups = {"gritkit: one process, both jobs": [ours]}
    for chat in chats[1:]:
        for peer in embeddings[1:2]:
            groups[f"{chat.name} + {peer.server.name}"] = [chat.server, peer.server]
    found = {what: memory_of([one.pid for one in some]) for what, some in groups.items()}
    return [MemoryRow(what, memory) for what, memory in found.items() if memory is not None]


def _asks(current: Contest) -> tuple[list[AskRow], list[MemoryRow]]:
    """The first word of answers from documents whose key-values were read before, over HTTP and from the library."""
    settings, material, base = current.settings, current.material, "bench"
    kb = current.place / "kb"
    server = current.start(servers.gritkit(current.folder, current.loading, slots=settings.slots, kb=kb))
    documents = [{"id": f"{number:04d}", "text": text} for number, text in enumerate(material.documents)]
    typer.echo(f"adding {len(documents)} documents", err=True)
    calls = [("/v1/kb", {"name": base}), (f"/v1/kb/{base}/documents", {"documents": documents})]
    _, report = current.ask(current.client, kind="post", url=server.url, calls=calls)
    if report["added"] != len(documents):
        raise GritkitError(f"{report['added']} of {len(documents)} documents were added, so no figure counts")
    options = {"top_k": 3, "reuse": "cached"}
    bodies = [{"question": one, "max_tokens": 16, "stream": True, **options} for one in material.questions]
    typer.echo(f"answers from documents, {settings.rounds} rounds", err=True)

    def one(number: int, index: int) -> Any:
        if index == 0:
            return current.ask(current.client, kind="ask", url=server.url, path=f"/v1/kb/{base}/ask", bodies=bodies)
        return current.ask_library(
            "ask", base=str(kb / base), questions=list(material.questions), options={**options, "max_new_tokens": 16}
        )

    over_http, library = _interleaved(2, settings.rounds, one)
    for ours, theirs in zip(over_http, library, strict=True):
        for answer, expected in zip(ours, theirs, strict=True):
            if any(answer[name] != expected[name] for name in ("text", "sources", "reuse")):
                raise GritkitError("ask: the server's answer is not the library's, so no figure counts")
    memory = memory_of([server.pid])
    with_base = [] if memory is None else [MemoryRow("gritkit: one process, a knowledge base beside", memory)]
    return [
        AskRow(who, tuple(answer["first"] for made in rounds for answer in made))
        for who, rounds in (("gritkit serve", over_http), ("Rag.stream", library))
    ], with_base
