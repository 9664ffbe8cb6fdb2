"""A small model that can look up what it has read from its first step on: random weights with an induction circuit.

    python -m gritkit_eval.rag_copier TEXTS OUT

No pretrained model of a few million parameters copies from a document, and learning to takes more steps than a CPU has
time for. So three heads are set by hand (Olsson et al. 2022, arXiv 2209.11895, section on induction heads); everything
else is random and small, and all of it is trained further by the recipes like any other model.

    layer 1   two heads look one and two tokens back: every token then knows what stood before it
    layer 2   one head looks, from the end of the question's template alone, back to the end of the question
    layer 3   one head looks for tokens that follow what stands here (or what the question ended with), and copies them

``TEXTS`` is a JSON Lines file of training questions; its passages train the tokenizer.
This module knows nothing about knowledge bases or what is measured.

Shapes: V words of the vocabulary, C size of a word's code, H hidden size, D head size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gritkit import GritModel
from gritkit.config import EmbeddingConfig
from gritkit.prompts import GRIT

_CODE = 40
_HIDDEN, _HEAD, _LAYERS = 256, 128, 3
_ROPE = 1e6
_SLOW = 24
"""Pairs of channels from here on turn too little over a context to disturb what is compared in them."""
_NOW, _BEFORE, _BEFORE2, _ASKED, _ASKED2, _OUT = (slice(40 * i, 40 * i + 40) for i in range(6))
_ONE = 240
"""The hidden channel that is 1 in every word."""
_END = 241
"""The one that is not 0 in the word that ends the question's template alone."""
_SMALL = 0.1
"""What it is there: a larger value would change that word's norm, and with it what others find in it."""


def train_tokenizer(texts: Iterator[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE; the markers of the prompt format are one token each."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(GRIT.markers),
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(marker, special=False) for marker in GRIT.markers])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> GritModel:
    """Random weights, then the circuit."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=_HIDDEN, intermediate_size=_HIDDEN // 2, num_hidden_layers=_LAYERS,
        num_attention_heads=2, num_key_value_heads=2, head_dim=_HEAD, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE}, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        tie_word_embeddings=False, initializer_range=0.02,
    )  # fmt: skip
    lm = LlamaForCausalLM(config)
    grit = EmbeddingConfig(prompt_format="grit", max_length=1024)
    tail = tokenizer.encode(GRIT.ask.replace("{question}", "what?"), add_special_tokens=False)
    with torch.no_grad():
        _set_circuit(lm, _codes(len(tokenizer)), end_of_template=tail[-1], offset=_offset(tokenizer))
    return GritModel.from_parts(lm, tokenizer, grit)


def _offset(tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens from the last one of a question to the last one of the template around it."""
    after = GRIT.ask.split("{question}")[1]
    return len(tokenizer.encode(after, add_special_tokens=False))


def _codes(num: int) -> Tensor:
    """Random unit vectors [V, C]."""
    return torch.nn.functional.normalize(torch.randn(num, _CODE), dim=-1)


def _set_circuit(lm: Any, codes_VC: Tensor, *, end_of_template: int, offset: int) -> None:
    first, second, third = lm.model.layers
    lm.model.embed_tokens.weight.zero_()
    lm.model.embed_tokens.weight[:, _NOW] = codes_VC
    lm.model.embed_tokens.weight[:, _ONE] = 1.0
    lm.model.embed_tokens.weight[end_of_template, _END] = _SMALL
    for layer, norm in ((first, 2.0), (second, 4.0), (third, 4.0)):  # squared norms of what the layer is given
        layer.input_layernorm.weight.fill_((norm / _HIDDEN) ** 0.5)
    for head, back in ((0, 1), (1, 2)):
        _look_back(first.self_attn, head, _ONE, back, asking=14.0)
        _copy(first.self_attn, head, _NOW, (_BEFORE, _BEFORE2)[head])
    _look_back(second.self_attn, 0, _END, offset, asking=14.0 / _SMALL)
    _copy(second.self_attn, 0, _NOW, _ASKED, also=(_BEFORE, _ASKED2))
    _look_up(third.self_attn)
    _copy(third.self_attn, 0, _NOW, _OUT)
    lm.lm_head.weight.zero_()
    lm.lm_head.weight[:, _OUT] = 2.0 * codes_VC


def _rows(head: int) -> slice:
    return slice(head * _HEAD, (head + 1) * _HEAD)


def _look_back(attention: Any, head: int, channel: int, back: int, *, asking: float) -> None:
    """Tokens whose ``channel`` is not 0 look ``back`` tokens back; the others nowhere in particular.

    The score of a key is the sum over turning pairs of cos(angle of its distance - angle of ``back``).
    """
    half = _HEAD // 2
    angles = _ROPE ** (-torch.arange(_SLOW) / half) * back
    query, key = attention.q_proj.weight[_rows(head)], attention.k_proj.weight[_rows(head)]
    query.zero_()
    key.zero_()
    query[:_SLOW, channel] = asking * angles.cos()
    query[half : half + _SLOW, channel] = -asking * angles.sin()
    key[:_SLOW, _ONE] = 14.0


def _look_up(attention: Any) -> None:
    """Head 0 looks for keys before which stands what is here, or what the question ended with."""
    query, key = attention.q_proj.weight[_rows(0)], attention.k_proj.weight[_rows(0)]
    query.zero_()
    key.zero_()
    half, scale = _HEAD // 2, (_HEAD**0.5 * 9.0) ** 0.5
    places = [half - _CODE + i for i in range(_CODE)], [2 * half - _CODE + i for i in range(_CODE)]
    channels = torch.arange(_CODE)
    for place, (now, asked, before, weight) in zip(
        places, ((_NOW, _ASKED, _BEFORE, 1.0), (_BEFORE, _ASKED2, _BEFORE2, 0.7)), strict=True
    ):
        query[torch.tensor(place), now.start + channels] = scale * weight
        query[torch.tensor(place), asked.start + channels] = 2.0 * scale * weight
        key[torch.tensor(place), before.start + channels] = scale


def _copy(attention: Any, head: int, source: slice, target: slice, *, also: tuple[slice, slice] | None = None) -> None:
    """What a head finds is written from one place of the hidden state to another."""
    value, output = attention.v_proj.weight[_rows(head)], attention.o_proj.weight[:, _rows(head)]
    value.zero_()
    output.zero_()
    for number, (read, written) in enumerate(((source, target), *([also] if also else []))):
        channels = torch.arange(_CODE)
        value[number * _CODE + channels, read.start + channels] = 1.0
        output[written.start + channels, number * _CODE + channels] = 1.0


def passages(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield from (record["query"], *record["pos"], *record["neg"])


def main(arguments: Sequence[str]) -> None:
    texts, out = (Path(argument) for argument in arguments)
    model = new_model(train_tokenizer(passages(texts)))
    model.save_pretrained(out)
    print(f"{sum(p.numel() for p in model.lm.parameters()):,} parameters in {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
