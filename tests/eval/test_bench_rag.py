from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gritkit.errors import GritkitError, InputError
from gritkit_eval.bench import rag
from gritkit_eval.bench.harness import Timing
from gritkit_eval.bench.rag import FULL, Check, Report, Row, Settings, lengths
from gritkit_eval.bench.rag_material import Case, make
from gritkit_eval.bench.rag_report import plot, report
from gritkit_eval.bench.rag_store import CodecRow, LoadRow, codecs, cold, in_memory, load_rates
from tests.models import grit_model

ONE, MANY = Case(1, 256), Case(4, 4096)


def made(**changes: object) -> Report:
    rows = [
        Row(ONE, FULL[0], "", (0.4, 0.5, 0.6)),
        Row(ONE, FULL[1], "", (0.3, 0.2, 0.4)),
        Row(ONE, "cached, warm", "int8", (0.03, 0.02, 0.01), 0.004),
        Row(ONE, "cached, cold disk", "int8", (0.04, 0.05, 0.06), 0.02),
        Row(ONE, "cached, on the device", "int8", (0.01, 0.01, 0.01), 0.0),
    ]
    timing = Timing((0.1, 0.2, 0.4))
    return dataclasses.replace(
        Report(
            Settings(sizes=(256,)),
            28_000_000,
            {"torch": "2"},
            rows,
            [Check(ONE, "exact", 1e-7, True), Check(ONE, "int4", 2e-2, False)],
            [LoadRow(8.0, True, timing, Timing((0.05, 0.1, 0.2)))],
            [CodecRow("int8", 2112.0, 5e-3, 4e-3, 300.0, 900.0)],
            "a model",
        ),
        **changes,
    )


def test_lengths_are_numbers_by_comma() -> None:
    assert lengths("256,1024") == [256, 1024]
    for text in ("", "a", "256,", "8"):
        with pytest.raises(InputError, match="sizes="):
            lengths(text)


def test_cases_are_the_sizes_and_one_of_several_documents() -> None:
    settings = Settings(sizes=(256, 16384), rounds=7)
    assert [case.name for case in settings.cases] == ["256", "16,384", "4 x 1,024"]
    assert [settings.full_rounds(case) for case in settings.cases] == [7, 2, 3]
    assert Settings(sizes=(256,), num_documents=1).cases == [ONE]


def test_ratios_are_to_the_faster_of_the_ways_that_read_the_documents() -> None:
    one = made()
    assert one.faster_full(ONE).way == FULL[1]
    assert one.ratio(one.rows[2]) == pytest.approx(15)
    assert one.ratio(one.rows[0]) == pytest.approx(0.6)


def test_the_section_has_all_figures_and_a_plot_lies_beside_it(tmp_path: Path) -> None:
    text = report(made())
    assert "| 256 | cached, warm | int8 | 20.0 (10.0 - 30.0) | 4.0 | 15.00x |" in text
    assert "| 256 | transformers, one pass |  | 300.0 (200.0 - 400.0) |  |  |" in text
    assert "| 8 MB | cold | 160 | 320 | 50% |" in text
    assert "| int8 | 2,112 | 5.0e-03 | 4.0e-03 | 300 | 900 |" in text
    assert "| 256 | int4 | 2.0e-02 | another |" in text
    drawn = plot(made(), tmp_path / "RESULTS.md")
    assert drawn.read_bytes().startswith(b"\x89PNG")
    (named,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert tmp_path / named == drawn


def test_documents_and_question_have_exactly_the_tokens_asked_for(tmp_path: Path) -> None:
    cases = [Case(1, 64), Case(2, 96)]
    material = make(tmp_path / "model", cases, question_tokens=24, shape="tiny")
    from gritkit import GritModel

    model = GritModel.from_pretrained(tmp_path / "model")
    assert len(model.tokens.question_prompt(material.question)) == 24
    texts = material.documents
    assert {name: [len(x) for x in model.tokens.to_embed(texts[name], "passage", None, 512, truncate=False)]
            for name in texts} == {"64": [64], "2 x 48": [48, 48]}  # fmt: skip
    assert len({text for some in texts.values() for text in some}) == 3
    with pytest.raises(InputError, match="size='huge'"):
        make(tmp_path / "other", cases, question_tokens=24, shape="huge")


def test_a_cold_file_is_one_that_memory_has_no_page_of(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    path.read_bytes()
    assert in_memory(path) == 1
    cold([path])
    assert in_memory(path) == 0
    with path.open("rb") as file:
        os.pread(file.fileno(), 4096, 0)
    assert 0 < in_memory(path) <= 1


def test_a_file_system_in_memory_is_refused() -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("no file system in memory here")
    path = shm / f"gritkit-{os.getpid()}"
    try:
        path.write_bytes(b"x" * 8192)
        with pytest.raises(GritkitError, match="stay in memory"):
            cold([path])
    finally:
        path.unlink(missing_ok=True)


def test_load_rates_have_a_row_for_cold_and_one_for_warm(tmp_path: Path) -> None:
    rows = load_rates(tmp_path, 2, (0.1,))
    assert [row.cold for row in rows] == [True, False]
    assert all(row.rate(row.plain) > 0 and row.share > 0 for row in rows)
    assert LoadRow(8.0, True, Timing((0.1,)), Timing((0.05,))).share == 0.5


def test_codecs_lose_what_they_leave_out() -> None:
    model = grit_model("llama")
    rows = {row.codec: row for row in codecs(model, "a fox and a dog", num_tokens=64, rounds=1)}
    _, (document,) = model.read(["a fox and a dog"])
    bf16 = torch.cat([key.flatten() for key in document.keys])
    wanted = float((bf16.bfloat16().double() - bf16.double()).norm() / bf16.double().norm())
    assert rows["exact"].key_error == rows["exact"].value_error == 0
    assert rows["bf16"].key_error == pytest.approx(wanted)
    assert 0 < rows["bf16"].value_error < rows["int8"].value_error < rows["int4"].value_error < 0.3
    assert [rows[name].bytes_per_token for name in ("exact", "bf16", "int8", "int4")] == [8192, 4096, 2112, 1216]


@pytest.mark.slow
def test_the_whole_benchmark_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes. Then the same with a tolerance that nothing meets: no figure may come of it."""
    settings = Settings(
        sizes=(64,), num_documents=2, several=96, question_tokens=24, rounds=2, size="tiny", block_mb=(0.1,),
        codec_tokens=64, folder=tmp_path,
    )  # fmt: skip
    report_of = rag.run(settings)
    ways = {(row.case.name, row.way) for row in report_of.rows}
    assert {way for case, way in ways if case == "64"} >= {*FULL, "cached, warm", "cached, cold disk", "prefix"}
    assert ("2 x 48", rag._LINK) in ways
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in report_of.rows)
    assert {check.codec: check.error < 1e-5 for check in report_of.checks} == {
        "exact": True, "int8": False, "int4": False,
    }  # fmt: skip
    assert np.isfinite([row.median for row in report_of.rows]).all()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(rag, "TOLERANCE", 0.0)
    with pytest.raises(GritkitError, match="no figure counts"):
        rag.run(settings)
