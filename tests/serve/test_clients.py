"""Real clients of the OpenAI API against a real server: what a user has to write for each is in serve/CLIENTS.md."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, Field

from gritkit.model import GritModel
from gritkit_serve.settings import Settings
from tests.models import TEXTS, grit_model
from tests.serve.serving import PATIENCE_S, Running, serving

openai = pytest.importorskip("openai")

KEY = "sk-a-key-of-a-test"
USER: Any = [{"role": "user", "content": TEXTS[0]}]


class Fox(BaseModel):
    """What the model is to fill in."""

    colour: str = Field(max_length=5)
    quick: bool


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    """A server with an API key, as clients expect one."""
    model = grit_model("qwen3", prompt_format="grit")
    with serving(model, settings=Settings(api_keys=(KEY,))) as running:
        yield running


@pytest.fixture(scope="module")
def model(keyed: Running) -> GritModel:
    return keyed.service.model


@pytest.fixture(scope="module")
def base_url(keyed: Running) -> str:
    return f"{keyed.url}/v1"


# -- the official client -----------------------------------------------------------------------------------------------


@pytest.fixture
def client(base_url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=base_url, api_key=KEY, timeout=PATIENCE_S, max_retries=0) as client:
        yield client


def test_openai_chats(client: Any, model: GritModel) -> None:
    expected = model.chat(USER, max_new_tokens=8)
    answer = client.chat.completions.create(model="tiny", messages=USER, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    again = [*USER, answer.choices[0].message, {"role": "user", "content": "and?"}]
    assert client.chat.completions.create(model="tiny", messages=again, max_completion_tokens=2).choices


def test_openai_streams(client: Any, model: GritModel) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=8, temperature=0, stream=True, logprobs=True, top_logprobs=1,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == model.chat(USER, max_new_tokens=8).text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert sum(len(c.choices[0].logprobs.content) for c in chunks if c.choices[0].logprobs) == 8
    assert last.usage.completion_tokens == 8
    with client.chat.completions.stream(
        model="tiny", messages=USER, max_tokens=100, temperature=0, response_format=Fox
    ) as events:
        kinds = {event.type for event in events}
        assert isinstance(events.get_final_completion().choices[0].message.parsed, Fox)
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_openai_leaves_a_stream(client: Any, keyed: Running) -> None:
    stream = client.chat.completions.create(model="tiny", messages=USER, max_tokens=400, temperature=0, stream=True)
    assert next(iter(stream)).choices
    stream.close()
    answer = client.chat.completions.create(model="tiny", messages=USER, max_tokens=2)
    assert answer.usage.completion_tokens <= 2


def test_openai_parses_json_into_models(client: Any) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=USER, max_tokens=100, temperature=0, response_format=Fox
    )
    fox = answer.choices[0].message.parsed
    assert isinstance(fox, Fox)
    assert len(fox.colour) <= 5


def test_openai_completes(client: Any, model: GritModel) -> None:
    answer = client.completions.create(model="tiny", prompt=TEXTS[:2], max_tokens=4, temperature=0, logprobs=1)
    assert [choice.text for choice in answer.choices] == [
        one.text for one in model.complete_batch(TEXTS[:2], max_new_tokens=4)
    ]
    assert len(answer.choices[0].logprobs.tokens) == 4


def test_openai_embeds_in_base64_unasked(client: Any, model: GritModel) -> None:
    answer = client.embeddings.create(model="tiny", input=list(TEXTS))
    np.testing.assert_allclose([one.embedding for one in answer.data], model.embed(TEXTS), atol=2e-6)
    assert answer.usage.prompt_tokens > 0
    floats = client.embeddings.create(model="tiny", input=list(TEXTS), encoding_format="float")
    np.testing.assert_allclose(
        [one.embedding for one in floats.data], [one.embedding for one in answer.data], atol=2e-6
    )
    cut = client.embeddings.create(
        model="tiny", input=TEXTS[0], dimensions=8, extra_body={"input_type": "query", "instruction": "find it"}
    )
    expected = model.embed(TEXTS[0], role="query", instruction="find it", dim=8)
    np.testing.assert_allclose(cut.data[0].embedding, expected, atol=2e-6)


def test_openai_lists_models(client: Any) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "gritkit"


def test_openai_raises_its_own_errors(client: Any, base_url: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=USER)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=USER, presence_penalty=1.0)
    assert bad.value.param == "presence_penalty"
    assert "use repetition_penalty" in bad.value.message
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=USER, extra_body={"guided_regex": "a"})
    with (
        openai.OpenAI(base_url=base_url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_openai_answers_many_at_once(base_url: str, model: GritModel) -> None:
    expected = [model.chat([{"role": "user", "content": text}], max_new_tokens=6).text for text in TEXTS]

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, timeout=PATIENCE_S, max_retries=0) as client:

            async def chat(text: str, stream: bool) -> str:
                messages = [{"role": "user", "content": text}]
                options: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0, "messages": messages}
                if not stream:
                    answer = await client.chat.completions.create(**options)
                    return str(answer.choices[0].message.content)
                chunks = await client.chat.completions.create(**options, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            async def embed() -> None:
                answer = await client.embeddings.create(model="tiny", input=list(TEXTS))
                np.testing.assert_allclose([one.embedding for one in answer.data], model.embed(TEXTS), atol=2e-6)

            chats = [chat(text, stream) for text in TEXTS for stream in (True, False)]
            *texts, _, _ = await asyncio.gather(*chats, embed(), embed())
            assert texts == [text for text in expected for _ in range(2)]

    asyncio.run(ask())


# -- what is built on it -----------------------------------------------------------------------------------------------


def test_langchain(base_url: str, model: GritModel) -> None:
    langchain = pytest.importorskip("langchain_openai")
    options: dict[str, Any] = {"model": "tiny", "base_url": base_url, "api_key": KEY, "max_retries": 0}
    chat = langchain.ChatOpenAI(**options, temperature=0, max_tokens=8)
    expected = model.chat(USER, max_new_tokens=8)
    answer = chat.invoke(TEXTS[0])
    assert answer.content == expected.text
    assert answer.usage_metadata["input_tokens"] == expected.usage.prompt_tokens
    assert "".join(chunk.content for chunk in chat.stream(TEXTS[0])) == expected.text
    assert [one.content for one in chat.batch([TEXTS[0], TEXTS[0]])] == [expected.text] * 2
    fox = langchain.ChatOpenAI(**options, temperature=0, max_tokens=100).with_structured_output(
        Fox, method="json_schema"
    )
    assert isinstance(fox.invoke(TEXTS[0]), Fox)

    embeddings = langchain.OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    np.testing.assert_allclose(embeddings.embed_documents(list(TEXTS)), model.embed(TEXTS), atol=2e-6)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), model.embed(TEXTS[0]), atol=2e-6)


def test_langchain_that_sends_another_tokenizers_ids_is_told_the_setting(client: Any) -> None:
    """What OpenAIEmbeddings sends unless it is told not to; tiktoken's tables cannot be had without a network."""
    with pytest.raises(openai.BadRequestError, match=r"OpenAIEmbeddings\(check_embedding_ctx_length=False\)"):
        client.embeddings.create(model="tiny", input=[[1820, 4062, 14198, 39935]], encoding_format="base64")


def test_llama_index(base_url: str, model: GritModel) -> None:
    llms = pytest.importorskip("llama_index.llms.openai_like")
    embeddings = pytest.importorskip("llama_index.embeddings.openai_like")
    from llama_index.core.llms import ChatMessage

    options: dict[str, Any] = {"api_base": base_url, "api_key": KEY, "max_retries": 0}
    chatting = llms.OpenAILike(model="tiny", is_chat_model=True, temperature=0, max_tokens=8, **options)
    expected = model.chat(USER, max_new_tokens=8).text
    messages = [ChatMessage(role="user", content=TEXTS[0])]
    assert chatting.chat(messages).message.content == expected
    assert "".join(chunk.delta or "" for chunk in chatting.stream_chat(messages)) == expected
    writing = llms.OpenAILike(model="tiny", is_chat_model=False, temperature=0, max_tokens=8, **options)
    assert writing.complete(TEXTS[0]).text == model.complete(TEXTS[0], max_new_tokens=8).text

    embedding = embeddings.OpenAILikeEmbedding(model_name="tiny", **options)
    texts = [text.replace("\n", " ") for text in TEXTS]  # as this client does
    np.testing.assert_allclose(embedding.get_text_embedding_batch(texts), model.embed(texts), atol=2e-6)
    np.testing.assert_allclose(embedding.get_query_embedding(TEXTS[0]), model.embed(TEXTS[0]), atol=2e-6)


# -- curl --------------------------------------------------------------------------------------------------------------


def curl(base_url: str, path: str, body: dict[str, Any], *options: str) -> str:
    done = subprocess.run(
        [
            "curl", "--silent", "--show-error", "--max-time", str(PATIENCE_S), "--noproxy", "*", *options,
            f"{base_url}{path}", "-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json",
            "-d", json.dumps(body),
        ],
        capture_output=True, text=True, check=True, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(base_url: str, model: GritModel) -> None:
    expected = model.chat(USER, max_new_tokens=8).text
    options = {"messages": USER, "max_tokens": 8, "temperature": 0}
    answer = json.loads(curl(base_url, "/chat/completions", options))
    assert answer["choices"][0]["message"]["content"] == expected
    stream = curl(base_url, "/chat/completions", {**options, "stream": True}, "--no-buffer")
    *events, done = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert done == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events) == expected
    embedded = json.loads(curl(base_url, "/embeddings", {"input": TEXTS[0]}))
    np.testing.assert_allclose(embedded["data"][0]["embedding"], model.embed(TEXTS[0]), atol=2e-6)
    ranked = json.loads(curl(base_url, "/rerank", {"query": TEXTS[0], "documents": list(TEXTS)}))
    assert ranked["results"][0]["index"] == model.rerank(TEXTS[0], TEXTS)[0].index


# -- the page about them -----------------------------------------------------------------------------------------------


PAGE = (Path(__file__).parents[2] / "serve" / "CLIENTS.md").read_text("utf-8")
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[code.split()[1] for _, code in BLOCKS])
def test_what_the_page_shows_works(language: str, code: str, keyed: Running) -> None:
    here = code.replace("localhost:8000", f"127.0.0.1:{keyed.port}").replace("KEY", KEY).replace("MODEL", "tiny")
    here = here.replace("64", "8")
    if language == "python":
        exec(compile(here, "CLIENTS.md", "exec"), {"__name__": "page"})
        return
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(["sh", "-e", "-c", here], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert "data: [DONE]" in done.stdout
    assert '"relevance_score"' in done.stdout
