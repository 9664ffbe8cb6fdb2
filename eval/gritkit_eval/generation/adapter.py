"""A GritModel as lm-evaluation-harness sees one: log-likelihoods and texts for the requests of any of its tasks.

Requests run in packed rows, several texts together without padding, a shared context once. Every number is that of the
harness's own class for transformers models on the same checkpoint, to rounding (``tests/eval``).

This module knows nothing about tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm.auto import tqdm

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Finished, SamplingParams
from gritkit_eval.generation.scoring import Pair, context_limit, score_pairs
from gritkit_eval.generation.texts import Texts, greedy

_MAX_GEN_TOKENS = 256
"""Where a task names none; the harness's own."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness is untyped
    """The adapter. ``seed`` makes what tasks sample repeatable; most are greedy."""

    def __init__(self, model: GritModel, *, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self.texts = Texts(model.tokenizer)
        self.tokenizer = model.tokenizer
        self.seed = seed
        self.max_length = context_limit(model)
        self._device = model.device
        self.num_cut = 0
        """Prompts that lost their beginning, as they were longer than the context."""

    @property
    def eot_token_id(self) -> int:
        stated = self.tokenizer.eos_token_id
        return self.texts.prefix_id if stated is None else int(stated)

    @property
    def prefix_token_id(self) -> int:
        return self.texts.prefix_id

    @property
    def tokenizer_name(self) -> str:
        """Names the harness's cache of requests, whose texts depend on the chat template."""
        return f"gritkit-{self.model.fingerprint}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.texts.encode(string, add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """By the checkpoint's own template. Without ``add_generation_prompt`` the last message is left unfinished.

        Raises:
            InputError: where there is no template, or it refuses the messages.
        """
        return self.texts.chat(chat_history, unfinished=not add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs: list[Pair] = [(context, continuation) for _, context, continuation in requests]
        self.num_cut += sum(len(context) + len(continuation) - 1 > self.max_length for context, continuation in pairs)
        with _bar(len(pairs), "log-likelihoods", disable_tqdm) as bar:
            results = [(one.logprob, one.greedy) for one in score_pairs(self.model, pairs, bar.update)]
        for request, result in zip(requests, results, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p(text), every token with as much before it as the windows of the harness give it."""
        pairs: list[Pair] = []
        counts = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            of_text = [make_disjoint_window(window) for window in windows]
            counts.append(len(of_text))
            pairs += of_text
        with _bar(len(pairs), "windows", disable_tqdm) as bar:
            scored = iter(score_pairs(self.model, pairs, bar.update))
        results = []
        for request, count in zip(requests, counts, strict=True):
            results.append(sum(next(scored).logprob for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each prompt, greedy unless its task samples, up to a stop string.

        Raises:
            InputError: for an option that is not known here, or an answer that would fill the context alone.
        """
        runs, stops = [], []
        for number, request in enumerate(requests):
            context, options = request.args
            params, stop = self._params(options, number)
            prompt, cut = self.texts.prompt(context, params.max_new_tokens, self.max_length)
            self.num_cut += cut
            runs.append(Request(prompt, params))
            stops.append(stop)
        results = [""] * len(runs)
        with _bar(len(runs), "answers", disable_tqdm) as bar:
            for event in self.model.stream_requests(runs):
                if isinstance(event, Finished):
                    number = event.row
                    results[number] = self.texts.written(event.completion.token_ids, stops[number])
                    bar.update(1)
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, result)
        return results

    def _params(self, options: Mapping[str, Any], number: int) -> tuple[SamplingParams, list[str]]:
        given = dict(normalize_gen_kwargs(dict(options), _MAX_GEN_TOKENS))
        stop = [*given.pop("until"), self.tokenizer.decode(self.eot_token_id)]
        max_new_tokens = given.pop("max_gen_toks")
        samples = given.pop("do_sample", False) and given.get("temperature", 0.0) > 0.0
        unknown = sorted(set(given) - set(_SAMPLING))
        if unknown:
            raise InputError(f"the task asks for the generation options {', '.join(unknown)}, which are not known here")
        more = {**given, "seed": self.seed + number} if samples else {}
        if "repetition_penalty" in given:
            more["repetition_penalty"] = given["repetition_penalty"]
        return greedy(max_new_tokens, stop, **more), stop


def _bar(total: int, unit: str, disabled: bool) -> Any:
    return tqdm(total=total, unit=f" {unit}", disable=True if disabled else None, delay=1)
