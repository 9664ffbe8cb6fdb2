"""Any Hugging Face decoder, run under a plan; and the probes that decide at load whether it obeys one.

Every pass hands transformers a stand-in mask and the plan as a keyword, and checks afterwards that the registered
attention ran in every layer: an architecture that drops unknown keywords, or a config that another object changed,
would otherwise attend causally without a word.

This module knows nothing about text, pooling, checkpoints on disk or sampling.

Shapes: T tokens of the row, K positions whose logits are wanted, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gritkit import attention
from gritkit.errors import GritkitError, UnsupportedModelError
from gritkit.plan import Plan, Segment, WindowRule
from gritkit.rope import DeferredRotation, Rope

Run = Callable[[Callable[[], Any]], Any]
"""Runs a forward pass, in this thread or another, and returns what it returned or raises what it raised. One that asks
for passes of its own is given them at once, in the thread that it runs in."""


class Backbone:
    """A causal language model of transformers, or a peft model around one.

    Not a module: ``GritModel`` owns the module, so that training wrappers see one root.
    """

    def __init__(self, lm: nn.Module) -> None:
        self.lm = lm
        self.config: Any = self.base.config.get_text_config()
        self.num_layers = int(self.config.num_hidden_layers)
        self.hidden_size = int(self.config.hidden_size)
        self.layer_types: list[str] | None = getattr(self.config, "layer_types", None)
        self.run: Run | None = None
        """Who runs forward passes, where it is not the thread that asks for them: a server has one that owns the
        device."""

    @property
    def base(self) -> Any:
        """The transformers model, with adapters injected where peft did."""
        return self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm  # type: ignore[operator]

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device = self.base.get_input_embeddings().weight.device
        assert isinstance(device, torch.device)
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What hidden states and key-values come in."""
        dtype = self.base.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def context_length(self) -> int:
        """Positions that the model was made for.

        LongRoPE has other frequencies from one length on, for a whole row at once: a short text would depend on the
        long ones beside it, and stored keys on what came later. So its context ends where its frequencies change.
        """
        stated = int(getattr(self.config, "max_position_embeddings", None) or 1 << 30)
        rotary = getattr(self.config, "rope_parameters", None) or {}
        if rotary.get("rope_type") == "longrope":
            return min(stated, int(rotary.get("original_max_position_embeddings") or stated))
        return stated

    @property
    def sliding_window(self) -> int | None:
        """The window of the layers that have one; None where no layer has."""
        window = getattr(self.config, "sliding_window", None)
        if not window or getattr(self.config, "use_sliding_window", True) is False:
            return None
        if self.layer_types and "sliding_attention" not in self.layer_types:
            return None
        return int(window)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window that the config states for each layer, None where it attends to everything."""
        kinds = self.layer_types or ["sliding_attention"] * self.num_layers
        return tuple(None if kind == "full_attention" else self.sliding_window for kind in kinds)

    def hidden(self, ids_T: Tensor, positions_T: Tensor, plan: Plan, *, layers: int | None = None) -> Tensor:
        """Last hidden states [T, H] of a packed row; with ``layers`` only the first so many run, then the final norm.

        Raises:
            UnsupportedModelError: where the layers are not one list that could be shorter.
        """
        decoder = self.base.get_decoder()
        module = decoder if layers is None else first_layers(decoder, self.num_layers, layers)
        out = self._pass(module, ids_T, positions_T, plan, layers)
        states: Tensor = out.last_hidden_state[0]
        return states

    def routed(self, ids_T: Tensor, positions_T: Tensor, plan: Plan) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As :meth:`hidden`, and each router's logits [T, E] of a mixture of experts."""
        out = self._pass(self.base.get_decoder(), ids_T, positions_T, plan, output_router_logits=True)
        return out.last_hidden_state[0], tuple(out.router_logits)

    @property
    def num_experts(self) -> int | None:
        """Experts of each layer of a mixture, of which a token is sent to ``num_experts_per_tok``; None without any."""
        stated = getattr(self.config, "num_local_experts", None) or getattr(self.config, "num_experts", None)
        return int(stated) if stated else None

    def logits(self, ids_T: Tensor, positions_T: Tensor, plan: Plan, keep_K: Tensor) -> Tensor:
        """Next-token logits [K, V] at the given places of a packed row, any scaling of the model's own applied."""
        out = self._pass(self.base, ids_T, positions_T, plan, logits_to_keep=keep_K)
        logits: Tensor = out.logits[0]
        return logits

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, H] and bias [V] of the output layer, which make logits of hidden states."""
        layer = self.base.get_output_embeddings()
        return layer.weight, layer.bias

    def read(
        self, ids_T: Tensor, positions_T: Tensor, plan_of: Any, rope: Rope
    ) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
        """Hidden states [T, H] and, per layer, un-rotated keys and values [1, G, T, D], in one pass.

        ``plan_of(key_hook)`` builds the plan around the hook that defers the rotation.
        """
        deferred = DeferredRotation(rope, positions_T)
        hidden = self.hidden(ids_T, torch.zeros_like(positions_T), plan_of(deferred))
        return hidden, deferred.kept

    def rope(self) -> Rope:
        """The decoder's rotary embedding. Raises UnsupportedModelError where it has none that can be moved."""
        return Rope(self.base.get_decoder(), self.num_layers, self.layer_types)

    def _pass(
        self, module: Any, ids_T: Tensor, positions_T: Tensor, plan: Plan, layers: int | None = None, **options: Any
    ) -> Any:
        """One forward pass of the packed row, after which every layer (of the first ``layers``) must have attended by
        the plan."""
        forward = functools.partial(
            module,
            input_ids=ids_T[None],
            position_ids=positions_T[None],
            attention_mask=attention.no_mask(len(ids_T), ids_T.device),
            plan=plan,
            use_cache=False,
            **options,
        )
        if ids_T.is_cuda:
            forward = functools.partial(_without_cudnn, forward)
        run = self.run  # once: another thread may change it
        out = forward() if run is None else run(forward)
        self._check(plan, layers or self.num_layers)
        return out

    def _check(self, plan: Plan, num_layers: int) -> None:
        if len(plan.layers_run) != num_layers:
            raise UnsupportedModelError(
                f"{type(self.base).__name__}: the attention plan reached {len(plan.layers_run)} of {num_layers} "
                "layers, so this architecture (or something that changed its attn_implementation) does not honour it"
            )


def _without_cudnn(forward: Callable[[], Any]) -> Any:
    """cuDNN's attention plans every new shape for most of a millisecond, and lengths are new in every pass."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return forward()


def first_layers(decoder: nn.Module, num_layers: int, kept: int) -> nn.Module:
    """The decoder as if it had only its first ``kept`` layers: a shallow copy with the same modules but for a shorter
    list of layers. The decoder itself stays as it is, for whoever runs it meanwhile.

    Raises:
        UnsupportedModelError: where its ``num_layers`` layers are not one list.
    """
    lists = {name: part for name, part in decoder.named_children() if isinstance(part, nn.ModuleList)}
    found = [name for name, part in lists.items() if len(part) == num_layers]
    if len(found) != 1:
        raise UnsupportedModelError(f"{type(decoder).__name__} has no one list of {num_layers} layers to be cut short")
    view = copy.copy(decoder)
    view._modules = {**decoder._modules, found[0]: lists[found[0]][:kept]}
    view.__dict__.pop("forward", None)  # accelerate puts one there that runs the whole decoder (device_map)
    return view


@dataclass(frozen=True)
class ProbeReport:
    """What the load-time probes measured, as relative differences."""

    causal_error: float
    """Causal plan against the architecture's own eager forward."""
    leak: float
    """Largest change where nothing may change: past by future (causal), other documents, outside the window."""
    reaction: float
    """Smallest change where something must change: past by future (bidirectional)."""
    rope: Rope | None
    """Present when documents can be moved after they were read."""
    movable_because: str
    """Why ``rope`` is absent; empty when it is present."""
    head_scale: float | None
    """What the model multiplies its output layer's products by; None where its logits are no multiple of them."""


@torch.no_grad()
def probe(backbone: Backbone, window_rule: WindowRule) -> ProbeReport:
    """Measure at load what everything else relies on; a few forwards of a few dozen tokens.

    Raises:
        UnsupportedModelError: when a causal plan differs from the model's own forward, or bidirectional attention
            does not reach where it should or reaches where it must not.
    """
    name = type(backbone.base).__name__
    coarse = getattr(backbone.base, "is_quantized", False) or backbone.dtype not in (torch.float32, torch.float64)
    tolerance = 5e-2 if coarse else 1e-3
    ids = _probe_ids(backbone, min(24, backbone.context_length))
    try:
        causal_error = _causal_error(backbone, ids)
    except (GritkitError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # modeling code that knows no packed rows fails in its own ways
        raise UnsupportedModelError(
            f"{name}: a forward pass under an attention plan fails with {type(error).__name__}: {error}"
        ) from error
    if not causal_error < tolerance:
        raise UnsupportedModelError(
            f"{name}: a causal plan differs from its own forward by {causal_error:.1e} (relative)"
        )
    leak, reaction = _perturb(backbone, ids, window_rule)
    if not leak < tolerance / 10:
        raise UnsupportedModelError(f"{name}: tokens see what the plan hides from them (change {leak:.1e}, relative)")
    if not reaction > 10 * max(leak, 1e-7):
        raise UnsupportedModelError(
            f"{name}: tokens do not see what bidirectional attention shows them ({reaction:.1e})"
        )
    try:
        rope = backbone.rope()
        moved = _move_error(backbone, rope, ids, window_rule)
        reason = "" if moved < tolerance else f"moving its keys changes them by {moved:.1e} (relative)"
    except UnsupportedModelError as error:
        rope, reason = None, str(error)
    scale = _head_scale(backbone, ids, tolerance)
    return ProbeReport(causal_error, leak, reaction, rope if not reason else None, reason, scale)


def _probe_ids(backbone: Backbone, count: int) -> Tensor:
    size = int(backbone.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(3, size - 1), size, (count,), generator=generator).to(backbone.device)


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.cpu().double(), b.cpu().double()  # in this order: MPS has no float64
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _states(backbone: Backbone, ids: Tensor, plan: Plan, positions: Tensor | None = None) -> Tensor:
    if positions is None:
        positions = torch.cat([torch.arange(s.length, device=ids.device) for s in plan.segments])
    return backbone.hidden(ids, positions, plan)


def _causal_error(backbone: Backbone, ids: Tensor) -> float:
    """Against eager attention, switched to only here, before anybody else holds the model."""
    plan = Plan.of([len(ids)], causal=True)
    ours = _states(backbone, ids, plan)
    _check_windows(backbone, plan)
    backbone.base.set_attn_implementation("eager")
    try:
        theirs = backbone.base.get_decoder()(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    finally:
        backbone.base.set_attn_implementation(attention.NAME)
    return _relative(ours, theirs)


def _head_scale(backbone: Backbone, ids: Tensor, tolerance: float) -> float | None:
    """Which known scaling makes the model's own logits of its last hidden states and its head's weight."""
    head = backbone.base.get_output_embeddings()
    if type(head) is not nn.Linear:  # an adapter's or a quantised layer's weight alone would not be its product
        return None
    plan, positions = (Plan.of([len(ids)], causal=True) for _ in range(2)), torch.arange(len(ids), device=ids.device)
    hidden = backbone.hidden(ids, positions, next(plan))
    logits = backbone.logits(ids, positions, next(plan), positions)
    stated = [1.0, getattr(backbone.config, "logit_scale", None), getattr(backbone.config, "logits_scaling", None)]
    for scale in [stated[0], stated[1], 1 / stated[2] if stated[2] else None]:
        if scale is not None and _relative(scale * head(hidden), logits) < tolerance:
            return float(scale)
    return None


def _check_windows(backbone: Backbone, plan: Plan) -> None:
    """Each layer must have passed the window that its config states; real windows are too wide to be felt here."""
    name = type(backbone.base).__name__
    for layer, window in plan.layers_run.items():
        kind = backbone.layer_types[layer] if backbone.layer_types else None
        if kind not in (None, "full_attention", "sliding_attention"):
            raise UnsupportedModelError(f"{name}: layer {layer} is of the kind {kind!r}, which plans do not know")
        stated = backbone.windows[layer]
        if window != stated:
            raise UnsupportedModelError(
                f"{name}: layer {layer} attends through a window of {window} and its config states {stated}"
            )


def _perturb(backbone: Backbone, ids: Tensor, rule: WindowRule) -> tuple[float, float]:
    """(largest change where none may be, smallest change where one must be)."""
    half = len(ids) // 2
    changed = ids.clone()
    last = len(ids) - 1
    changed[last] = ids[0] if ids[0] != ids[last] else ids[1]
    leaks = []
    one = [len(ids)]
    causal, causal_changed = (_states(backbone, x, Plan.of(one, causal=True)) for x in (ids, changed))
    leaks.append(_relative(causal_changed[:last], causal[:last]))
    both, both_changed = (_states(backbone, x, Plan.of(one, causal=False, window_rule=rule)) for x in (ids, changed))
    reaction = _relative(both_changed[last - 1 : last], both[last - 1 : last])
    two = [half, len(ids) - half]
    for is_causal in (True, False):
        pair, pair_changed = (
            _states(backbone, x, Plan.of(two, causal=is_causal, window_rule=rule)) for x in (ids, changed)
        )
        leaks.append(_relative(pair_changed[:half], pair[:half]))
    if backbone.sliding_window is not None and set(backbone.layer_types or ()) <= {"sliding_attention"}:
        # Through a window capped to 2 a token reaches one place further per layer and no more. With "full" the rule
        # itself lifts the window for texts, so the exclusive rule stands in for it.
        long_ids = _probe_ids(backbone, backbone.num_layers + 8)
        long_changed = long_ids.clone()
        long_changed[-1] = long_ids[0] if long_ids[0] != long_ids[-1] else long_ids[1]
        near, near_changed = (
            _states(backbone, x, Plan.of([len(x)], causal=False, window_rule="exclusive", window_cap=2))
            for x in (long_ids, long_changed)
        )
        leaks.append(_relative(near_changed[:6], near[:6]))
    return max(leaks), reaction


def _move_error(backbone: Backbone, rope: Rope, ids: Tensor, rule: WindowRule) -> float:
    """Keys and values of one text read at two offsets, and by the model's own rotation: all agree once re-based."""
    positions = torch.arange(len(ids), device=ids.device)
    native: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for offset in (0, 100):

        def keep(layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            native.setdefault(layer, []).append((key, value))
            return query, key

        _states(backbone, ids, Plan((Segment(0, len(ids), False),), rule, key_hook=keep), positions + offset)
    for layer, ((key_a, _), (key_b, _)) in native.items():
        rope.rotates[layer] = _relative(key_a, key_b) > 1e-6
    error = 0.0
    for offset, place in ((0, 0), (100, 1)):
        hook = DeferredRotation(rope, positions + offset)
        plan = Plan((Segment(0, len(ids), False),), rule, key_hook=hook)
        _states(backbone, ids, plan, torch.zeros_like(positions))
        tables = rope.tables(positions + offset)
        for layer, pairs in native.items():
            key, value = hook.kept[layer]
            error = max(error, _relative(rope.rotate(key, tables, layer), pairs[place][0]))
            error = max(error, _relative(value, pairs[place][1]), _relative(value, pairs[1 - place][1]))
    return error
