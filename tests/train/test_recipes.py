from __future__ import annotations

import gzip
import inspect
import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gritkit.model import GritModel
from tests.models import config_of, grit_model, tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
COMMON = {"model": str, "data": str, "output": str, "evaluation": str | None, "max_steps": int, "learning_rate": float}
PAIRS = {"embedding_batch_size": int}
CHATS = {"generative_batch_size": int}
REST = {"max_length": int, "bf16": bool, "recompute": bool, "save_steps": int, "seed": int, "resume": bool}
LORA = {"r": int, "alpha": float, "dropout": float}
OPTIONS: dict[str, dict[str, Any]] = {
    "grit": COMMON | PAIRS | CHATS | REST,
    "embedding_only": COMMON | PAIRS | REST,
    "generation_only": COMMON | CHATS | REST,
    "grit_causal": COMMON | PAIRS | CHATS | REST,
    "grit_lora": COMMON | PAIRS | CHATS | REST | LORA,
    "grit_qlora": COMMON | PAIRS | CHATS | REST | LORA,
    "grit_rag": COMMON | PAIRS | CHATS | {"num_documents": int} | REST,
}


def recipe(name: str) -> Any:
    return runpy.run_path(str(RECIPES / f"{name}.py"))["main"]


@pytest.mark.parametrize("name", OPTIONS)
def test_options_stay_few_and_plain(name: str) -> None:
    """A new option is a decision, so it is made here too."""
    signature = inspect.signature(recipe(name), eval_str=True)
    assert {option.name: option.annotation for option in signature.parameters.values()} == OPTIONS[name]
    assert all(option.kind is option.KEYWORD_ONLY for option in signature.parameters.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_recipes_run_end_to_end(name: str, tmp_path: Path) -> None:
    if name == "grit_qlora":
        pytest.importorskip("bitsandbytes")
        wide = config_of("llama", hidden_size=128, intermediate_size=256, head_dim=32)  # 4-bit blocks are of 64 weights
        torch.manual_seed(0)
        start = GritModel.from_parts(AutoModelForCausalLM.from_config(wide), tokenizer())
    else:
        start = grit_model("mistral_window", prompt_format="plain")
    start.save_pretrained(tmp_path / "start")
    data = tmp_path / "data"
    data.mkdir()
    pairs: list[dict[str, Any]] = [{"query": f"q {i}", "pos": [f"p {i}"], "neg": [f"n {i}"]} for i in range(6)]
    if name == "grit_rag":
        pairs = [{**pair, "answer": f"it is {i}"} for i, pair in enumerate(pairs)]
    (data / "a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (data / "b.jsonl").write_text(json.dumps({"text": ["hello", "there"]}))
    run = tmp_path / "run"
    sizes = {"embedding_batch_size": 4, "generative_batch_size": 2}
    options = {option: value for option, value in sizes.items() if option in OPTIONS[name]}
    options |= {"model": str(tmp_path / "start"), "data": str(data), "output": str(run), "bf16": False}
    options |= {"learning_rate": 1e-3, "recompute": True, "evaluation": str(data)}
    recipe(name)(max_steps=2, save_steps=2, **options)
    written = ["adapter"] if "lora" in name else []
    assert sorted(file.name for file in run.iterdir()) == [*written, "checkpoint-2", "losses.png", "model"]
    saved = GritModel.from_pretrained(run / "model", device="cpu")
    assert saved.embedding_config.prompt_format == "grit"
    causal = name in ("generation_only", "grit_causal")
    assert saved.embedding_config.embedding_attention == ("causal" if causal else "bidirectional")
    recipe(name)(max_steps=3, resume=True, **options)
    log = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    seen = {key for entry in log for key in entry}
    assert ("loss_contrastive" in seen) == ("embedding_batch_size" in options)
    assert ("loss_next_token" in seen) == ("generative_batch_size" in options)
    assert "eval_ndcg_at_10" in seen


def test_the_comparison_tables_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grit_model("llama").save_pretrained(tmp_path / "start")
    data = tmp_path / "data"
    data.mkdir()
    pairs = [{"query": f"q {i}", "pos": [f"p {i}"], "neg": [f"n {i}"]} for i in range(6)]
    (data / "a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (data / "b.jsonl").write_text("\n".join(json.dumps({"text": ["hello", f"there {i}"]}) for i in range(4)))
    recipe("compare")(
        model=str(tmp_path / "start"), data=str(data), evaluation=str(data), output=str(tmp_path / "out"), seeds=2,
        max_steps=2, embedding_batch_size=4, generative_batch_size=2, bf16=False,
    )  # fmt: skip
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in table.splitlines()]
    assert rows == ["run", "---", "before", "unified", "embedding only", "generation only"]
    assert all(line.count("±") == (0 if "before" in line else 3) for line in table.splitlines()[2:])


def asked(shared: Path, folder: Path) -> Path:
    """HotpotQA's questions as records with an answer: supporting passages are positives, the others distract."""
    folder.mkdir()
    rows = []
    with gzip.open(shared / "data/rag/hotpotqa_mini/qa.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, 12):
            row = json.loads(line)
            passages = [[p["text"][:200] for p in row["passages"] if bool(p["gold"]) is gold] for gold in (True, False)]
            given = {"query": row["question"][:60], "pos": passages[0], "neg": passages[1], "answer": row["answer"]}
            rows.append(json.dumps(given))
    (folder / "hotpot.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "grit_qlora"])
def test_recipes_run_on_real_data_and_a_real_decoder(name: str, shared: Path, tmp_path: Path) -> None:
    toy = shared / "data/contrastive/gritlm_toy"
    data = asked(shared, tmp_path / "asked") if name == "grit_rag" else toy
    sizes = {"embedding_batch_size": 4, "generative_batch_size": 2, "num_documents": 2}
    options = {option: value for option, value in sizes.items() if option in OPTIONS[name]}
    recipe(name)(
        model=str(shared / "models/stories260K-hf"), data=str(data), output=str(tmp_path / "run"), max_steps=2,
        bf16=False, learning_rate=1e-3, **options,
    )  # fmt: skip
    model = GritModel.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert model.embed("a text").shape == (64,)
    assert model.complete("Once upon a time", max_new_tokens=4).text
