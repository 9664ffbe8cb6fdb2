"""The one attention function: what every layer calls, and the kernels behind it.

The :class:`~gritkit.plan.Plan` travels as a keyword of the forward call; nothing of the model changes between calls, so
threads may embed and generate on one model at once. transformers' own switch (``is_causal=False``) writes to the shared
config during the call instead, and corrupts whatever runs beside it.

Kernels: varlen flash attention on CUDA (flash-attn when installed, else torch's own), scaled dot-product attention
per segment elsewhere. :func:`attend_plainly` is their plain twin, one explicit mask over the row; tests equate them.

This module knows nothing about tokens, pooling, checkpoints or where key-values are stored.

Shapes: T tokens of the row, N tokens of a segment, L keys it sees, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gritkit.decode_attention import attend_decoding
from gritkit.errors import InputError, UnsupportedModelError
from gritkit.plan import Plan, Segment

NAME = "gritkit"
"""The name under which the function is registered; ``attn_implementation="gritkit"``."""

# What modeling code passes along that attention has no use for; everything else unknown is refused.
_HARMLESS = frozenset(
    {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits"}
    | {"return_dict", "is_causal", "position_embeddings", "layer_idx", "past_key_values"}
)


def attend(
    module: torch.nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    plan: Plan | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers; every attention layer calls it. Returns ([1, T, H, D], None).

    Without a plan it is transformers' own scaled dot-product attention, so that ``generate()`` of the wrapped model
    and any other plain use keep working on the same object.

    Raises:
        UnsupportedModelError: for an attention option that the plan's kernels do not implement (soft-capping, sinks).
    """
    if plan is None:
        return sdpa_attention_forward(
            module, query_1HTD, key_1GTD, value_1GTD, attention_mask, dropout, scaling,
            sliding_window=sliding_window, **options,
        )  # fmt: skip
    for name, given in options.items():
        if given is not None and name not in _HARMLESS:
            raise UnsupportedModelError(
                f"{type(module).__name__} asks for the attention option {name!r}, which gritkit does not implement"
            )
    if query_1HTD.shape[2] != plan.length:
        raise InputError(f"the plan covers {plan.length} tokens and the row has {query_1HTD.shape[2]}")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnsupportedModelError(f"{type(module).__name__} does not know which layer it is, and plans need it")
    plan.layers_run[layer] = sliding_window
    if query_1HTD.is_cuda and query_1HTD.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        # rotary positions make queries and keys fp32 again, which the varlen kernels do not take
        narrow = torch.get_autocast_dtype("cuda")
        query_1HTD, key_1GTD, value_1GTD = (x.to(narrow) for x in (query_1HTD, key_1GTD, value_1GTD))
    if plan.key_hook is not None:
        query_1HTD, key_1GTD = plan.key_hook(layer, query_1HTD, key_1GTD, value_1GTD)
    if plan.store is not None:
        plan.store.put(layer, plan, key_1GTD, value_1GTD)
        outputs = _attend_slots(plan, layer, query_1HTD, key_1GTD, value_1GTD, scaling, dropout, sliding_window)
    elif dropout == 0.0 and (varlen := _varlen_for(query_1HTD, value_1GTD)) is not None:
        outputs = _attend_varlen(varlen, plan, query_1HTD, key_1GTD, value_1GTD, scaling, sliding_window)
    else:
        outputs = _attend_segments(plan, query_1HTD, key_1GTD, value_1GTD, scaling, dropout, sliding_window)
    return outputs.transpose(1, 2).contiguous(), None


def _attend_segments(
    plan: Plan,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    """Scaled dot-product attention of one run of equally long segments at a time. Returns [1, H, T, D]."""
    token_major = (query_1HTD, key_1GTD, value_1GTD)
    sizes = [count * first.length for first, count in plan.runs]
    # split, not slices: the pieces' gradients are one concatenation, where each slice's is a whole row of zeros
    pieces = zip(*(x[0].transpose(0, 1).split(sizes) for x in token_major), strict=True)
    outputs = []
    for (first, count), run in zip(plan.runs, pieces, strict=True):
        query_BHND, key_BGLD, value_BGLD = (x.reshape(count, first.length, *x.shape[1:]).transpose(1, 2) for x in run)
        if first.reads:
            ranges = [*first.reads, (first.start, first.end)]
            key_BGLD, value_BGLD = (
                torch.cat([x[:, :, start:end] for start, end in ranges], 2) for x in (key_1GTD, value_1GTD)
            )
        out_BHND = _sdpa(plan, first, query_BHND, key_BGLD, value_BGLD, scaling, dropout, sliding_window)
        outputs.append(out_BHND.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None].transpose(1, 2)


def _sdpa(
    plan: Plan,
    segment: Segment,
    query_BHND: Tensor,
    key_BGLD: Tensor,
    value_BGLD: Tensor,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    num_queries, num_keys = query_BHND.shape[2], key_BGLD.shape[2]
    groups = query_BHND.shape[1] // key_BGLD.shape[1]
    if groups > 1 and query_BHND.device.type == "mps":  # grouped and masked together, MPS had wrong before torch 2.13
        key_BGLD, value_BGLD = (x.repeat_interleave(groups, 1) for x in (key_BGLD, value_BGLD))
    back, ahead = plan.reach(segment, sliding_window)
    # A limit that no query can feel needs no mask, and the kernels are fastest without one.
    back = None if back is not None and back >= num_keys - 1 else back
    ahead = None if ahead is not None and (num_queries == 1 or ahead >= num_queries - 1) else ahead
    plain_causal = ahead == 0 and back is None and num_keys == num_queries
    short = query_BHND.requires_grad and query_BHND.device.type == "cpu" and num_keys <= _SHORT and dropout == 0.0
    mask = None
    if (back is not None or ahead is not None) and (short or not plain_causal):
        mask = plan.mask(num_queries, num_keys - num_queries, back, ahead, query_BHND.device)
    if short:
        return softmax_attention(query_BHND, key_BGLD, value_BGLD, mask, scaling)
    return scaled_dot_product_attention(
        query_BHND,
        key_BGLD,
        value_BGLD,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=plain_causal,
        scale=scaling,
        enable_gqa=query_BHND.shape[1] != key_BGLD.shape[1],
    )


_SHORT = 256
"""Keys up to which a CPU trains faster by plain matrix products than through the fused kernel's backward pass."""


def softmax_attention(
    query_BHND: Tensor, key_BGLD: Tensor, value_BGLD: Tensor, seen_NL: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention as its formula says, softmax in at least fp32; its gradient is three batched matrix products."""
    _, heads, num_queries, size = query_BHND.shape
    groups = heads // key_BGLD.shape[1]
    query_BGMD = query_BHND.reshape(query_BHND.shape[0], -1, groups * num_queries, size)
    scores_BGML = query_BGMD @ key_BGLD.transpose(2, 3)
    scores_BGML = scores_BGML.to(torch.promote_types(scores_BGML.dtype, torch.float32))
    scores_BGML = scores_BGML * (size**-0.5 if scaling is None else scaling)
    if seen_NL is not None:
        scores_BGML = scores_BGML.masked_fill(~seen_NL.repeat(groups, 1), float("-inf"))
    out_BGMD = scores_BGML.softmax(-1).to(value_BGLD.dtype) @ value_BGLD
    return out_BGMD.reshape(query_BHND.shape[0], heads, num_queries, value_BGLD.shape[3])


def _attend_slots(
    plan: Plan,
    layer: int,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    """Attention over the store: the decoding rows together, then segment by segment. Returns [1, H, T, D]."""
    assert plan.store is not None
    outputs = []
    if decoding := plan.num_decoding:
        outputs.append(attend_decoding(plan, layer, query_1HTD[:, :, :decoding], scaling, sliding_window))
    for segment in plan.segments[decoding:]:
        query_1HND = query_1HTD[:, :, segment.start : segment.end]
        if segment.slot is None:
            key_1GLD, value_1GLD = (x[:, :, segment.start : segment.end] for x in (key_1GTD, value_1GTD))
        else:
            back, _ = plan.reach(segment, sliding_window)
            first_seen = 0 if back is None else max(0, segment.past - back)  # no query of the segment sees older ones
            end = segment.past + segment.length
            key_1GLD, value_1GLD = plan.store.get(layer, segment.slot, first_seen, end)
        outputs.append(_sdpa(plan, segment, query_1HND, key_1GLD, value_1GLD, scaling, dropout, sliding_window))
    return torch.cat(outputs, 2)


VarlenKernel = Callable[..., Tensor]


def _varlen_for(query_1HTD: Tensor, value_1GTD: Tensor) -> VarlenKernel | None:
    """The varlen kernel where device and head size allow one (flash attention: Ampere or later, sizes of 8 to 256)."""
    if not query_1HTD.is_cuda or torch.cuda.get_device_capability(query_1HTD.device) < (8, 0):
        return None
    size = query_1HTD.shape[3]
    return varlen_kernel(query_1HTD.dtype) if size == value_1GTD.shape[3] and size % 8 == 0 and size <= 256 else None


@functools.cache
def varlen_kernel(dtype: torch.dtype) -> VarlenKernel | None:
    """The CUDA kernel for packed rows: flash-attn's where installed, else torch's; None for dtypes they lack (fp32).

    The kernel is called as kernel(q [T,H,D], k [L,G,D], v, cu_q, cu_k, max_q, max_k, scale, window), causal alignment
    at the bottom right, ``window`` = (back, ahead) with -1 for unlimited.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return None
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,unused-ignore]

        def flash(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
                  scale: float | None, window: tuple[int, int]) -> Tensor:  # fmt: skip
            out: Tensor = flash_attn_varlen_func(
                q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=window[1] == 0, window_size=window
            )
            return out

        return flash
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= set(known):  # torch's first versions of it had neither
        return None
    knows_groups = "enable_gqa" in known

    def torch_varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
                     scale: float | None, window: tuple[int, int]) -> Tensor:  # fmt: skip
        grouped: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]} if knows_groups else {}
        if not knows_groups and q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        out = varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window, **grouped)
        assert isinstance(out, Tensor)
        return out

    return torch_varlen


def _attend_varlen(
    kernel: VarlenKernel,
    plan: Plan,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """One kernel call per kind of segment (causal, bidirectional). Returns [1, H, T, D]."""
    query_THD, key_TGD, value_TGD = (x[0].transpose(0, 1) for x in (query_1HTD, key_1GTD, value_1GTD))
    out_THD = query_THD.new_empty(*query_THD.shape[:2], value_TGD.shape[2])
    device = query_1HTD.device
    for kind in plan.kept(("kinds", device), lambda: tuple(_kinds(plan, device))):
        back, ahead = plan.reach(kind.first, sliding_window)
        out_THD[kind.queries] = kernel(
            query_THD[kind.queries], key_TGD[kind.keys], value_TGD[kind.keys], kind.cu_q, kind.cu_k,
            kind.max_q, kind.max_k, scaling, (-1 if back is None else back, -1 if ahead is None else ahead),
        )  # fmt: skip
    return out_THD.transpose(0, 1)[None]


@dataclass(frozen=True)
class _Kind:
    """The segments of a plan that are causal, or those that are not, as the varlen kernels want them."""

    first: Segment
    queries: Tensor | slice
    keys: Tensor | slice
    """Rows of their queries and keys; plain slices where the whole row is of one kind and reads nothing."""
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int


def _kinds(plan: Plan, device: torch.device) -> Iterator[_Kind]:
    for causal in (False, True):
        segments = [s for s in plan.segments if s.causal is causal]
        if not segments:
            continue
        queries: Tensor | slice = slice(None)
        keys: Tensor | slice = slice(None)
        if len(segments) < len(plan.segments) or any(s.reads for s in segments):
            own = [range(s.start, s.end) for s in segments]
            seen = [range(a, b) for s in segments for a, b in (*s.reads, (s.start, s.end))]
            queries, keys = (torch.tensor([i for r in ranges for i in r], device=device) for ranges in (own, seen))
        num_queries, num_keys = [s.length for s in segments], [s.before + s.length for s in segments]
        yield _Kind(
            segments[0], queries, keys, _offsets(num_queries, device), _offsets(num_keys, device),
            max(num_queries), max(num_keys),
        )  # fmt: skip


def _offsets(lengths: list[int], device: torch.device) -> Tensor:
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.to(device)


def plain_mask(plan: Plan, sliding_window: int | None) -> Tensor:
    """Boolean [T, T] of a plan without a store: the whole row's rule written out, one pair at a time where it matters.

    A segment's own keys and what it reads are placed in the joined order of :class:`Segment`.
    """
    seen_TT = torch.zeros(plan.length, plan.length, dtype=torch.bool)
    for segment in plan.segments:
        keys = [i for a, b in (*segment.reads, (segment.start, segment.end)) for i in range(a, b)]
        back, ahead = plan.reach(segment, sliding_window)
        for offset, query in enumerate(range(segment.start, segment.end)):
            at = segment.before + offset
            for place, key in enumerate(keys):
                near = (back is None or at - place <= back) and (ahead is None or place - at <= ahead)
                seen_TT[query, key] = near
    return seen_TT


def attend_plainly(
    plan: Plan,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """The slow twin of every kernel here: softmax over one explicit mask. Returns [1, H, T, D]."""
    groups = query_1HTD.shape[1] // key_1GTD.shape[1]
    key_1HTD, value_1HTD = (x.repeat_interleave(groups, 1) for x in (key_1GTD, value_1GTD))
    scale = query_1HTD.shape[-1] ** -0.5 if scaling is None else scaling
    scores_1HTT = query_1HTD @ key_1HTD.transpose(2, 3) * scale
    hidden = ~plain_mask(plan, sliding_window).to(query_1HTD.device)
    return scores_1HTT.masked_fill(hidden, float("-inf")).softmax(-1) @ value_1HTD


def no_mask(num_tokens: int, device: torch.device) -> Tensor:
    """A 4-D stand-in of no memory that keeps transformers from building a mask of its own; the plan is the mask."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device).expand(1, 1, num_tokens, num_tokens)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
