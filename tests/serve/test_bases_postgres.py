"""A server whose knowledge base is in PostgreSQL, over HTTP, against the library on the same database."""

from __future__ import annotations

from urllib.parse import urlsplit

from gritkit.rag import Rag
from gritkit_serve.bases import Bases
from gritkit_serve.service import Service
from tests.models import TEXTS, grit_model
from tests.serve.serving import serving


def test_a_database_is_the_one_base(postgres_url: str) -> None:
    model = grit_model("qwen3", prompt_format="grit")

    def prepare(service: Service) -> None:
        service.bases = Bases(postgres_url, service.engine, settings=service.settings)

    with serving(model, prepare=prepare) as server, server.client() as client:
        listed = client.get("/v1/kb").json()
        (name,) = [one["name"] for one in listed["data"]]
        assert listed["fixed"]
        assert name == urlsplit(postgres_url).path.strip("/")
        documents = [{"id": str(number), "text": text} for number, text in enumerate(TEXTS)]
        added = client.post(f"/v1/kb/{name}/documents", json={"documents": documents})
        assert added.json()["added"] == len(TEXTS)
        found = client.post(f"/v1/kb/{name}/search", json={"query": TEXTS[0], "top_k": 3}).json()["data"]
        answer = client.post(f"/v1/kb/{name}/ask", json={"question": TEXTS[2], "max_tokens": 8}).json()
        assert client.post("/v1/kb", json={"name": "other"}).status_code == 403
        assert client.delete(f"/v1/kb/{name}").status_code == 403
        assert client.get("/v1/kb/other").status_code == 404
    with Rag.open(postgres_url, model) as rag:
        assert len(rag) == len(TEXTS)
        assert [hit.id for hit in rag.search(TEXTS[0], top_k=3)] == [hit["id"] for hit in found]
        assert rag.ask(TEXTS[2], max_new_tokens=8).text == answer["text"]


def test_a_database_that_is_not_there_is_told_without_its_address() -> None:
    address = "postgresql://me:s3cret@127.0.0.1:1/notes?connect_timeout=2"

    def prepare(service: Service) -> None:
        service.bases = Bases(address, service.engine, settings=service.settings)

    with serving(grit_model("qwen3"), prepare=prepare) as server, server.client() as client:
        answer = client.post("/v1/kb/notes/search", json={"query": "beavers"})
        assert answer.status_code == 409
        assert "s3cret" not in answer.text
        assert "127.0.0.1" not in answer.json()["error"]["message"]
