from __future__ import annotations

import base64
import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit import GritModel
from gritkit.errors import GritkitError, InputError
from gritkit_eval.bench import serve
from gritkit_eval.bench.harness import WORKERS, Timing
from gritkit_eval.bench.serve_contest import Settings, by_client
from gritkit_eval.bench.serve_figures import (
    AskRow,
    ChatRow,
    EmbedRow,
    GapRow,
    MemoryRow,
    Spread,
    chat_row,
    gap_row,
    is_same_text,
    vectors_of,
)
from gritkit_eval.bench.serve_material import make
from gritkit_eval.bench.serve_report import as_json, report_section, targets
from gritkit_eval.bench.serve_servers import Memory, Recipe, Server, memory_of, versions_of

pytest.importorskip("httpx")
pytest.importorskip("fastapi")


# -- the same answers --------------------------------------------------------------------------------------------------

EXPECTED = [(" a", 2.0), (" fox", 1e-5), (" ran", 3.0)]


def test_an_answer_may_leave_the_librarys_at_a_near_tie_alone() -> None:
    assert is_same_text(" a fox ran", EXPECTED, 1e-3)
    assert not is_same_text(" a dog ate", EXPECTED, 1e-3)
    with pytest.raises(GritkitError, match=r"leaves the library's at token 0, which was 2\.0e\+00 nats ahead"):
        is_same_text(" the fox ran", EXPECTED, 1e-3)
    with pytest.raises(GritkitError, match="token 2"):
        is_same_text(" a fox", EXPECTED, 1e-3)
    with pytest.raises(GritkitError, match="goes on after"):
        is_same_text(" a fox ran away", EXPECTED, 1e-3)


def test_vectors_come_out_of_base64() -> None:
    vectors = np.arange(6, dtype="<f4").reshape(3, 2)
    coded = [base64.b64encode(one.tobytes()).decode() for one in vectors]
    assert (vectors_of([{"vectors": coded[:2]}, {"vectors": coded[2:]}]) == vectors).all()


def test_answers_are_matched_in_the_order_of_the_clients() -> None:
    assert by_client([0, 1, 2, 3, 4], 2) == [0, 2, 4, 1, 3]


# -- figures -----------------------------------------------------------------------------------------------------------


def test_the_first_text_and_the_next_ones_are_timed_apart() -> None:
    request = {"sent": 1.0, "times": [1.5, 1.6, 1.9], "text": "abc", "tokens": 3}
    row = chat_row("gritkit", 1, [{"seconds": 2.0, "requests": [request]}] * 2, 3)
    assert (row.throughput, row.requests) == (1.5, 1)
    assert row.first == Spread(0.5, 0.5)
    assert row.between.p50 == pytest.approx(0.2)
    with pytest.raises(GritkitError, match="3 tokens instead of 4"):
        chat_row("gritkit", 1, [{"seconds": 2.0, "requests": [request]}], 4)


def gap_round(sent: float = 1.25, first: float = 1.95, last: float = 2.4) -> dict[str, Any]:
    return {
        "alone": {"sent": 0.0, "times": [0.8]},
        "running": {"times": [1.0, 1.1, 1.2, 1.3, 1.7, 1.8, 1.9, last]},
        "beside": {"sent": sent, "times": [first]},
    }


def test_the_longest_gap_is_that_while_the_prompt_is_read() -> None:
    row = gap_row("gritkit", [gap_round()])
    assert row.usual == pytest.approx(0.1)
    assert row.longest == (pytest.approx(0.5),)  # the one after 1.9 overlaps, too
    assert row.ratio == pytest.approx(0.5 / 0.8)
    assert gap_row("gritkit", [gap_round(first=1.85)]).longest == (pytest.approx(0.4),)
    with pytest.raises(GritkitError, match="did not last"):
        gap_row("gritkit", [gap_round(first=2.5)])


def report(**changes: Any) -> serve.Report:
    spread = Spread(0.01, 0.02)

    def chat(server: str, clients: int, *seconds: float) -> ChatRow:
        return ChatRow(server, clients, 8, 100, Timing(seconds), spread, spread)

    def embed(server: str, *seconds: float) -> EmbedRow:
        return EmbedRow(server, 8, 1, 100, Timing(seconds), spread)

    made = serve.Report(
        settings=Settings(texts=(1,)),
        num_parameters=9,
        long_tokens=998,
        versions={"torch": "2"},
        skipped={},
        batching=["--cb-num-blocks", "4"],
        near_ties={"gritkit": 0, "transformers serve": 1},
        num_compared=16,
        difference=2e-7,
        chats=[chat("gritkit", 1, 2.0, 2.0), chat("transformers serve", 1, 1.0, 3.0), chat("gritkit", 8, 1.0, 1.0),
               chat("transformers serve", 8, 9.0, 9.0), chat("continuous", 8, 1.5, 1.5)],
        embeddings=[embed("gritkit", 1.0), embed("sentence-transformers", 1.6)],
        gaps=[GapRow("gritkit", 0.01, (0.1, 0.1), (0.6, 0.4), (0.7, 0.7))],
        memory=[MemoryRow("gritkit: one process, both jobs", Memory(50 << 20, 40 << 20)),
                MemoryRow("transformers serve + sentence-transformers", Memory(100 << 20, 90 << 20)),
                MemoryRow("gritkit: one process, a knowledge base beside", Memory(200 << 20, 90 << 20))],
        asks=[AskRow("gritkit serve", (0.12, 0.11)), AskRow("Rag.stream", (0.1, 0.1))],
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_targets_are_against_every_way_to_serve() -> None:
    found = targets(report())
    figures = [9.0, 1.5, 1.0, None, 5 / 24, 1.6, 0.5, 1.15]
    assert [one.figure for one in found] == [x if x is None else pytest.approx(x) for x in figures]
    assert [one.verdict for one in found] == [
        "reached", "**missed**", "reached", "not measured", "**missed**", "reached", "reached", "**missed**",
    ]  # fmt: skip
    assert found[1].what == "chat throughput at 8 clients, times that of continuous"


def test_without_peers_nothing_is_claimed() -> None:
    alone = report(chats=report().chats[:1], embeddings=[], memory=[], skipped={"transformers serve": "no openai"})
    verdicts = [one.verdict for one in targets(alone)]
    assert verdicts == ["not measured", "not measured", "**missed**", "not measured", "not measured", "**missed**"]
    assert "transformers serve was skipped: no openai." in report_section(alone)


def test_the_section_has_all_figures() -> None:
    text = report_section(report())
    assert "| 8 | continuous | 67 | 67 - 67 | 1.50x as fast | 10.0 ms | 20.0 ms | 10.0 ms | 20.0 ms |" in text
    assert "| 1 | 8 | gritkit | 100 | 100 - 100 |  | 10.0 ms | 20.0 ms |" in text
    assert "| gritkit: one process, both jobs | 50 MiB | 40 MiB |" in text
    assert "(1 of transformers serve's)" in text
    assert "question by question of answers from documents: not the ratios of the medians that stand beside" in text
    assert "| 100 ms (100 - 100) | 600 ms (400 - 600) | 700 ms (700 - 700) | 0.21 |" in text  # of 1/6 and 1/4
    assert json.loads(as_json(report()))["targets"][0]["verdict"] == "reached"


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(InputError, match="dtype='int8'"):
        Settings(dtype="int8")


# -- servers -----------------------------------------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_says_where_it_is_and_is_ended_by_its_own_id() -> None:
    talk = "print('Uvicorn running on http://127.0.0.1:7 (x)'); import time; [print('x' * 999) for _ in range(999)]"
    with Server(Recipe("one", python(f"{talk}; time.sleep(600)"))) as server:
        assert server.url == "http://127.0.0.1:7"
        assert is_there(server.pid)
    assert not is_there(server.pid)


def test_a_server_that_does_not_come_up_is_ended_and_quoted() -> None:
    with pytest.raises(GritkitError, match="one ended before it was ready: no such model"):
        Server(Recipe("one", python("print('no such model')")))
    with pytest.raises(GritkitError, match=r"one was not ready within 0 s"):
        Server(Recipe("one", python("import time; time.sleep(600)")), limit_s=0.1)


def test_what_an_environment_lacks_is_named() -> None:
    found, lacking = versions_of(sys.executable, ("pytest", "no-such-package"))
    assert found == {"pytest": pytest.__version__}
    assert lacking == ["no-such-package"]
    with pytest.raises(GritkitError, match="cannot be run"):
        versions_of("/bin/false", ())


SMAPS = """{start}00-{start}ff r-xp 00000000 08:01 42 /lib/libtorch.so
Rss:                {file} kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
{start}00-{start}ff rw-p 00000000 00:00 0 [heap]
Rss:                {heap} kB
Private_Clean:         0 kB
Private_Dirty:        {heap} kB
Anonymous:            {heap} kB
"""


def test_files_that_processes_share_count_once(tmp_path: Path) -> None:
    for name, file, heap in (("self", 1, 1), ("1", 100, 10), ("2", 80, 20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "smaps").write_text(SMAPS.format(start=f"7{heap:x}", file=file, heap=heap))
    assert memory_of([1], tmp_path) == Memory(110 << 10, 10 << 10)
    assert memory_of([1, 2], tmp_path) == Memory(130 << 10, 30 << 10)
    assert memory_of([1], tmp_path / "elsewhere") is None


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no /proc")
def test_memory_of_this_process_is_between_what_it_owns_and_what_it_maps() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = memory_of([os.getpid()])
    assert found is not None
    assert 0 < found.private <= found.total <= 1.2 * pages * os.sysconf("SC_PAGE_SIZE")


# -- the client --------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(WORKERS))
    return importlib.import_module("serve_client")


def test_events_come_when_their_last_byte_does(client: Any) -> None:
    pieces = [(1.0, b": keep-alive\n\ndata: a\n"), (2.0, b"\nevent: delta\ndata: b\n\ndata: c"), (3.0, b"\n\n")]
    assert list(client.events_of(pieces)) == [(2.0, None, "a"), (2.0, "delta", "b"), (3.0, None, "c")]


def test_a_stream_is_read_after_it_has_come(client: Any) -> None:
    def chunk(**fields: Any) -> bytes:
        return b"data: " + json.dumps({"choices": [], **fields}).encode() + b"\n\n"

    def text(said: str) -> dict[str, Any]:
        return {"choices": [{"delta": {"content": said}}]}

    pieces = [
        (1.0, chunk(choices=[{"delta": {"role": "assistant"}}])), (2.0, chunk(**text("a"))),
        (3.0, chunk(**text("b")) + chunk(usage={"completion_tokens": 2}) + b"data: [DONE]\n\n"),
    ]  # fmt: skip
    assert client.chat_of((0.5, pieces)) == {"sent": 0.5, "times": [2.0, 3.0], "text": "ab", "tokens": 2}
    with pytest.raises(RuntimeError, match="the stream failed"):
        client.chat_of((0.5, [(1.0, b'data: {"error": {"message": "x"}}\n\n')]))


# -- all of it ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_neither_ends_nor_leaves_ascii(tmp_path: Path) -> None:
    material = make(
        tmp_path / "model", size="6M", device="cpu", num_texts=10, long_tokens=200, num_documents=2, document_tokens=40,
        num_questions=3,
    )  # fmt: skip
    model = GritModel.from_pretrained(tmp_path / "model")
    first, second = (next(material.prompts) for _ in range(2))
    for done in model.chat_batch([[{"role": "user", "content": one}] for one in (first, second)], max_new_tokens=40):
        assert (len(done.token_ids), done.text.isascii()) == (40, True)
    assert 190 <= material.long_tokens <= 200
    assert next(material.longs) != next(material.longs)
    sequences = model.tokens.to_embed(material.texts, "passage", None, 999, truncate=False)
    assert list(material.text_tokens) == list(map(len, sequences))
    assert len(material.questions) == 3
    for document, question in zip(material.documents, material.questions, strict=False):
        assert document.endswith(question)


@pytest.mark.slow
def test_the_whole_benchmark_on_a_small_model() -> None:
    """Real servers, real clients, all of the contestants."""
    settings = Settings(
        clients=(2,), rounds=1, least_requests=2, requests=1, answer_tokens=8, texts=(4,), num_texts=16,
        long_tokens=300, running_tokens=100, num_documents=4, document_tokens=60, num_questions=2,
        batch_tokens=(256,), size="6M",
    )  # fmt: skip
    made = serve.run(settings)
    assert [row.server for row in made.chats] == [
        "gritkit", "transformers serve", "transformers serve, continuous batching",
    ]  # fmt: skip
    assert {row.tokens for row in made.chats} == {4 + 8}
    assert [row.server for row in made.embeddings] == [
        "gritkit", "sentence-transformers, in threads", "sentence-transformers, one at a time",
    ]  # fmt: skip
    assert made.difference < 1e-5
    assert [row.server for row in made.gaps] == ["gritkit", "transformers serve, continuous batching"]
    assert len(made.memory) == 4
    assert [len(row.first) for row in made.asks] == [2, 2]
    assert made.skipped == {}
    assert "transformers serve" in report_section(made)
