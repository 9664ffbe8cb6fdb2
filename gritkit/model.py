"""GritModel: the one class a user holds. It embeds, reads, completes, chats, scores, trains and saves.

    texts -> prompts -> tokens -> packed row -> backbone(plan: bidirectional segments) -> pooling -> vectors (+ DocKV)
    messages -> prompts -> tokens -> prefill and decode steps (plan: causal segments over their own keys) -> text

Nothing of the model changes between calls: the attention mode travels with each one, so any number of threads may embed
and generate at once. Every pass of training goes through :meth:`GritModel.forward`, the root that DDP and FSDP wrap.

This module composes; it knows nothing about kernels, files or sampling itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from gritkit import attention
from gritkit.allocator import keep_large_buffers
from gritkit.backbone import Backbone, ProbeReport, Run, probe
from gritkit.batch import Batch, pack, rows_of, token_budget
from gritkit.checkpoint.digest import WeightsDigest
from gritkit.checkpoint.load import load
from gritkit.checkpoint.save import save
from gritkit.config import AttentionCode, EmbeddingAttention, EmbeddingConfig, EmbeddingWindow, Pooling
from gritkit.embedding import Progress, batch_plan, embed_sequences, pool_texts, read_sequences
from gritkit.errors import InputError, UnsupportedModelError
from gritkit.files import resolve
from gritkit.generation.decoder import PREFILL_CHUNK, Decoder, Request
from gritkit.generation.params import Completion, Event, Finished, SamplingParams, raising
from gritkit.kv.dockv import DocKV
from gritkit.losses.head import summed_nll
from gritkit.losses.router import RouterBalance
from gritkit.plan import Plan
from gritkit.pooling import unit
from gritkit.prompts import Message, Role, chat_template, prompt_format
from gritkit.rope import Rope
from gritkit.tokens import Tokens, TokenSeq

Vectors = NDArray[np.float32]
Task = Literal["embed", "next_token", "read"]
_ROWS_AT_ONCE = {"cpu": 8, "mps": 16, "cuda": 64}
_CHUNK = 4096  # texts tokenised at a time; bounds what a generator of texts keeps in memory


@dataclass(frozen=True)
class Ranked:
    """A document's place in a reranking."""

    index: int
    score: float


class GritModel(nn.Module):
    """One decoder language model that embeds and generates. Made by :meth:`from_pretrained` or :meth:`from_parts`."""

    accepts_loss_kwargs = True  # read by transformers.Trainer: losses are sums over a global count, never re-averaged

    def __init__(
        self, lm: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EmbeddingConfig, *, writes: bool
    ) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer
        self.embedding_config = config
        self.writes = writes
        self._backbone = Backbone(lm)
        self._row_tokens = token_budget(self.device)
        self._weights = WeightsDigest(lm)
        self.tokens = Tokens(tokenizer, prompt_format(config.prompt_format))
        template = chat_template(self.tokens.format, with_bos=bool(self.tokens.bos_ids))
        if template is not None:
            tokenizer.chat_template = template
        self.probe: ProbeReport = probe(self._backbone, config.embedding_window)
        if self.device.type == "cpu":
            keep_large_buffers()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: Any = None,
        quantization: Literal["int8", "int4"] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        pooling: Pooling | None = None,
        embedding_attention: EmbeddingAttention | AttentionCode | None = None,
        embedding_window: EmbeddingWindow | None = None,
        prompt_format: str | None = None,
        max_length: int | None = None,
    ) -> GritModel:
        """Load a folder or hub id: gritkit's own, a sentence-transformers decoder, GritLM, or a plain language model.

        The last five override what the checkpoint says of itself. ``device`` defaults to cuda, mps or cpu, whichever is
        there; ``device_map`` and ``quantization`` are handed to transformers.

        Raises:
            CheckpointError: no such model, no safetensors, incomplete weights, or code of its own without trust.
            UnsupportedModelError: an architecture that does not honour attention plans.
            InputError: an argument outside its values.
        """
        loaded = load(
            source,
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantization=quantization,
            adapter=adapter,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        config = loaded.config.override(
            pooling=pooling,
            embedding_attention=embedding_attention,
            embedding_window=embedding_window,
            prompt_format=prompt_format,
            max_length=max_length,
        )
        model = cls(loaded.lm, loaded.tokenizer, config, writes=loaded.writes)
        model._weights = WeightsDigest(loaded.lm, loaded.files)
        return model

    @classmethod
    def from_parts(
        cls, lm: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EmbeddingConfig | None = None
    ) -> GritModel:
        """Around a causal language model in memory; its attention is switched to gritkit's, its dropout off."""
        lm.eval()  # as from_pretrained; a fresh model is in training mode, where dropout would blur every vector
        Backbone(lm).base.set_attn_implementation(attention.NAME)
        return cls(lm, tokenizer, config or EmbeddingConfig(), writes=True)

    @property
    def config(self) -> Any:
        """The transformers config of the backbone (what Trainer and friends look at)."""
        return self._backbone.base.config

    @property
    def device(self) -> torch.device:
        return self._backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self._backbone.dtype

    @property
    def dim(self) -> int:
        """Size of a full vector."""
        return self._backbone.hidden_size

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self._backbone.context_length

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of every layer, None where there is none."""
        return self._backbone.windows

    @property
    def rope(self) -> Rope:
        """What moves documents after they were read. Raises UnsupportedModelError where the probe found none."""
        if self.probe.rope is None:
            raise UnsupportedModelError(
                f"{type(self._backbone.base).__name__} works without document caches only: {self.probe.movable_because}"
            )
        return self.probe.rope

    @cached_property
    def fingerprint(self) -> str:
        """256-bit digest over weights, configs and tokenizer, under which vectors and key-values are filed.

        Computed on first use and kept, the weights' part also for the next start (``gritkit.checkpoint.digest``); a
        model that is trained further must not reuse it.
        """
        digest = hashlib.blake2b(self._weights.value().encode(), digest_size=32)
        settings = {name: value for name, value in self.config.to_dict().items() if name != "_name_or_path"}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(self.tokens.backend.to_str().encode())
        digest.update(self.embedding_config.override(max_length=1).to_json().encode())
        return digest.hexdigest()

    def run_passes(self, run: Run | None, *, row_tokens: int | None = None) -> None:
        """Have every forward pass run by ``run``, which may be another thread's; None: by whoever asks for it.

        ``row_tokens`` is how many tokens a pass over many texts has at most (one text is never divided); None: as many
        as suit the device. For a server, whose one thread owns the device and lets nobody wait for a long pass.
        """
        self._backbone.run = run
        self._row_tokens = row_tokens or token_budget(self.device)

    def forget_fingerprint(self) -> None:
        """The weights have changed: the fingerprint is computed anew when it is next asked for."""
        self._weights = WeightsDigest(self.lm)
        self.__dict__.pop("fingerprint", None)

    # -- embedding -----------------------------------------------------------------------------------------------

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        role: Role = "passage",
        instruction: str | None = None,
        dim: int | None = None,
        layers: int | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Vectors:
        """Unit vectors of texts, float32 [n, dim]; a single str gives [dim]. A generator is consumed in chunks.

        ``instruction`` tells what the vectors are for and is left out of the mean. ``dim`` keeps the first dimensions
        and normalises again (for Matryoshka-trained models). ``layers`` runs only the first so many and the final norm,
        for models trained to be read there (2D Matryoshka; Li et al. 2024, arXiv 2402.14776). A text that is too long
        is refused unless ``truncate``.

        Raises:
            InputError: naming the text's index, for what cannot be embedded (empty, too long, no valid Unicode).
        """
        if isinstance(texts, str):
            one = self.embed(
                [texts], role=role, instruction=instruction, dim=dim, layers=layers, max_length=max_length,
                truncate=truncate,
            )  # fmt: skip
            vector: Vectors = one[0]
            return vector
        dim, layers = self._dim(dim), self._layers(layers)
        parts = []
        with _bar(progress, texts) as bar:
            for sequences in self._chunks(texts, role, instruction, max_length, truncate):
                parts.append(self.embed_tokens(sequences, dim=dim, layers=layers, progress=bar.update))
        return np.concatenate(parts) if parts else np.zeros((0, dim), dtype=np.float32)

    def read(
        self,
        documents: str | Iterable[str],
        *,
        role: Role = "passage",
        instruction: str | None = None,
        dim: int | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> tuple[Vectors, list[DocKV]]:
        """As :meth:`embed`, and the key-values of every document out of the same pass, for later answers from them.

        Raises:
            InputError: as :meth:`embed`. UnsupportedModelError: when documents cannot be moved (learned positions).
        """
        _ = self.rope  # before anything is read
        dim, parts, caches = self._dim(dim), [], []
        documents = [documents] if isinstance(documents, str) else documents
        with _bar(progress, documents) as bar:
            for sequences in self._chunks(documents, role, instruction, max_length, truncate):
                vectors, read = self.read_tokens(sequences, dim=dim, progress=bar.update)
                parts.append(vectors)
                caches += read
        return (np.concatenate(parts) if parts else np.zeros((0, dim), dtype=np.float32)), caches

    def embed_tokens(
        self,
        sequences: Sequence[TokenSeq],
        *,
        dim: int | None = None,
        layers: int | None = None,
        progress: Progress | None = None,
    ) -> Vectors:
        """:meth:`embed` for texts that are tokenised already; ``progress`` is told how many are done."""
        vectors = embed_sequences(
            self._backbone, sequences, self.embedding_config, budget=self._row_tokens, dim=dim,
            layers=self._layers(layers), progress=progress,
        )  # fmt: skip
        result: Vectors = vectors.numpy()
        return result

    def read_tokens(
        self,
        sequences: Sequence[TokenSeq],
        *,
        causal: bool = False,
        dim: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[Vectors, list[DocKV]]:
        """:meth:`read` for texts that are tokenised already. ``causal`` reads them as the beginning of a prompt.

        Raises:
            UnsupportedModelError: when documents cannot be moved (learned positions).
        """
        config = self.embedding_config.override(embedding_attention="causal" if causal else None)
        vectors, documents = read_sequences(
            self._backbone, self.rope, sequences, config, budget=self._row_tokens,
            num_bos=len(self.tokens.bos_ids), dim=dim, progress=progress,
        )  # fmt: skip
        return vectors.numpy(), documents

    def _chunks(
        self, texts: Iterable[str], role: Role, instruction: str | None, max_length: int | None, truncate: bool
    ) -> Iterator[list[TokenSeq]]:
        """Token sequences of a chunk of texts at a time, errors naming the index in the whole."""
        limit = min(self.embedding_config.max_length, self.context_length) if max_length is None else max_length
        if not 1 <= limit <= self.context_length:
            raise InputError(f"max_length={limit} must be between 1 and the context of {self.context_length} tokens")
        if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
            raise InputError(f"texts must be a str or an iterable of str, not {type(texts).__name__}")
        source, first = iter(texts), 0
        while chunk := [text for _, text in zip(range(_CHUNK), source, strict=False)]:
            yield self.tokens.to_embed(chunk, role, instruction, limit, truncate=truncate, first=first)
            first += len(chunk)

    def _dim(self, dim: int | None) -> int:
        if dim is not None and not 1 <= dim <= self.dim:
            raise InputError(f"dim={dim} must be between 1 and {self.dim}")
        return dim or self.dim

    def _layers(self, layers: int | None) -> int | None:
        if layers is not None and not 1 <= layers <= self._backbone.num_layers:
            raise InputError(f"layers={layers} must be between 1 and {self._backbone.num_layers}")
        return layers

    # -- generation ----------------------------------------------------------------------------------------------

    def complete(self, prompt: str, **sampling: Any) -> Completion:
        """Continue a raw prompt; the keywords are those of :class:`SamplingParams`."""
        return self.complete_batch([prompt], **sampling)[0]

    def complete_batch(self, prompts: Sequence[str], **sampling: Any) -> list[Completion]:
        """Continue several raw prompts together; each result is what it would be alone."""
        params = SamplingParams.of(sampling)
        if isinstance(prompts, str):
            raise InputError("complete_batch needs a list of prompts; for one prompt there is complete()")
        return self.generate([Request(self.tokens.raw_prompt(prompt), params) for prompt in prompts])

    def chat(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """The assistant's answer to a conversation, by the checkpoint's own format."""
        return self.chat_batch([messages], **sampling)[0]

    def chat_batch(self, conversations: Sequence[Sequence[Message]], **sampling: Any) -> list[Completion]:
        """Answers to several conversations, generated together."""
        params = SamplingParams.of(sampling)
        if conversations and isinstance(conversations[0], dict):
            raise InputError("chat_batch needs a list of conversations; for one conversation there is chat()")
        return self.generate([Request(self.tokens.chat_prompt(messages), params) for messages in conversations])

    def stream(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Event]:
        """The answer as it comes: Delta events, whose texts join to the answer, then one Finished with all of it."""
        return self.stream_requests([Request(self.tokens.chat_prompt(messages), SamplingParams.of(sampling))])

    def stream_complete(self, prompt: str, **sampling: Any) -> Iterator[Event]:
        """As :meth:`stream`, for a raw prompt."""
        return self.stream_requests([Request(self.tokens.raw_prompt(prompt), SamplingParams.of(sampling))])

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Run requests to their end, in order. Raises what the first of them fails with, as its constraint does."""
        finished = {e.row: e.completion for e in self.stream_requests(requests) if isinstance(e, Finished)}
        return [finished[row] for row in range(len(requests))]

    def stream_requests(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Run requests together, joining as slots come free; an event's ``row`` is the request's index.

        Raises what one of them fails with; whoever wants the others nevertheless drives a :meth:`decoder`.
        """
        if not requests:
            return
        needed = [r.num_laid + len(r.prompt_ids) + r.params.max_new_tokens for r in requests]
        num_slots = min(len(requests), _ROWS_AT_ONCE.get(self.device.type, 8))
        decoder = self.decoder(num_slots=num_slots, max_length=max(needed))
        for request in requests:  # all of them, before any has run
            decoder.room(request)
        waiting = list(requests)[::-1]
        while waiting or decoder.busy:
            while waiting and decoder.num_free:
                decoder.join(waiting.pop())
            yield from raising(decoder.step())

    def decoder(
        self, *, num_slots: int, max_length: int, prefill_chunk: int = PREFILL_CHUNK, share_prefixes: bool = False
    ) -> Decoder:
        """Slots and steps of its own, for whoever drives them (a server does).

        ``share_prefixes``: a prompt that begins as one before it starts from that one's key-values.
        """
        if not self.writes:
            raise UnsupportedModelError("this checkpoint has no language-model head: it embeds but cannot generate")
        return Decoder(
            self._backbone,
            self.tokens.backend,
            self.eos_ids,
            num_slots=num_slots,
            max_length=max_length,
            rope=self.probe.rope,
            prefill_chunk=prefill_chunk,
            share_prefixes=share_prefixes,
        )

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every end of text that the checkpoint names: its tokenizer's and its generation config's."""
        stated = getattr(getattr(self._backbone.base, "generation_config", None), "eos_token_id", None)
        ids = stated if isinstance(stated, (list, tuple)) else [stated]
        return frozenset(int(i) for i in [*ids, self.tokens.eos_id] if i is not None)

    # -- scoring -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(
        self, query: str, documents: Sequence[str], *, truncate: bool = False, progress: bool = False
    ) -> list[float]:
        """exp(mean log-probability of the query's tokens given the document), in [0, 1], in input order.

        The query likelihood of Sachan et al. 2022 (arXiv 2204.07496, eq. 2), under the format's ``score`` template.

        Raises:
            InputError: for an empty query or document, or a pair that does not fit the context.
        """
        if not self.writes:
            raise UnsupportedModelError("this checkpoint has no language-model head: it embeds but cannot score")
        examples = self.tokens.to_score(query, documents, self.context_length, truncate=truncate)
        scores = torch.empty(len(documents), dtype=torch.float64)
        with _bar(progress, documents) as bar:
            for row in rows_of([len(example) for example in examples], self._row_tokens):
                batch = pack([examples[i] for i in row]).to(self.device)
                nll_K, sequence_K = self._token_losses(batch)
                totals = torch.zeros(len(row), dtype=torch.float64).index_add(0, sequence_K, nll_K.cpu().double())
                scores[row] = (-totals / sequence_K.bincount(minlength=len(row))).exp()
                bar.update(len(row))
        result: list[float] = scores.tolist()
        return result

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[Ranked]:
        """Documents by :meth:`score`, best first; equal scores keep their order."""
        if top_n is not None and top_n < 1:
            raise InputError(f"top_n={top_n} must be at least 1")
        scores = self.score(query, documents, truncate=truncate, progress=progress)
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        return [Ranked(i, scores[i]) for i in order[:top_n]]

    # -- training ------------------------------------------------------------------------------------------------

    @property
    def router_balance(self) -> RouterBalance:
        """The load-balancing loss of this mixture of experts. Raises UnsupportedModelError where it is none."""
        experts, chosen = self._backbone.num_experts, getattr(self._backbone.config, "num_experts_per_tok", None)
        if experts is None or chosen is None:
            raise UnsupportedModelError(
                f"{type(self._backbone.base).__name__} is no mixture of experts: there are no routers to balance"
            )
        return RouterBalance(experts, int(chosen))

    def forward(self, task: Task, batch: Batch, router: RouterBalance | None = None) -> Any:
        """One pass of training over one packed row, with gradients.

        ``embed``: unit vectors [S, H] of the row's texts, at least fp32. ``next_token``: the negative log-likelihood
        (nats) of the row's targets, each sequence's sum times its share, a scalar; the caller divides by a count that
        it can see; with ``router``, a tuple of it and of that loss summed over the row's sequences. ``read``: vectors
        and likelihood of a row whose answers read its documents (``gritkit.batch.pack_readings``), as a tuple.

        Raises:
            UnsupportedModelError: where the model's logits cannot be had in chunks, or its documents not be moved.
        """
        if task not in get_args(Task):
            raise InputError(f"task={task!r} is none of {', '.join(map(repr, get_args(Task)))}")
        if task == "read" and self.probe.rope is None:
            raise UnsupportedModelError(f"answers that read documents cannot be trained: {self.probe.movable_because}")
        targets = None if task == "embed" else self._targets(batch)
        batch = batch.to(self.device)
        causal = task == "next_token"
        plan = Plan.of(batch.lengths_S.tolist(), causal=True) if causal else batch_plan(batch, self.embedding_config)
        if router is not None and causal:
            hidden_TH, router_logits = self._backbone.routed(batch.ids_T, batch.positions_T, plan)
            assert targets is not None
            return self._summed_nll(hidden_TH, batch.ids_T, *targets), router(router_logits, batch.lengths_S)
        hidden_TH = self._backbone.hidden(batch.ids_T, batch.positions_T, plan)
        if targets is None:
            return unit(pool_texts(hidden_TH, batch, self.embedding_config.pooling))
        nll = self._summed_nll(hidden_TH, batch.ids_T, *targets)
        if task == "next_token":
            return nll
        vectors_SH = unit(pool_texts(hidden_TH, batch, self.embedding_config.pooling))
        # FSDP2 gathers a layer's weights when the gradient of its output arrives. With the answers' loss alone, the
        # last layer of a row's documents has none: their keys and values would be differentiated without weights.
        return vectors_SH, nll + 0.0 * vectors_SH.sum()

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(places [K] of the row's targets, what each of their losses is multiplied by [K]); on the CPU."""
        places_K = batch.loss_mask_T.nonzero()[:, 0]
        return places_K, batch.share_S.repeat_interleave(batch.lengths_S)[places_K]

    def _summed_nll(self, hidden_TH: Tensor, ids_T: Tensor, places_K: Tensor, share_K: Tensor) -> Tensor:
        scale = self.probe.head_scale
        if scale is None:
            raise UnsupportedModelError(
                f"{type(self._backbone.base).__name__} cannot be trained to generate: its logits are not its output "
                "layer's product alone, as the loss without full logits needs them"
            )
        places_K, share_K = (x.to(hidden_TH.device, non_blocking=True) for x in (places_K, share_K))
        weight_VH, bias_V = self._backbone.head
        hidden_KH = hidden_TH[places_K - 1]
        return summed_nll(hidden_KH if scale == 1.0 else hidden_KH * scale, weight_VH, bias_V, ids_T[places_K], share_K)

    def _token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(negative log-likelihood of each of K target tokens, its sequence's number [K] on the CPU)."""
        places_K = batch.loss_mask_T.nonzero()[:, 0]
        plan = Plan.of(batch.lengths_S.tolist(), causal=True)
        logits_KV = self._backbone.logits(batch.ids_T, batch.positions_T, plan, places_K - 1)
        dtype = torch.promote_types(logits_KV.dtype, torch.float32)
        losses_K = cross_entropy(logits_KV.to(dtype), batch.ids_T[places_K], reduction="none")
        sequence_T = torch.repeat_interleave(torch.arange(len(batch.lengths_S)), batch.lengths_S)
        return losses_K, sequence_T[places_K.cpu()]

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute activations in the backward pass; always the non-reentrant kind, the reentrant one is refused.

        Raises:
            InputError: for ``use_reentrant=True``, whose gradients are wrong where one pass reads another's keys.
        """
        given = dict(activation_checkpointing_kwargs or {})
        if given.get("use_reentrant"):
            raise InputError("use_reentrant=True gives wrong gradients under attention plans: use use_reentrant=False")
        given["use_reentrant"] = False
        base = self._backbone.base
        if hasattr(base, "activation_checkpointing_enable"):
            base.activation_checkpointing_enable(activation_checkpointing_kwargs=given, **kwargs)
        else:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given, **kwargs)
        if base is not self.lm:
            base.disable_input_require_grads()  # once is enough, however often this is called
            base.enable_input_require_grads()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """:meth:`activation_checkpointing_enable` under the name that transformers before 5.23 calls."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        base = self._backbone.base
        new = hasattr(base, "activation_checkpointing_disable")
        (base.activation_checkpointing_disable if new else base.gradient_checkpointing_disable)()
        if base is not self.lm:
            base.disable_input_require_grads()

    gradient_checkpointing_disable = activation_checkpointing_disable

    # -- saving --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str], *, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a folder that gritkit, plain transformers and (mean, last) sentence-transformers load alike.

        ``state_dict``: the language model's weights where the model itself does not hold them whole (FSDP).

        Raises:
            InputError: while an adapter is attached. CheckpointError: where the folder holds something else.
        """
        if self._backbone.base is not self.lm:
            raise InputError("an adapter is attached: merge it first with model.merge_adapter()")
        save(resolve(folder), self.lm, self.tokenizer, self.embedding_config, state_dict=state_dict)

    def merge_adapter(self) -> None:
        """Fold an attached adapter into the weights; nothing changes but speed and what can be saved."""
        if self._backbone.base is not self.lm:
            self.lm = self.lm.merge_and_unload()  # type: ignore[operator]
            self._backbone = Backbone(self.lm)
            self.forget_fingerprint()
            for parameter in self.lm.parameters():
                parameter.requires_grad_(parameter.is_floating_point())


def _bar(progress: bool, texts: Iterable[str]) -> Any:
    """A progress bar on stderr for what takes more than a second; off when not asked for or not a terminal."""
    total = len(texts) if isinstance(texts, Sequence) else None
    return tqdm(total=total, unit=" texts", disable=None if progress else True, smoothing=0.05, delay=1)
