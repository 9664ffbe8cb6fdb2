"""Clients of every kind, well-behaved and not, that keep a server busy and note what they should not have seen.

    load = Load(url, key, known)
    await load.run(num_clients, seconds)
    load.problems, load.kept, load.counts

A client does one thing after the other, drawn by its own seed. What it expects of answers is the library's, in
:class:`Known`; what it knows of documents is what the server acknowledged to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import numpy as np
from numpy.typing import NDArray

from gritkit.prompts import Message
from tests.serve.garbage import BODIES, RAW, ROUTES

PATIENCE_S = 120.0
"""For any answer, on a machine that is busy with everything at once."""
ANSWER_TOKENS = 16
FIXED, MOVING = "fixed", "moving"
"""Knowledge bases: one that nobody changes, and one that everybody does."""
_MOST_PROBLEMS = 20
_MOST_KEPT = 6
"""Documents that a client leaves in the moving base."""
_LARGE = 10 << 20
_WORDS = ["fox", "dog", "lazy", "quick", "brown", "plan", "shows", "documents", "answered", "jumps", "over", "many"]


@dataclass(frozen=True)
class Known:
    """What the library says."""

    chats: Sequence[tuple[Sequence[Message], str]]
    texts: Sequence[str]
    vectors: NDArray[np.float32]
    reranks: Sequence[tuple[str, Sequence[str], Sequence[float]]]
    asks: Sequence[tuple[str, str, Sequence[str]]]
    """Question, answer, ids of its sources, best first, from the fixed base."""


@dataclass
class Client:
    """One of them: its own chances and its own documents."""

    number: int
    http: httpx.AsyncClient
    rng: random.Random = field(init=False)
    kept: list[str] = field(default_factory=list)
    num_made: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.number)

    def new_document(self) -> dict[str, Any]:
        """With a word that no other has."""
        self.num_made += 1
        id = f"c{self.number + 1000}n{self.num_made}"
        words = self.rng.choices(_WORDS, k=self.rng.randint(3, 40))
        return {"id": id, "text": f"{unique_word(id)} {' '.join(words)}", "metadata": {"client": self.number}}


def unique_word(id: str) -> str:
    """The word of a document by which it is found."""
    return f"zq{id}"


Action = Callable[["Load", Client], Awaitable[None]]
"""Something that a client does."""


class Wrong(Exception):
    """Something that no client should see."""


class Load:
    """All of them, and what came of it."""

    def __init__(self, url: str, key: str, known: Known) -> None:
        self._url = url
        self._key = key
        self._known = known
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        """By what was done and the status of the answer."""
        self.kept: set[str] = set()
        """Documents that the server acknowledged, and that nobody asked it to delete."""
        self.deleted: set[str] = set()

    async def warm_up(self, num_clients: int) -> None:
        """Everything once by each client, so that whatever is made on first use is there."""
        await asyncio.gather(
            *(
                self._client(-1 - number, lambda client: client.rng.sample(list(_SHARES), len(_SHARES)))
                for number in range(num_clients)
            )
        )

    async def run(self, num_clients: int, seconds: float) -> None:
        """Until the time is over, or too much has gone wrong."""
        deadline = time.monotonic() + seconds

        def drawn(client: Client) -> Iterator[Action]:
            while time.monotonic() < deadline and len(self.problems) < _MOST_PROBLEMS:
                yield client.rng.choices(list(_SHARES), list(_SHARES.values()))[0]

        await asyncio.gather(*(self._client(number, drawn) for number in range(num_clients)))

    async def _client(self, number: int, actions: Callable[[Client], Iterable[Action]]) -> None:
        async with self.http() as http:
            client = Client(number, http)
            for action in actions(client):
                try:
                    with anyio.fail_after(PATIENCE_S):
                        await action(self, client)
                except (Wrong, httpx.HTTPError, TimeoutError, LookupError, ValueError) as error:
                    self.problems.append(f"{action.__name__}: {type(error).__name__}: {str(error)[:500]}")
            self.kept |= set(client.kept)

    def http(self, key: str | None = None) -> httpx.AsyncClient:
        """A connection with the right key, or another, or none."""
        given = self._key if key is None else key
        headers = {"authorization": f"Bearer {given}"} if given else {}
        return httpx.AsyncClient(base_url=self._url, headers=headers, timeout=PATIENCE_S, trust_env=False)

    # -- answers -------------------------------------------------------------------------------------------------

    async def post(self, client: Client, path: str, body: Any, *allowed: int, what: str = "") -> Any | None:
        """What a 200 says; None for one of the allowed others, and for a busy server that says when to come back."""
        return self.said(await client.http.post(path, json=body), *allowed, what=what or path)

    def said(self, answer: httpx.Response, *allowed: int, what: str) -> Any | None:
        """The same of an answer that is there."""
        self.counts[f"{what} {answer.status_code}"] += 1
        if answer.status_code == 200:
            return answer.json()
        if answer.status_code == 429 and int(answer.headers["retry-after"]) > 0:
            return None
        if answer.status_code not in allowed:
            raise Wrong(f"{what}: {answer.status_code} {answer.text[:300]}")
        if not answer.json()["error"]["message"]:
            raise Wrong(f"{what}: {answer.status_code} without a reason")
        return None

    @contextlib.asynccontextmanager
    async def events(self, client: Client, path: str, body: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]] | None]:
        """The events of a stream as they come; None from a server that is busy. Left early, the connection closes."""
        async with client.http.stream("POST", path, json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                await answer.aread()
                self.said(answer, what=f"{path} stream")
                yield None
                return
            self.counts[f"{path} stream 200"] += 1
            yield _events(answer)

    # -- what clients do -----------------------------------------------------------------------------------------

    async def chat(self, client: Client) -> None:
        messages, expected = client.rng.choice(self._known.chats)
        body = {"messages": messages, "temperature": 0, "max_tokens": ANSWER_TOKENS}
        if client.rng.random() < 0.5:
            said = await self.post(client, "/v1/chat/completions", body)
            text = None if said is None else said["choices"][0]["message"]["content"]
        else:
            async with self.events(client, "/v1/chat/completions", body) as events:
                text = None if events is None else "".join([_delta(one) async for one in events])
        if text not in (None, expected):
            raise Wrong(f"{text!r} instead of {expected!r}")

    async def chat_with_choices(self, client: Client) -> None:
        messages, _ = client.rng.choice(self._known.chats)
        body = {
            "messages": messages, "n": 2, "max_tokens": 12, "seed": 3, "logprobs": True, "top_logprobs": 2,
            "stop": ["zz"], "cache_salt": str(client.rng.randint(0, 3)),
        }  # fmt: skip
        said = await self.post(client, "/v1/chat/completions", body, what="choices")
        if said is not None and len(said["choices"]) != 2:
            raise Wrong(f"{len(said['choices'])} choices")

    async def chat_in_json(self, client: Client) -> None:
        messages, _ = client.rng.choice(self._known.chats)
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                  "additionalProperties": False}  # fmt: skip
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = {"messages": messages, "max_tokens": 40, "response_format": wanted}
        said = await self.post(client, "/v1/chat/completions", body, what="json")
        if said is None:
            return
        (choice,) = said["choices"]
        if choice["finish_reason"] == "stop" and not isinstance(json.loads(choice["message"]["content"])["a"], bool):
            raise Wrong("not what the schema asks for")

    async def complete(self, client: Client) -> None:
        body = {"prompt": [client.rng.choice(self._known.texts) for _ in range(2)], "max_tokens": 4}
        await self.post(client, "/v1/completions", body)

    async def leave_a_stream(self, client: Client) -> None:
        messages, _ = client.rng.choice(self._known.chats)
        left_after = client.rng.randint(0, 8)
        async with self.events(client, "/v1/chat/completions", {"messages": messages, "max_tokens": 200}) as events:
            if events is not None:
                async for _ in events:
                    left_after -= 1
                    if left_after < 0:
                        break

    async def leave_an_answer(self, client: Client) -> None:
        """Before it is there: a chat, an ask, an addition; nobody knows what became of the document."""
        messages, _ = client.rng.choice(self._known.chats)
        path, body = client.rng.choice([
            ("/v1/chat/completions", {"messages": messages, "max_tokens": 200}),
            (f"/v1/kb/{FIXED}/ask", {"question": self._known.asks[0][0], "max_tokens": 100}),
            (f"/v1/kb/{MOVING}/documents", {"documents": [client.new_document()]}),
            ("/v1/embeddings", {"input": list(self._known.texts) * 4}),
        ])  # fmt: skip
        with anyio.move_on_after(client.rng.uniform(0.0, 0.1)):
            await self.post(client, path, body, what="left")

    async def embed(self, client: Client) -> None:
        places = client.rng.choices(range(len(self._known.texts)), k=client.rng.randint(1, 8))
        said = await self.post(client, "/v1/embeddings", {"input": [self._known.texts[at] for at in places]})
        if said is not None:
            vectors = np.array([one["embedding"] for one in said["data"]], dtype=np.float32)
            error = float(np.abs(vectors - self._known.vectors[places]).max())
            if not error < 1e-5:
                raise Wrong(f"vectors differ by {error}")

    async def rerank(self, client: Client) -> None:
        query, documents, expected = client.rng.choice(self._known.reranks)
        said = await self.post(client, "/v1/rerank", {"query": query, "documents": list(documents)})
        if said is not None:
            scores = {one["index"]: one["relevance_score"] for one in said["results"]}
            error = max(abs(scores[at] - score) for at, score in enumerate(expected))
            if not error < 1e-5:
                raise Wrong(f"scores differ by {error}")

    async def ask(self, client: Client) -> None:
        question, text, sources = client.rng.choice(self._known.asks)
        body = {"question": question, "top_k": 2, "reuse": "cached", "max_tokens": ANSWER_TOKENS}
        path = f"/v1/kb/{FIXED}/ask"
        if client.rng.random() < 0.5:
            said = await self.post(client, path, body)
        else:
            async with self.events(client, path, body) as events:
                said = None if events is None else [one async for one in events][-1]
        if said is not None and (said["text"], [one["id"] for one in said["sources"]]) != (text, list(sources)):
            raise Wrong(f"{said['text']!r} from {said['sources']!r} instead of {text!r} from {sources!r}")

    async def look_around(self, client: Client) -> None:
        path = client.rng.choice([
            "/health", "/ready", "/v1/models", "/v1/kb", f"/v1/kb/{MOVING}", f"/v1/kb/{MOVING}/documents?limit=7",
        ])  # fmt: skip
        self.said(await client.http.get(path), what=path)
        metrics = await client.http.get("/metrics")
        if "gritkit_engine_failures_total 0.0" not in metrics.text:
            raise Wrong("a pass has failed")

    # -- documents -----------------------------------------------------------------------------------------------

    async def add(self, client: Client) -> None:
        documents = [client.new_document() for _ in range(client.rng.randint(1, 3))]
        path = f"/v1/kb/{MOVING}/documents"
        said = await self.post(client, path, {"documents": documents}, what="add")
        if said is not None:
            if said["added"] != len(documents):
                raise Wrong(f"{said} of {len(documents)} documents")
            client.kept += [one["id"] for one in documents]
        if len(client.kept) > _MOST_KEPT:
            await self.delete(client)

    async def delete(self, client: Client) -> None:
        ids, client.kept = client.kept[:3], client.kept[3:]
        if ids:
            answer = await client.http.request("DELETE", f"/v1/kb/{MOVING}/documents", json={"ids": ids})
            said = self.said(answer, what="delete")
            if said is None:
                client.kept += ids
            elif said["deleted"] != len(ids):
                raise Wrong(f"{said['deleted']} of {len(ids)} acknowledged documents were there to be deleted")
            else:
                self.deleted |= set(ids)

    async def find(self, client: Client) -> None:
        """An own document, by its word."""
        if client.kept:
            await self.find_one(client, client.rng.choice(client.kept))

    async def find_one(self, client: Client, id: str) -> None:
        """Raises Wrong where it is not found."""
        body = {"query": unique_word(id), "by": "text", "top_k": 5}
        said = await self.post(client, f"/v1/kb/{MOVING}/search", body, what="search")
        if said is not None and id not in [one["id"] for one in said["data"]]:
            raise Wrong(f"{id} is not found")

    # -- what no client should do --------------------------------------------------------------------------------

    async def send_garbage(self, client: Client) -> None:
        route = client.rng.choice(ROUTES).format(kb=MOVING)
        body = client.rng.choice(BODIES)(client.rng)
        answer = await client.http.post(route, content=body, headers={"content-type": "application/json"})
        self.counts[f"garbage {answer.status_code}"] += 1
        if not 400 <= answer.status_code < 500 or answer.status_code == 422 or not answer.json()["error"]["message"]:
            raise Wrong(f"{route} {body[:80]!r}: {answer.status_code} {answer.text[:300]}")

    async def speak_no_http(self, client: Client) -> None:
        reader, writer = await asyncio.open_connection(client.http.base_url.host, client.http.base_url.port)
        try:
            with contextlib.suppress(OSError):
                writer.write(client.rng.choice(RAW)(client.rng))
                await writer.drain()
                if client.rng.random() < 0.5:
                    writer.write_eof()
                    answer = await reader.read(1 << 16)
                    self.counts[f"raw {answer[9:12].decode('latin-1')}"] += 1
                    if answer and not answer.startswith(b"HTTP/1.1 4"):
                        raise Wrong(f"{answer[:200]!r}")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send_much(self, client: Client) -> None:
        route, body = client.rng.choice([
            ("/v1/embeddings", {"input": "x" * _LARGE}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x " * (_LARGE // 2)}]}),
            (f"/v1/kb/{MOVING}/documents", {"documents": [{"text": "x" * (1 << 20)}] * 10}),
        ])  # fmt: skip
        await self.post(client, route, body, 413, what="10 MB")
        text = "x " * (1 << 20)  # as large as is taken, and longer than any context
        await self.post(client, "/v1/embeddings", {"input": text}, 400, what="2 MB")

    async def send_a_large_file(self, client: Client) -> None:
        files = {"files": ("noise.txt", client.rng.randbytes(_LARGE))}
        answer = await client.http.post(f"/v1/kb/{MOVING}/documents", files=files)
        said = self.said(answer, what="10 MB file")
        if said is not None and (said["added"], said["failed"]) != (0, 1):
            raise Wrong(f"noise became {said}")

    async def use_a_wrong_key(self, client: Client) -> None:
        route = client.rng.choice(ROUTES).format(kb=MOVING)
        async with self.http(client.rng.choice(["", "wrong", self._key[:-1], self._key + "x"])) as http:
            for answer in (await http.post(route, json={"input": "a"}), await http.get("/metrics")):
                self.counts[f"wrong key {answer.status_code}"] += 1
                if answer.status_code != 401:
                    raise Wrong(f"{route}: {answer.status_code}")


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Raises Wrong for one that says an error, and for an end without [DONE]."""
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            said = json.loads(line.removeprefix("data: "))
            if "error" in said:
                raise Wrong(line[:300])
            yield said
    raise Wrong("the stream broke off")


def _delta(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


_SHARES: dict[Action, int] = {
    Load.chat: 20, Load.chat_with_choices: 3, Load.chat_in_json: 2, Load.complete: 2, Load.leave_a_stream: 6,
    Load.leave_an_answer: 6, Load.embed: 12, Load.rerank: 6, Load.ask: 8, Load.look_around: 3, Load.add: 8,
    Load.delete: 2, Load.find: 4, Load.send_garbage: 8, Load.speak_no_http: 3, Load.send_much: 1,
    Load.send_a_large_file: 1, Load.use_a_wrong_key: 3,
}  # fmt: skip
