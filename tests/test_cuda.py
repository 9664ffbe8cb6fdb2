"""What needs an NVIDIA GPU: the varlen kernels, and CUDA equal to CPU. Skipped without one; see eval/GPU.md."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from gritkit import attention
from gritkit.attention import attend_one_token_each, attend_plainly
from gritkit.embedding import embed_sequences
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


@pytest.mark.parametrize("window", [None, 3])
def test_one_token_each_on_cuda(window: int | None) -> None:
    store, generator = SlotStore(4, 32), torch.Generator().manual_seed(0)
    pasts = (0, 7, 31, 12)
    for slot in range(4):
        store.write(0, slot, 0, *(torch.randn(2, 32, 16, generator=generator).cuda() for _ in range(2)))
    segments = tuple(Segment(i, i + 1, True, slot=i, past=past) for i, past in enumerate(pasts))
    query, key, value = (torch.randn(1, h, 4, 16, generator=generator).cuda() for h in (4, 2, 2))
    store.put(0, segments, key, value)
    out = attend_one_token_each(Plan(segments, store=store), 0, query, None, window)
    for row, past in enumerate(pasts):
        low = 0 if window is None else max(0, past - window + 1)
        keys, values = (x.repeat_interleave(2, 1) for x in store.get(0, row, low, past + 1))
        weights = (query[:, :, row : row + 1] @ keys.transpose(2, 3) / 4).softmax(-1)
        torch.testing.assert_close(out[:, :, row : row + 1], weights @ values, atol=1e-4, rtol=1e-4)
