from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gritkit.data import EmbeddingRecord, GenerativeRecord
from gritkit.errors import GritkitError, InputError, RecordError
from gritkit.model import GritModel
from gritkit.train import GritTrainer, TrainConfig, train
from tests.distributed import in_processes
from tests.models import grit_model

PAIRS = [
    EmbeddingRecord.of(["Find", f"question {i}"], [f"answer number {i}", f"other {i}"], [f"wrong {i}"])
    for i in range(30)
]
CHATS = [GenerativeRecord.of([f"say {i}", f"{i} it is, as you wished"]) for i in range(13)]
DATA = [*PAIRS, *CHATS]


def model(**config: Any) -> GritModel:
    return grit_model("mistral_window", prompt_format="grit", **config)


def settings(folder: Path, **given: Any) -> TrainConfig:
    small = {"max_steps": 4, "embedding_batch_size": 8, "generative_batch_size": 4, "learning_rate": 1e-3}
    quiet = {"use_cpu": True, "save_strategy": "no", "plot": False, "warmup_steps": 0}
    return TrainConfig(output_dir=str(folder), **{**small, **quiet, **given})


def losses(trainer: GritTrainer) -> list[tuple[float, ...]]:
    kinds = ("loss", "loss_contrastive", "loss_next_token")
    return [tuple(entry[k] for k in kinds if k in entry) for entry in trainer.state.log_history if "loss" in entry]


def test_it_learns_both_and_leaves_a_model_and_curves(tmp_path: Path) -> None:
    config = settings(tmp_path / "run", max_steps=12, learning_rate=3e-3, temperature=0.1, plot=True)
    trainer = train(model(), DATA, config)
    first, *_, last = losses(trainer)
    assert last[1] < 0.7 * first[1]
    assert last[2] < 0.9 * first[2]
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(entry["loss_contrastive"] + entry["loss_next_token"], rel=1e-5)
    assert entry["tokens_per_second"] > 0
    assert entry["epoch"] == pytest.approx(1 / 4)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["losses.png", "model"]
    trained = trainer.model
    assert isinstance(trained, GritModel)
    assert not trained.training
    saved = GritModel.from_pretrained(tmp_path / "run" / "model", device="cpu")
    np.testing.assert_allclose(saved.embed(["a text"]), trained.embed(["a text"]), atol=1e-6)
    assert saved.config.use_cache


@pytest.mark.parametrize(("data", "kinds"), [(PAIRS, 2), (CHATS, 2)], ids=["embedding", "generation"])
def test_one_kind_alone(tmp_path: Path, data: list[Any], kinds: int) -> None:
    trainer = train(model(), data, settings(tmp_path), save=False)
    assert [len(step) for step in losses(trainer)] == [kinds] * 4
    assert not list(tmp_path.iterdir())


def test_the_step_is_the_one_of_plain_adamw(tmp_path: Path) -> None:
    """Nothing of the loop around the step rescales, averages or slices."""
    config = settings(tmp_path, max_steps=3, lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0)
    trained = model()
    trainer = GritTrainer(trained, config, DATA)
    trainer.train()
    plain = model().train()
    other = GritTrainer(plain, config, DATA)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    batches = iter(other.get_train_dataloader())
    for _ in range(3):
        other.compute_loss(plain, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(trained.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resume_gives_the_losses_of_the_undisturbed_run(tmp_path: Path, dropout: float) -> None:
    def fresh() -> GritModel:
        made = model()
        for module in made.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = dropout
        return made

    config = {"max_steps": 7, "save_strategy": "steps", "save_steps": 3}
    whole = train(fresh(), DATA, settings(tmp_path / "whole", **config), save=False)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    again = train(fresh(), DATA, settings(tmp_path / "again", **config), resume=str(checkpoint), save=False)
    assert losses(again) == losses(whole)
    assert len(losses(whole)) == 7
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_takes_the_newest_and_refuses_what_would_not_continue(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    train(model(), DATA, settings(tmp_path, max_steps=4, **saving), save=False)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-4" / "sampler.json").read_text())
    assert state["global_step"] == 4
    with pytest.raises(InputError, match="is of an earlier run"):
        train(model(), DATA, settings(tmp_path, **saving))
    with pytest.raises(InputError, match="has done 4 of 4 steps: raise max_steps"):
        train(model(), DATA, settings(tmp_path, **saving), resume=True)
    with pytest.raises(InputError, match="embedding_batch_size was 8 and is 6"):
        train(model(), DATA, settings(tmp_path, max_steps=6, embedding_batch_size=6, **saving), resume=True)
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        train(model(), DATA, settings(tmp_path, **saving), resume=str(tmp_path / "none"))
    trainer = train(model(), DATA, settings(tmp_path, max_steps=6, **saving), resume=True, save=False)
    assert trainer.state.global_step == 6
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint-6"]


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: GritTrainer, folder: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(GritTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match="no space"):
        train(model(), DATA, settings(tmp_path, save_strategy="steps", save_steps=2))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_a_model_folder(tmp_path: Path) -> None:
    train(model(), DATA, settings(tmp_path, max_steps=2, save_strategy="steps", save_steps=2), save=False)
    saved = GritModel.from_pretrained(tmp_path / "checkpoint-2", device="cpu")
    assert saved.embedding_config.prompt_format == "grit"


def test_bf16_autocast_trains_with_fp32_losses(tmp_path: Path) -> None:
    exact = losses(train(model(), DATA, settings(tmp_path / "a"), save=False))
    trainer = train(model(), DATA, settings(tmp_path / "b", bf16=True), save=False)
    assert trainer.model.dtype == torch.float32
    cast = losses(trainer)
    assert cast != exact
    np.testing.assert_allclose(cast[0], exact[0], rtol=0.05)


def test_epochs_become_steps(tmp_path: Path) -> None:
    trainer = train(model(), DATA, settings(tmp_path, max_steps=-1, num_train_epochs=2, logging_steps=3), save=False)
    assert trainer.state.global_step == 8  # 30 rows in batches of 8, twice


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    broken = model()
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    with pytest.raises(GritkitError, match=r"the loss is nan at step 1 .*its batch is in .*failed-step-1-process-0"):
        train(broken, DATA, settings(tmp_path))
    assert "question" in (tmp_path / "failed-step-1-process-0" / "batch.json").read_text()


def test_the_gradients_of_both_halves_are_measured_every_few_steps(tmp_path: Path) -> None:
    trainer = train(
        model(), DATA, settings(tmp_path, max_steps=5, gradient_figures_steps=2, tokens_per_row=64), save=False
    )
    cosines = [entry.get("grad_cosine") for entry in trainer.state.log_history if "loss" in entry]
    assert [cosine is not None for cosine in cosines] == [True, False, True, False, True]
    assert all(-1 <= cosine <= 1 for cosine in cosines if cosine is not None)
    entry = trainer.state.log_history[0]
    assert entry["grad_norm_contrastive"] > 0 < entry["grad_norm_next_token"]
    assert 0 < entry["flops_utilisation"] < entry["hardware_flops_utilisation"] < 2
    assert 0 < entry["row_fill"] <= 1


def test_bad_data_and_settings_are_refused_before_anything_trains(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"records:1: query has no token left"):
        train(model(), [*DATA[:1], EmbeddingRecord.of(["i " * 600, "q"], ["p"])], settings(tmp_path))
    with pytest.raises(InputError, match="passage_max_length=513 is beyond the model's context of 512"):
        train(model(), DATA, settings(tmp_path, passage_max_length=513))
    assert not list(tmp_path.iterdir())


def test_the_toy_data_of_the_original_code(shared: Path, tmp_path: Path) -> None:
    trainer = train(model(), shared / "data/contrastive/gritlm_toy", settings(tmp_path, max_steps=2), save=False)
    assert len(losses(trainer)) == 2


def many(folder: Path, given: dict[str, Any], resume: bool | str) -> tuple[list[tuple[float, ...]], torch.Tensor]:
    trainer = train(model(), DATA, settings(folder, ddp_backend="gloo", **given), resume=resume)
    assert trainer.args.world_size == torch.distributed.get_world_size()
    root = trainer.accelerator.unwrap_model(trainer.model)
    return losses(trainer), torch.cat([p.detach().flatten() for p in root.parameters()])


@pytest.mark.parametrize("data", [DATA, PAIRS], ids=["both", "embedding"])
def test_two_processes_train_as_one(tmp_path: Path, data: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.DATA", data)
    given = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "tokens_per_row": 64}
    given["optim"] = "sgd"  # Adam's first steps make a full step of every rounding error
    alone = train(model(), data, settings(tmp_path / "one", **given))
    weights = torch.cat([p.detach().flatten() for p in alone.model.parameters()])
    for logged, found in in_processes(2, many, tmp_path / "two", given, False):
        np.testing.assert_allclose(logged, losses(alone), rtol=1e-5)
        torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-6)
    names = sorted(file.name for file in (tmp_path / "two").iterdir())
    assert names == ["checkpoint-2", "checkpoint-4", "checkpoint-5", "model"]
    inside = {file.name for file in (tmp_path / "two" / "checkpoint-2").iterdir()}
    assert {"sampler.json", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth", "gritkit_config.json"} <= inside
    saved = GritModel.from_pretrained(tmp_path / "two" / "model", device="cpu")
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in saved.parameters()]), found)

    checkpoint = str(tmp_path / "two" / "checkpoint-2")
    for logged, again in in_processes(2, many, tmp_path / "again", given, checkpoint):
        np.testing.assert_allclose(logged, losses(alone), rtol=1e-5)
        assert torch.equal(again, found)


def test_it_evaluates_while_it_trains_and_keeps_the_best(tmp_path: Path) -> None:
    given = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "next_token_loss", "save_total_limit": 1}
    config = settings(tmp_path, learning_rate=3e-2, **given, **best)
    trainer = train(model(), DATA, config, evaluation=DATA)
    logged = [entry["eval_next_token_loss"] for entry in trainer.state.log_history if "eval_next_token_loss" in entry]
    assert len(logged) == 3
    assert trainer.state.best_metric == min(logged)
    place = tmp_path / f"checkpoint-{2 * (logged.index(min(logged)) + 1)}"
    assert trainer.state.best_model_checkpoint == str(place)
    assert place.is_dir()
    assert trainer.evaluate()["eval_next_token_loss"] == pytest.approx(min(logged), rel=1e-5)
    state = json.loads((place / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] in (None, str(place))
    with pytest.raises(InputError, match="nothing to evaluate on"):
        GritTrainer(model(), settings(tmp_path / "b"), DATA).evaluate()


def write_sources(folder: Path) -> Path:
    folder.mkdir()
    pairs = [{"query": f"question {i}", "pos": [f"answer {i}"], "neg": [f"wrong {i}"]} for i in range(40)]
    asked = [{**pair, "answer": f"it is {i}"} for i, pair in enumerate(pairs[:12])]
    chats = [{"text": [f"say {i}", f"{i} it is"]} for i in range(17)]
    for name, rows in {"pairs": pairs, "asked": asked, "chats": chats}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_it_trains_on_streams_and_resumes_them(tmp_path: Path) -> None:
    data = write_sources(tmp_path / "data")
    given = {"streaming": True, "max_steps": 7, "save_strategy": "steps", "save_steps": 3, "dataloader_num_workers": 1}
    given |= {"sampling": {"pairs": 1.0, "asked": 3.0, "chats": 1.0}}
    whole = train(model(), data, settings(tmp_path / "whole", **given), save=False)
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    again = train(model(), data, settings(tmp_path / "again", **given), resume=checkpoint, save=False)
    assert losses(again) == losses(whole)
    with pytest.raises(InputError, match="how long a stream is is not known: set max_steps"):
        train(model(), data, settings(tmp_path / "b", **{**given, "max_steps": -1}))
    (data / "chats.jsonl").write_text('{"text": ["a"]}\n')
    with pytest.raises(RecordError, match=r"chats.jsonl:1: the last of the 1 turns is the user's"):
        train(model(), data, settings(tmp_path / "c", **given))


def streamed(data: Path, folder: Path, given: dict[str, Any]) -> tuple[list[tuple[float, ...]], torch.Tensor]:
    trainer = train(model(), data, settings(folder, ddp_backend="gloo", **given), save=False)
    root = trainer.accelerator.unwrap_model(trainer.model)
    return losses(trainer), torch.cat([p.detach().flatten() for p in root.parameters()])


def test_processes_stream_each_their_share_and_stay_one_model(tmp_path: Path) -> None:
    data = write_sources(tmp_path / "data")
    given = {"streaming": True, "max_steps": 4, "next_token_loss": "sample"}
    (first, weights), (second, same) = in_processes(2, streamed, data, tmp_path / "run", given)
    assert first == second
    assert torch.equal(weights, same)
    alone = train(model(), data, settings(tmp_path / "alone", **given), save=False)
    assert losses(alone) != first  # batches are other ones: each process has its share of the records
    np.testing.assert_allclose(losses(alone)[0], first[0], rtol=0.5)


def test_nothing_of_a_run_stays_on_the_model(tmp_path: Path) -> None:
    trained = model()
    before = trained.fingerprint
    train(trained, PAIRS, settings(tmp_path / "a", bf16=True, recompute=True), save=False)
    assert "forward" not in vars(trained)  # accelerate's autocast
    assert trained.fingerprint != before
    assert all(p.requires_grad for p in trained.parameters())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in trained.modules())
    assert not trained.training
    settled = settings(tmp_path / "a", max_steps=-1, num_train_epochs=1, recompute=True)
    (tmp_path / "a" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(InputError, match="is of an earlier run"):
        train(trained, PAIRS, settled)
    assert settled.max_steps == -1
    assert all(p.requires_grad for p in trained.parameters())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in trained.modules())


def test_what_would_train_nothing_is_refused(tmp_path: Path) -> None:
    lonely = [EmbeddingRecord.of(f"q {i}", [f"p {i}"]) for i in range(9)]
    with pytest.raises(InputError, match="records has no in-batch negatives and its records no neg"):
        train(model(), lonely, settings(tmp_path, in_batch_negatives=False))
    with pytest.raises(InputError, match="every weight is frozen"):
        train(model().requires_grad_(False), DATA, settings(tmp_path))
    long = [EmbeddingRecord.of(f"q {i}", ["p " * 250], ["n " * 250], answer="a") for i in range(9)]
    with pytest.raises(InputError, match=r"take \d+ tokens, the model's context is 512: lower passage_max_length"):
        train(model(), long, settings(tmp_path))


def test_weights_of_16_bits_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    GritTrainer(grit_model("llama", dtype=torch.bfloat16, prompt_format="grit"), settings(tmp_path), DATA)
    assert "training weights of 16 bits" in caplog.text


def test_weights_that_overflowed_are_not_saved(tmp_path: Path) -> None:
    given = {"learning_rate": 1e38, "max_steps": 3, "save_strategy": "steps", "save_steps": 1, "max_grad_norm": 0.0}
    with pytest.raises(GritkitError, match="not finite after step 1, and were not saved"):
        train(model(), DATA, settings(tmp_path, optim="sgd", **given))
    assert not [file for file in tmp_path.iterdir() if not file.name.startswith("failed")]


def test_a_run_is_not_resumed_as_another(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    train(model(), DATA, settings(tmp_path, max_steps=2, **saving), save=False)
    with pytest.raises(InputError, match=r"another temperature: it was '0.02' and is '0.1'"):
        train(model(), DATA, settings(tmp_path, temperature=0.1, **saving), resume=True)
    with pytest.raises(InputError, match="another embedding config"):
        train(model(pooling="last"), DATA, settings(tmp_path, **saving), resume=True)
    (tmp_path / "checkpoint-2" / "scheduler.pt").unlink()
    with pytest.raises(InputError, match="holds a model but no state of its training"):
        train(model(), DATA, settings(tmp_path, **saving), resume=True)


def test_held_out_data_is_measured_at_the_end_where_nothing_else_is_said(tmp_path: Path) -> None:
    trainer = train(model(), DATA, settings(tmp_path), evaluation=DATA, save=False)
    assert [entry for entry in trainer.state.log_history if "eval_ndcg_at_10" in entry]
