"""A real server under everything at once: its answers stay the library's, and nothing it acknowledged is lost.

``GRITKIT_LOAD_SECONDS`` (10) and ``GRITKIT_LOAD_CLIENTS`` (16) say how long and how many. What is judged: no 5xx but
503 once it drains; every acknowledged document is found, before and after its end; memory does not grow in a run of
five minutes or more (in a shorter one it is only printed); greedy chats,
vectors, scores and answers from documents are the library's; SIGTERM ends it with code 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from gritkit import GritModel
from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.prompts import Message
from gritkit.rag import Document, Rag
from tests.models import TEXTS, grit_model
from tests.serve.load import ANSWER_TOKENS, FIXED, MOVING, PATIENCE_S, Client, Known, Load, Wrong

SECONDS = float(os.environ.get("GRITKIT_LOAD_SECONDS", "10"))
CLIENTS = int(os.environ.get("GRITKIT_LOAD_CLIENTS", "16"))
KEY = "the-key-of-the-load-test"
DRAIN_SECONDS = 60.0
GROWTH_BYTES = 64 << 20
"""By which the most memory of the last third may be above that of the first, whatever the length of the run: what a
request leaves behind shows in a long one. Before it comes a warm-up, in which everything is done a few times."""
_LONG_S = 300.0  # a shorter run is all warm-up: pools and allocators still grow, and say nothing of what is left behind
_WARM_UP_CLIENTS = 8
_TIE = 1e-3  # nats: greedy choices closer than this may turn out otherwise in another order of summing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="memory is read from Linux's /proc"),
]

DOCUMENTS = [
    Document(f"{text} {number} {TEXTS[number % 3]}", f"d{number}") for number, text in enumerate(TEXTS[:4] * 3)
]


# -- what the library says ---------------------------------------------------------------------------------------------


def known_of(model: GritModel, folder: Path) -> Known:
    """Expectations of a model; chats with a near-tie are left out."""
    users: list[Sequence[Message]] = [
        [{"role": "user", "content": f"{one} {two}"}] for one in TEXTS for two in ("", *TEXTS[:3])
    ]
    users += [
        [*user, {"role": "assistant", "content": TEXTS[1]}, {"role": "user", "content": TEXTS[0]}]
        for user in users[::2]
    ]
    params = SamplingParams(max_new_tokens=ANSWER_TOKENS)
    requests = [Request(model.tokens.chat_prompt(one), params, top_logprobs=2) for one in users]
    chats = [
        (user, done.text)
        for user, done in zip(users, model.generate(requests), strict=True)
        if min((token.top[0].logprob - token.top[1].logprob for token in done.logprobs), default=1.0) > _TIE
    ]
    assert len(chats) > 10
    texts = [f"{one} {two}" for one in TEXTS for two in TEXTS]
    queries = [(TEXTS[number], texts[number : number + 6]) for number in range(4)]
    with Rag.open(folder, model) as rag:
        rag.add(DOCUMENTS)
        asks = []
        for question in TEXTS[:4]:
            answer = rag.ask(question, top_k=2, reuse="cached", max_new_tokens=ANSWER_TOKENS)
            asks.append((question, answer.text, [hit.id for hit in answer.sources]))
    reranks = [(query, documents, model.score(query, documents)) for query, documents in queries]
    return Known(chats, texts, model.embed(texts), reranks, asks)


# -- the server --------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """A server's process."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def own_memory(self) -> int:
        """Bytes of pages that are the process's own; those of libraries depend on who else has them open."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss_Anon:"))


@contextlib.contextmanager
def served(model: Path, bases: Path, log: Path) -> Iterator[Served]:
    """``gritkit serve`` until the block ends, at the latest."""
    command = [sys.executable, "-m", "gritkit", "serve", str(model), "--kb", str(bases), "--port", "0"]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "--drain-seconds", str(DRAIN_SECONDS)],
            stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "GRITKIT_API_KEY": KEY},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # empty where it ended before
        assert " is ready at " in line, log.read_text()[-2000:]
        yield Served(process, line.split(" is ready at ")[1].split()[0], log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


@contextlib.asynccontextmanager
async def watched_memory(server: Served) -> AsyncIterator[list[tuple[float, int]]]:
    """(time, bytes), four times a second until the block ends."""
    seen: list[tuple[float, int]] = []

    async def look() -> None:
        while True:
            seen.append((time.monotonic(), await asyncio.to_thread(lambda: server.own_memory)))
            await asyncio.sleep(0.25)

    task = asyncio.ensure_future(look())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def growth_of(seen: Sequence[tuple[float, int]], started: float, ended: float) -> int:
    """The largest of the last third over the largest of the first."""
    third = (ended - started) / 3
    first = max(size for at, size in seen if started <= at < started + third)
    last = max(size for at, size in seen if ended - third <= at <= ended)
    return last - first


# -- the load ----------------------------------------------------------------------------------------------------------


async def prepared(load: Load) -> None:
    """Both knowledge bases."""
    async with load.http() as http:
        for name in (FIXED, MOVING):
            (await http.post("/v1/kb", json={"name": name})).raise_for_status()
        documents = [{"id": one.id, "text": one.text} for one in DOCUMENTS]
        report = (await http.post(f"/v1/kb/{FIXED}/documents", json={"documents": documents})).json()
        assert report["added"] == len(DOCUMENTS)


async def listed(http: httpx.AsyncClient) -> set[str]:
    """Ids of the moving base, page by page."""
    ids: list[str] = []
    while True:
        after = {"after": ids[-1]} if ids else {}
        answer = (await http.get(f"/v1/kb/{MOVING}/documents", params={"limit": 50, **after})).raise_for_status().json()
        ids += [one["id"] for one in answer["data"]]
        if not answer["has_more"]:
            return set(ids)


async def drained(load: Load, server: Served, known: Known) -> None:
    """Streams that run when SIGTERM comes reach their end, and nothing new is taken meanwhile."""
    begun = anyio.Event()
    count = 0

    async def stream(client: Client) -> None:
        nonlocal count
        body = {"messages": known.chats[client.number][0], "max_tokens": 400}
        async with load.events(client, "/v1/chat/completions", body) as events:
            assert events is not None
            async for _ in events:
                count += 1
                if count == 20:
                    begun.set()

    async with load.http() as http:
        clients = [Client(number, http) for number in range(8)]
        streams = asyncio.gather(*(stream(client) for client in clients))
        with anyio.fail_after(PATIENCE_S):
            await begun.wait()
        server.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE_S):
            while (await http.get("/ready")).status_code != 503:
                pass
        refused = await http.post("/v1/embeddings", json={"input": "a"})
        assert not streams.done()
        with anyio.fail_after(PATIENCE_S):
            await streams
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) > 0


def test_a_server_under_everything_at_once(tmp_path: Path) -> None:
    grit_model("qwen3", prompt_format="grit").save_pretrained(tmp_path / "model")
    model = GritModel.from_pretrained(tmp_path / "model", device="cpu")
    known = known_of(model, tmp_path / "library")

    async def drive(server: Served) -> Load:
        load = Load(server.url, KEY, known)
        await prepared(load)
        await load.warm_up(min(CLIENTS, _WARM_UP_CLIENTS))
        assert load.problems == []
        started = time.monotonic()
        async with watched_memory(server) as seen:
            await load.run(CLIENTS, SECONDS)
            ended = started + SECONDS
        print(json.dumps(load.counts, indent=1, sort_keys=True))
        assert load.problems == []
        growth = growth_of(seen, started, ended)
        print(f"memory: {seen[0][1] >> 20} MiB at first, {seen[-1][1] >> 20} MiB at last, {growth / 2**20:.1f} grown")
        if SECONDS >= _LONG_S:
            assert growth <= GROWTH_BYTES
        async with load.http() as http:
            found = await listed(http)
            assert load.kept <= found
            assert not load.deleted & found
            finder = Client(0, http)
            for id in sorted(load.kept):
                await load.find_one(finder, id)
        await drained(load, server, known)
        return load

    with served(tmp_path / "model", tmp_path / "bases", tmp_path / "log") as server:
        load = asyncio.run(drive(server))
        assert server.process.wait(DRAIN_SECONDS + PATIENCE_S) == 0
    check_counts(load)
    check_log(tmp_path / "log")
    with Rag.open(tmp_path / "bases" / MOVING, model) as rag:
        kept = {one.id for one in rag.documents(limit=100_000)}
        assert load.kept <= kept
        assert not load.deleted & kept
        report = rag.verify()
    assert (report.repaired, report.damaged) == ([], [])


def check_counts(load: Load) -> None:
    """Everything took place, and nothing of it ended in a 5xx."""
    statuses = {int(what.rsplit(" ", 1)[1]) for what in load.counts if what.rsplit(" ", 1)[1]}
    assert {200, 401, 400} <= statuses <= {200, 400, 401, 404, 405, 408, 413, 415, 429, 431}
    assert load.kept


def check_log(log: Path) -> None:
    """No failure, and no word of what clients sent."""
    text = log.read_text()
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert [line for line in lines if line["level"] == "error"] == []
    assert "zqc" not in text
    assert TEXTS[0] not in text


def test_growth_is_that_of_the_most_memory() -> None:
    seen = [(float(at), size) for at, size in enumerate([900, 3, 4, 2, 50, 1, 9, 6, 5, 800])]
    assert growth_of(seen, 1.0, 8.5) == 9 - 4


def test_what_is_wrong_is_noted() -> None:
    load = Load("http://localhost", KEY, Known([], [], None, [], []))  # type: ignore[arg-type]
    with pytest.raises(Wrong, match="a thing: 500 internal"):
        load.said(httpx.Response(500, text="internal"), what="a thing")
    with pytest.raises(Wrong):
        load.said(httpx.Response(503, text="draining"), 400, what="a thing")
    assert load.said(httpx.Response(429, headers={"retry-after": "1"}), what="a thing") is None
    assert load.counts == {"a thing 500": 1, "a thing 503": 1, "a thing 429": 1}
