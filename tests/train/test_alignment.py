from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from gritkit.config import EmbeddingConfig
from gritkit.data import EmbeddingRecord, GenerativeRecord
from gritkit.errors import GritkitError, InputError, MissingExtraError, RecordError
from gritkit.model import GritModel
from gritkit.train import TrainConfig, train
from gritkit.train.adapters import add_lora, load_adapted
from gritkit.train.alignment import Aligned, Keep, align
from tests.distributed import in_processes
from tests.models import TEXTS, config_of, grit_model, language_model, tokenizer

pytest.importorskip("trl")

WORDS = ("fox", "dog", "tabs", "emoji", "lines", "plan", "times", "jumps")
PAIRS = [{"prompt": f"say {word}", "chosen": f"the quick {word}", "rejected": f"lazy {word} {word}"} for word in WORDS]
JUDGED = [
    {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
    for pair in PAIRS
    for name in ("chosen", "rejected")
]
EMBEDDING = [
    EmbeddingRecord.of(["Find", f"question {i} {word}"], [f"{word} answers number {i}"], [f"wrong {i}"])
    for i, word in enumerate(WORDS * 2)
]
KEEP = Keep(EMBEDDING, batch_size=8, temperature=0.1)
BETA = 0.1


def run(
    folder: Path, method: Any = "dpo", data: Any = None, *, model: GritModel | None = None, **given: Any
) -> tuple[GritModel, Aligned]:
    model = model or grit_model("llama", prompt_format="grit")
    data = data or (PAIRS if method == "dpo" else JUDGED)
    quick = {"max_steps": 3, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "per_device_train_batch_size": 16}
    quiet = {"use_cpu": True, "bf16": False, "disable_tqdm": True}
    return model, align(model, method, data, output=folder, **{**quick, **quiet, **given})


def log_probabilities(model: GritModel, name: str, rows: list[dict[str, Any]] = PAIRS) -> torch.Tensor:
    """Of each row's answer, by the plain model of transformers and the tokenizer's own chat template."""
    plain = language_model("llama")
    plain.load_state_dict(model.lm.state_dict())
    result = []
    for row in rows:
        asked = [{"role": "user", "content": row["prompt"]}]
        answered = [*asked, {"role": "assistant", "content": row[name]}]
        texts = [
            str(model.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)),
            str(model.tokenizer.apply_chat_template(answered, tokenize=False)),
        ]
        prompt, ids = (model.tokenizer.encode(text, add_special_tokens=False) for text in texts)
        assert ids[: len(prompt)] == prompt
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        result.append(sum(logits[place - 1, ids[place]] for place in range(len(prompt), len(ids))))
    return torch.stack(result)


def margins(before: GritModel, after: GritModel) -> torch.Tensor:
    """How much more the chosen answers gained than the rejected ones, in nats."""
    gains = [log_probabilities(after, name) - log_probabilities(before, name) for name in ("chosen", "rejected")]
    return gains[0] - gains[1]


# -- the losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, KEEP], ids=["alone", "beside"])
def test_dpo_is_its_formula(keep: Keep | None, tmp_path: Path) -> None:
    """-log sigmoid(beta * margin), over a batch of all pairs: log 2 before the first step, and after three of them."""
    after, short = run(tmp_path / "a", keep=keep)
    margin = margins(grit_model("llama", prompt_format="grit"), after)
    _, long = run(tmp_path / "b", keep=keep, max_steps=4)
    assert short.log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert short.log == [{**entry, "epoch": ours["epoch"]} for entry, ours in zip(long.log[:3], short.log, strict=True)]
    assert margin.min() > 0
    assert long.log[3]["loss"] == pytest.approx(float(-logsigmoid(BETA * margin).mean()), abs=1e-5)
    assert long.log[3]["rewards/margins"] == pytest.approx(float(BETA * margin.mean()), abs=1e-5)
    assert [entry["rewards/margins"] for entry in long.log] == sorted(entry["rewards/margins"] for entry in long.log)
    assert ("loss_contrastive" in long.log[0]) == (keep is not None)


@pytest.mark.parametrize("keep", [None, KEEP], ids=["alone", "beside"])
def test_kto_is_its_formula(keep: Keep | None, tmp_path: Path) -> None:
    """1 - sigmoid(beta * (gain - kl)) for what is desired, 1 - sigmoid(beta * (kl - gain)) for what is not; a half at
    first."""
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    after, short = run(tmp_path / "a", "kto", keep=keep, **weights)
    before = grit_model("llama", prompt_format="grit")
    gain = log_probabilities(after, "completion", JUDGED) - log_probabilities(before, "completion", JUDGED)
    _, long = run(tmp_path / "b", "kto", keep=keep, max_steps=4, **weights)
    assert short.log[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    kl = long.log[3]["kl"]
    desired = torch.tensor([row["label"] for row in JUDGED])
    losses = torch.where(
        desired, 1.5 * (1 - (BETA * (gain - kl)).sigmoid()), 0.5 * (1 - (BETA * (kl - gain)).sigmoid())
    )
    assert long.log[3]["loss"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert gain[desired].mean() > gain[~desired].mean()


def test_kl_of_kto_is_that_of_the_answers_of_others(tmp_path: Path) -> None:
    """In a batch in its shuffled order, each prompt with the answer before it."""
    after, _ = run(tmp_path / "a", "kto", undesirable_weight=0.0)  # all answers gain
    _, long = run(tmp_path / "b", "kto", undesirable_weight=0.0, max_steps=4)
    before = grit_model("llama", prompt_format="grit")
    order = np.random.default_rng(42).permutation(len(JUDGED))
    other = [
        {"prompt": JUDGED[i]["prompt"], "completion": JUDGED[j]["completion"]}
        for i, j in zip(order, [order[-1], *order[:-1]], strict=True)
    ]
    gain = log_probabilities(after, "completion", other) - log_probabilities(before, "completion", other)
    assert gain.mean() > 0.1
    assert long.log[3]["kl"] == pytest.approx(float(gain.mean()), abs=1e-4)


def test_pairs_taken_apart_are_judged_answers(tmp_path: Path) -> None:
    _, apart = run(tmp_path / "a", "kto", PAIRS)
    _, judged = run(tmp_path / "b", "kto")
    assert apart.log == judged.log


def test_a_step_of_many_batches_is_one_of_a_large_one(tmp_path: Path) -> None:
    """The contrastive part is added once, at its full weight, however a step's preferences are cut."""
    whole, _ = run(tmp_path / "a", keep=KEEP, per_device_train_batch_size=8, max_steps=2, weight_decay=0.0)
    parts, log = run(
        tmp_path / "b", keep=KEEP, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=2,
        weight_decay=0.0,
    )  # fmt: skip
    assert len(log.log) == 2
    np.testing.assert_allclose(parts.embed(TEXTS), whole.embed(TEXTS), atol=2e-4)
    halved, _ = run(
        tmp_path / "c", keep=Keep(EMBEDDING, batch_size=8, temperature=0.1, weight=0.25),
        per_device_train_batch_size=8, max_steps=2, weight_decay=0.0,
    )  # fmt: skip
    assert np.abs(halved.embed(TEXTS) - whole.embed(TEXTS)).max() > 2e-3


def share_of_two(folder: Path, given: dict[str, Any]) -> torch.Tensor:
    model, _ = run(folder, per_device_train_batch_size=4, **given)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_processes_are_one_with_their_batches(tmp_path: Path) -> None:
    """Each takes half of the pairs and of the embedding records, whose queries meet the passages of both."""
    sgd = {"optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "learning_rate": 0.05}
    given = {"keep": KEEP, "evaluation": EMBEDDING, **sgd}
    one, aligned = run(tmp_path / "one", **given)
    weights = torch.cat([p.detach().flatten() for p in one.parameters()])
    for found in in_processes(2, share_of_two, tmp_path / "two", given):
        torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-6)
    assert json.loads((tmp_path / "two" / "alignment.json").read_text())["after"] == pytest.approx(aligned.after)
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == ["alignment.json", "model"]


def test_in_bf16_the_losses_are_fp32(tmp_path: Path) -> None:
    _, exact = run(tmp_path / "a", keep=KEEP)
    model, cast = run(tmp_path / "b", keep=KEEP, bf16=True)
    assert model.dtype == torch.float32
    ours, theirs = cast.log[0]["loss_contrastive"], exact.log[0]["loss_contrastive"]
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.02)
    # trl before 1.16 takes the reference's likelihoods in fp32
    assert cast.log[0]["loss"] == pytest.approx(math.log(2), abs=2e-3)


def test_recomputing_changes_nothing_but_memory(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "a", keep=KEEP)
    model, _ = run(tmp_path / "b", keep=KEEP, recompute=True)
    np.testing.assert_allclose(model.embed(TEXTS), plain.embed(TEXTS), atol=1e-5)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


# -- embeddings ------------------------------------------------------------------------------------------------------


def test_the_contrastive_part_keeps_retrieval(tmp_path: Path) -> None:
    """A model that has learned to retrieve, aligned hard: alone it forgets, beside its records it does not."""
    grit_model("llama", prompt_format="grit").save_pretrained(tmp_path / "start")
    start = GritModel.from_pretrained(tmp_path / "start", device="cpu")
    quiet = {"use_cpu": True, "save_strategy": "no", "plot": False, "disable_tqdm": True}
    train(
        start,
        EMBEDDING,
        TrainConfig(
            output_dir=str(tmp_path / "run"), max_steps=30, embedding_batch_size=16, temperature=0.1,
            learning_rate=5e-3, **quiet,
        ),
    )  # fmt: skip
    results = {}
    for name, keep in (("alone", None), ("beside", Keep(EMBEDDING, batch_size=16, temperature=0.1))):
        model = GritModel.from_pretrained(tmp_path / "run" / "model", device="cpu")
        _, results[name] = run(
            tmp_path / name, model=model, keep=keep, evaluation=EMBEDDING, max_steps=20, learning_rate=5e-3
        )
    alone, beside = results["alone"], results["beside"]
    assert alone.before == beside.before
    assert alone.before is not None
    assert alone.after is not None
    assert beside.after is not None
    assert alone.before["ndcg_at_10"] > 0.98
    assert alone.after["ndcg_at_10"] < 0.95
    assert beside.after["ndcg_at_10"] > 0.98
    for result in results.values():
        assert result.log[-1]["rewards/margins"] > 0.5
    told = json.loads((tmp_path / "beside" / "alignment.json").read_text())
    assert told == {"log": beside.log, "before": beside.before, "after": beside.after}


# -- around the run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_what_is_left_is_a_model(method: str, tmp_path: Path) -> None:
    source = grit_model("mistral", prompt_format="grit")
    stated = json.loads(source.config.to_json_string())
    model, _ = run(tmp_path / "run", method, model=source, keep=KEEP)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["alignment.json", "model"]
    assert not {"forward", "_original_forward"} & set(vars(model.lm))
    assert not model.lm.training
    assert json.loads(model.config.to_json_string()) == stated | {"architectures": ["MistralForCausalLM"]}  # saving
    saved = GritModel.from_pretrained(tmp_path / "run" / "model", device="cpu")
    np.testing.assert_allclose(saved.embed(TEXTS), model.embed(TEXTS), atol=1e-6)
    assert saved.fingerprint == model.fingerprint
    assert saved.complete("say", max_new_tokens=4) == model.complete("say", max_new_tokens=4)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_an_adapter_alone_is_aligned_and_then_merged(method: str, tmp_path: Path) -> None:
    model = grit_model("qwen3", prompt_format="grit")
    add_lora(model, r=4, alpha=8)
    keep = Keep(EMBEDDING, batch_size=8, temperature=0.1, weight=0.1)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    _, aligned = run(tmp_path, method, model=model, keep=keep, save=False, max_steps=8, learning_rate=5e-3)
    assert aligned.log[0]["loss"] == pytest.approx(math.log(2) if method == "dpo" else 0.5, abs=1e-6)
    assert aligned.log[-1]["rewards/margins"] > 0.05
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert list(model.lm.peft_config) == ["default"]
    assert not list(tmp_path.iterdir())
    run(tmp_path, method, model=model, max_steps=1)
    saved = GritModel.from_pretrained(tmp_path / "model", device="cpu")
    np.testing.assert_allclose(saved.embed(TEXTS), model.embed(TEXTS), atol=1e-5)


def test_on_a_base_of_four_bits_the_adapter_is_saved(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wide = AutoModelForCausalLM.from_config(config_of("llama", hidden_size=128, intermediate_size=256, head_dim=32))
    GritModel.from_parts(wide, tokenizer(), EmbeddingConfig(prompt_format="grit")).save_pretrained(tmp_path / "base")
    model = GritModel.from_pretrained(tmp_path / "base", device="cpu", quantization="int4", dtype="bfloat16")
    add_lora(model, r=4, alpha=8, dropout=0.0)
    _, aligned = run(tmp_path / "run", model=model, keep=KEEP, max_steps=8, learning_rate=5e-3)
    assert aligned.log[-1]["rewards/margins"] > 0.05
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["adapter", "alignment.json"]
    saved = load_adapted(tmp_path / "run" / "adapter", device="cpu", quantization="int4", dtype="bfloat16")
    np.testing.assert_allclose(saved.embed(TEXTS), model.embed(TEXTS), atol=2e-2)


def test_prompts_of_many_turns_and_answers_that_are_cut(tmp_path: Path) -> None:
    from gritkit.train.alignment import _examples

    model = grit_model("llama", prompt_format="grit")
    turns = [
        {"role": "user", "content": "say fox"},
        {"role": "assistant", "content": "fox"},
        {"role": "user", "content": "again"},
    ]
    (row,) = _examples("dpo", [{"prompt": turns, "chosen": "fox", "rejected": "dog"}], model.tokens, 512)
    assert model.tokenizer.decode(row["prompt_ids"]) == str(
        model.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    )
    assert model.tokenizer.decode(row["chosen_ids"]) == "fox</s>"
    assert model.tokenizer.decode(row["rejected_ids"]) == "dog</s>"
    room = len(row["prompt_ids"]) + 1
    (cut,) = _examples("dpo", [{"prompt": turns, "chosen": "fox", "rejected": "dog"}], model.tokens, room)
    assert (cut["prompt_ids"], cut["chosen_ids"]) == (row["prompt_ids"], row["chosen_ids"][:1])


def test_a_checkpoint_with_a_chat_template_of_its_own(tmp_path: Path) -> None:
    from gritkit.train.alignment import _examples

    own = tokenizer()
    own.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = GritModel.from_parts(language_model("llama"), own)
    (row,) = _examples("kto", [{"prompt": "say fox", "completion": "fox", "label": True}], model.tokens, 512)
    assert own.decode(row["prompt_ids"]) == "[user]say fox[assistant]"
    assert own.decode(row["completion_ids"]) == "fox</s>"
    run(tmp_path, "kto", model=model, max_steps=1)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_every_bad_record_is_named_before_anything_trains(tmp_path: Path) -> None:
    bad = [
        PAIRS[0],
        {"prompt": "say", "chosen": "a"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": "say", "chosen": "a", "rejected": "a"},
        {"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"},
        {"prompt": "say " * 600, "chosen": "a", "rejected": "b"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join([*map(json.dumps, bad), "{torn"]))
    with pytest.raises(RecordError) as caught:
        run(tmp_path / "run", data=str(file))
    for line, message in (
        (2, "rejected is None, not a text with words"),
        (3, "prompt is '', not a text or a list of messages"),
        (4, "chosen and rejected read alike"),
        (5, "message 0 has role 'assistant' out of turn"),
        (6, "tokens long and max_length is 512"),
        (7, "not JSON"),
    ):
        assert any(f"pairs.jsonl:{line}: " in told and message in told for told in str(caught.value).splitlines())
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecordError, match="records:0: label is 'yes', not true or false"):
        run(tmp_path / "run", "kto", [{"prompt": "say", "completion": "a", "label": "yes"}])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"betta": 0.2}, "'betta' is no setting of trl's DPOConfig"),
        ({"precompute_ref_log_probs": False}, "precompute_ref_log_probs=False is not to be set"),
        ({"method": "ppo"}, "method='ppo' is none of 'dpo', 'kto'"),
        ({"method": "kto", "per_device_train_batch_size": 1}, "KTO pairs the prompts of a batch"),
        ({"keep": Keep([GenerativeRecord.of("text to write")])}, "holds records to write, not to embed"),
        ({"data": iter(())}, "data is empty: there is nothing to align with"),
        ({"data": 7}, "data must be a path, a data set's id or records, not int"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_no_weight_is_no_keep() -> None:
    with pytest.raises(InputError, match=r"weight=0\.0 must be above 0"):
        Keep(EMBEDDING, weight=0.0)


def test_without_trl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gritkit\[align\]'"):
        run(tmp_path)


def test_a_contrastive_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(GritkitError, match="the contrastive loss is nan: lower learning_rate"):
        run(tmp_path, keep=KEEP, learning_rate=float("inf"))


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["align_dpo", "align_kto"])
def test_recipes_run_end_to_end(name: str, tmp_path: Path) -> None:
    grit_model("mistral_window", prompt_format="grit").save_pretrained(tmp_path / "start")
    files = {
        "preferences": PAIRS,
        "pairs": [{"query": f"q {i}", "pos": [f"p {i}"], "neg": [f"n {i}"]} for i in range(9)],
    }
    for file, rows in files.items():
        (tmp_path / f"{file}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    embedding = str(tmp_path / "pairs.jsonl")
    runpy.run_path(str(Path(__file__).parents[2] / "recipes" / f"{name}.py"))["main"](
        model=str(tmp_path / "start"), data=str(tmp_path / "preferences.jsonl"), output=str(tmp_path / "run"),
        embedding_data=embedding, evaluation_data=embedding, max_steps=2, batch_size=4, batches_per_step=2,
        embedding_batch_size=4, bf16=False, learning_rate=1e-3,
    )  # fmt: skip
    told = json.loads((tmp_path / "run" / "alignment.json").read_text())
    assert len(told["log"]) == 2
    assert set(told["before"]) == set(told["after"]) >= {"ndcg_at_10", "recall_at_10"}
    saved = GritModel.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert saved.embedding_config.prompt_format == "grit"
