"""gritkit_config.json: what is accepted, and one line for everything else."""

from __future__ import annotations

import json

import pytest

from gritkit.config import FORMAT_VERSION, EmbeddingConfig
from gritkit.errors import CheckpointError, InputError

WHERE = "folder/gritkit_config.json"


def test_round_trip() -> None:
    config = EmbeddingConfig(
        embedding_attention="causal",
        embedding_window="full",
        pooling="weighted_mean",
        prompt_format="grit",
        max_length=99,
        matryoshka_dims=(8, 16),
    )
    assert EmbeddingConfig.from_json(config.to_json(), WHERE) == config
    assert EmbeddingConfig.from_json(json.dumps({"format_version": FORMAT_VERSION}), WHERE) == EmbeddingConfig()


def test_override_replaces_what_is_given() -> None:
    config = EmbeddingConfig(pooling="last", max_length=7)
    assert config.override(pooling=None, max_length=9) == EmbeddingConfig(pooling="last", max_length=9)
    with pytest.raises(InputError, match="pooling='max' is not one of mean, weighted_mean, last, cls"):
        config.override(pooling="max")


def test_attention_codes_of_the_original_grit() -> None:
    named = {
        code: EmbeddingConfig().override(embedding_attention=code).embedding_attention
        for code in ("bbcc", "bb", "bidirectional", "cccc", "cc", "causal")
    }
    assert list(named.values()) == ["bidirectional"] * 3 + ["causal"] * 3
    with pytest.raises(InputError, match="'cbcc': instruction and text attend alike"):
        EmbeddingConfig().override(embedding_attention="cbcc")
    with pytest.raises(InputError, match="'bbbc': generation is causal"):
        EmbeddingConfig().override(embedding_attention="bbbc")
    with pytest.raises(InputError, match="'b' is not one of"):
        EmbeddingConfig().override(embedding_attention="b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "holds list instead of an object"),
        ("{}", "has format version None and this gritkit reads 1"),
        ('{"format_version": 2}', "has format version 2 and this gritkit reads 1: save the model again .* or update"),
        ('{"format_version": true}', "has format version True"),
        ('{"format_version": 1, "layers": 3}', "has an unknown field 'layers'; known are embedding_attention"),
        ('{"format_version": 1, "pooling": "max"}', "pooling='max' is not one of"),
        ('{"format_version": 1, "pooling": ["mean"]}', r"pooling=\['mean'\] is not one of"),
        ('{"format_version": 1, "embedding_attention": null}', "embedding_attention=None is not one of"),
        ('{"format_version": 1, "embedding_window": "open"}', "embedding_window='open' is not one of"),
        ('{"format_version": 1, "max_length": "512"}', "max_length='512' must be a positive whole number"),
        ('{"format_version": 1, "max_length": true}', "max_length=True must be a positive whole number"),
        ('{"format_version": 1, "max_length": 0}', "max_length=0 must be"),
        ('{"format_version": 1, "prompt_format": ["grit"]}', r"prompt_format=\['grit'\] must be"),
        ('{"format_version": 1, "matryoshka_dims": 64}', "matryoshka_dims=64 must be"),
        ('{"format_version": 1, "matryoshka_dims": [64, "a"]}', "matryoshka_dims=.* must be"),
        ('{"format_version": 1, "matryoshka_dims": [0]}', "matryoshka_dims=.* must be"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        EmbeddingConfig.from_json(text, WHERE)
    assert str(caught.value).startswith(WHERE)
    assert "\n" not in str(caught.value)
