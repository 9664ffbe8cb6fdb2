"""What needs an NVIDIA GPU: the varlen kernels, and CUDA equal to CPU. Skipped without one; see eval/GPU.md."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from gritkit import attention
from gritkit.attention import attend_plainly
from gritkit.decode_attention import attend_decoding
from gritkit.embedding import embed_sequences
from gritkit.generation.decoder import Request
from gritkit.generation.params import Finished, SamplingParams
from gritkit.kv.slots import SlotStore
from gritkit.model import GritModel
from gritkit.plan import Plan, Segment
from tests.models import ARCHITECTURES, TEXTS, language_model, shared_model, tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU (torch sees no CUDA)")

PLANS = {
    "bidirectional": Plan.of([70, 3, 70, 1, 129], causal=False),
    "causal": Plan.of([70, 3, 70, 1, 129], causal=True),
    "mixed": Plan(
        (
            Segment(0, 70, False),
            Segment(70, 150, False),
            Segment(150, 200, True, reads=((70, 150), (0, 70))),
            Segment(200, 260, True),
        )
    ),
}


def kernel(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Any:
    installed = importlib.util.find_spec("flash_attn") is not None
    if kind == "flash-attn" and not installed:
        pytest.skip("flash-attn is not installed")
    if kind == "torch":
        monkeypatch.setattr(attention.importlib.util, "find_spec", lambda _: None)
    found = attention.varlen_kernel.__wrapped__(dtype)
    if found is None:
        pytest.skip("this torch has no varlen attention with windows")
    return found


@pytest.mark.parametrize("kind", ["torch", "flash-attn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["exclusive", "inclusive", "full"])
@pytest.mark.parametrize("window", [None, 1, 5, 64, 1000])
@pytest.mark.parametrize("name", PLANS)
def test_varlen_kernels_equal_the_plain_twin(
    kind: str, dtype: torch.dtype, rule: Any, window: int | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen = kernel(kind, dtype, monkeypatch)
    plan = Plan(PLANS[name].segments, rule)
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(1, h, plan.length, 64, generator=generator).to("cuda", dtype) for h in (8, 2, 2)]
    ours = [x.clone().requires_grad_() for x in qkv]
    out = attention._attend_varlen(varlen, plan, *ours, None, window)
    twins = [x.double().requires_grad_() for x in qkv]
    expected = attend_plainly(plan, *twins, sliding_window=window)
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)
    for x in (out, expected):
        x.double().square().sum().backward()
    for mine, twin in zip(ours, twins, strict=True):
        assert mine.grad is not None
        assert twin.grad is not None
        error = (mine.grad.double() - twin.grad).norm() / twin.grad.norm().clamp_min(1e-9)
        assert error < 3e-2 or twin.grad.norm() < 1e-6


def on_cuda(name: str, dtype: torch.dtype = torch.float32) -> GritModel:
    torch.backends.cuda.matmul.allow_tf32 = False
    return GritModel.from_parts(language_model(name, dtype=dtype).cuda(), tokenizer())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cuda_equals_cpu_in_fp32(name: str) -> None:
    gpu, cpu = on_cuda(name), shared_model(name)
    np.testing.assert_allclose(gpu.embed(list(TEXTS)), cpu.embed(list(TEXTS)), atol=1e-4)
    ours, theirs = (m.complete_batch(list(TEXTS), max_new_tokens=8) for m in (gpu, cpu))
    assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3"])
def test_packed_is_alone_in_bf16(name: str) -> None:
    model = on_cuda(name, torch.bfloat16)
    sequences = model.tokens.to_embed(list(TEXTS), "passage", None, 512, truncate=False)
    packed, alone = (
        embed_sequences(model._backbone, sequences, model.embedding_config, budget=budget) for budget in (10_000, 1)
    )
    torch.testing.assert_close(packed, alone, atol=4e-2, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("window", [None, 3, 200])
@pytest.mark.parametrize("slots", [(0, 1, 2, 3), (9, 4, 6, 5), (0, 9, 3, 20)])
def test_decoding_rows_on_cuda(
    slots: tuple[int, ...], window: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    store, generator = SlotStore(24, 3000), torch.Generator().manual_seed(0)
    pasts = (0, 7, 2999, 12)
    for slot in slots:
        store.write(0, slot, 0, *(torch.randn(2, 3000, 64, generator=generator).cuda().to(dtype) for _ in range(2)))
    places = list(zip(slots, pasts, strict=True))
    segments = tuple(Segment(i, i + 1, True, slot=slot, past=past) for i, (slot, past) in enumerate(places))
    query = torch.randn(1, 8, 4, 64, generator=generator).cuda().to(dtype)
    out = attend_decoding(Plan(segments, store=store), 0, query, None, window)
    for row, (slot, past) in enumerate(places):
        low = 0 if window is None else max(0, past - window + 1)
        keys, values = (x.double().repeat_interleave(4, 1) for x in store.get(0, slot, low, past + 1))
        weights = (query[:, :, row : row + 1].double() @ keys.transpose(2, 3) / 8).softmax(-1)
        torch.testing.assert_close(out[:, :, row : row + 1].double(), weights @ values, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captured_decode_steps_equal_plain_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long enough to be captured; a model that cannot be decodes all the same."""
    model = on_cuda(name)
    requests = [
        Request([*model.tokens.bos_ids, *model.tokens.encode(text)][:length], SamplingParams(max_new_tokens=40))
        for text, length in zip(TEXTS, (30, 3, 12, 9), strict=False)
    ]

    def decode(*, capture: bool) -> list[tuple[int, ...]]:
        rows = model.decoder(num_slots=8, max_length=100)
        assert rows._captured is not None
        rows._captured._refused = not capture
        for request in requests:
            rows.join(request)
        done = {event.row: event.completion.token_ids for event in rows.run() if isinstance(event, Finished)}
        assert bool(rows._captured._passes) is (capture and not rows._captured._refused)
        assert name == "mixtral" or rows._captured._refused is not capture
        return [done[row] for row in sorted(done)]

    assert decode(capture=True) == decode(capture=False)


def test_autocast_takes_the_varlen_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions make fp32 of bf16 queries there; segment by segment it would be some twenty times as slow."""
    model = on_cuda("llama")
    sequences = model.tokens.to_embed(list(TEXTS), "passage", None, 512, truncate=False)
    expected = model.embed(list(TEXTS))
    monkeypatch.setattr(attention, "_attend_segments", lambda *_: pytest.fail("not the varlen kernel"))
    with torch.autocast("cuda", torch.bfloat16):
        made = embed_sequences(model._backbone, sequences, model.embedding_config, budget=10_000)
    np.testing.assert_allclose(made.float().cpu().numpy(), expected, atol=4e-2)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3"])
def test_the_server_of_a_cuda_model_answers_as_the_library_does(name: str) -> None:
    """Rows decode beside each other, texts are packed with others', and each has what it has alone."""
    import asyncio

    from gritkit_serve.engine.engine import Engine

    model = on_cuda(name)
    texts = list(TEXTS)
    requests = [
        Request([*model.tokens.bos_ids, *model.tokens.encode(text)], SamplingParams(max_new_tokens=8)) for text in texts
    ]
    expected, vectors = [c.token_ids for c in model.generate(requests)], model.embed(texts)
    sequences = model.tokens.to_embed(texts, "passage", None, 512, truncate=False)
    engine = Engine(model)
    engine.start()

    async def all_at_once() -> tuple[list[Any], Any]:
        generations = [engine.generate(one) for one in requests]
        embedding = asyncio.create_task(engine.embed(sequences))
        return [await one.result() for one in generations], await embedding

    try:
        completions, made = asyncio.run(all_at_once())
    finally:
        engine.stop(drain_s=5)
    assert [one.token_ids for one in completions] == expected
    np.testing.assert_allclose(made, vectors, atol=1e-5)
