"""Embedding throughput: gritkit against sentence-transformers at its defaults and at its best batch size.

Same folder of random weights, same texts, each contestant as its user gets it. Vectors are checked equal before any
figure is reported. Speed does not depend on what the weights are, so no download is needed. After the comparison comes
a profile of what gritkit's own time is.

This module knows nothing about how processes are run or tables are written.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from gritkit.errors import GritkitError, InputError
from gritkit_eval.bench.embed_profile import described, profile
from gritkit_eval.bench.harness import Contestant, Running, Timing, fastest, interleave
from gritkit_eval.bench.report import section, table, title_of

_SIZES = {"6M": (256, 6, 768, 4), "28M": (512, 8, 1408, 8), "1B": (2048, 22, 5632, 32)}
"""Name -> hidden size, layers, feed-forward size, heads."""
_BATCH_SIZES = {"cpu": (4, 8, 16, 64), "cuda": (64, 128, 256, 512)}
"""Device -> what sentence-transformers is tried with beside its default, once each, to find its best."""
_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
"""Largest difference of a vector's component that still counts as the same output."""


def run(
    *,
    texts: Path | None,
    num: int,
    rounds: int,
    size: str,
    dtypes: Sequence[str],
    device: str,
    peer_python: str | None,
    command: str,
) -> str:
    """The section for the results file; ``command`` makes the same.

    Raises:
        InputError: for a size, dtype or device that there is not.
        GritkitError: where contestants disagree on the vectors.
    """
    for dtype in dtypes:
        check_known("dtype", dtype, _TOLERANCE)
    chosen = _choose(texts, num)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "texts.json").write_text(json.dumps(chosen), encoding="utf-8")
        num_tokens = make_model(place / "model", chosen, size, device)
        rows: list[list[str]] = []
        versions: dict[str, str] = {}
        profiles = []
        for dtype in dtypes:
            found = _compare(place, dtype, rounds, device, peer_python, num_tokens, versions)
            for row in found:  # a run that is cut short has then said what it found
                typer.echo(" | ".join(row), err=True)
            rows += found
            profiles.append(profile(place, dtype, rounds, device))
    lengths = f"{len(chosen)} texts, {num_tokens} tokens ({num_tokens / len(chosen):.0f} a text)"
    body = (
        f"Embedding {lengths}, Mistral of {size} random parameters, {device}; median of {rounds} interleaved rounds, "
        "each contestant in its own process.\n\n"
        + table(["weights", "contestant", "tokens/s", "seconds (min - max)", "gritkit is", "vectors differ by"], rows)
        + f"\n\n{described(profiles)}"
    )
    return section(title_of("bench embed", device), command, versions, body)


def check_known(what: str, given: str, known: Collection[str]) -> None:
    """Raises InputError for what is not among the known."""
    if given not in known:
        raise InputError(f"{what}={given!r} is not one of {', '.join(known)}")


def check_device(device: str) -> None:
    """Raises InputError for a device that no benchmark knows, or that is not there."""
    import torch

    check_known("device", device, _BATCH_SIZES)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda': torch sees no GPU on this machine")


def _compare(
    place: Path,
    dtype: str,
    rounds: int,
    device: str,
    peer_python: str | None,
    num_tokens: int,
    versions: dict[str, str],
) -> list[list[str]]:
    """Rows of one precision."""
    options = {"folder": str(place / "model"), "texts": str(place / "texts.json"), "dtype": dtype, "device": device}
    peer = {"python": peer_python} if peer_python else {}
    ours = Running(Contestant("gritkit", "embed_gritkit.py", options))
    default = Running(Contestant("sentence-transformers, defaults", "embed_sentence_transformers.py", options, **peer))
    running = [ours]
    rows_of_missing: list[list[str]] = []
    if default.missing:
        rows_of_missing = [[dtype, default.contestant.name, f"skipped: no {default.missing}", "", "", ""]]
    else:
        running += [default, _best(options, peer)]
    try:
        timings = interleave(running, rounds)
        for each in running:
            versions.update(each.versions)
        vectors = {}
        for index, each in enumerate(running):
            path = place / f"{dtype}-{index}.npy"
            each.ask(save=str(path))
            vectors[each.contestant.name] = np.load(path)
    finally:
        for each in {*running, default}:
            each.close()
    return _rows(dtype, timings, vectors, num_tokens) + rows_of_missing


def _best(options: dict[str, str], peer: dict[str, str]) -> Running:
    """sentence-transformers at the batch size that is fastest here, by one run each after a warm-up."""
    worker = "embed_sentence_transformers.py"
    trial = Running(Contestant("sentence-transformers", worker, options, **peer))
    best = fastest(trial, [{**options, "batch_size": size} for size in _BATCH_SIZES[options["device"]]])
    trial.close()
    return Running(Contestant(f"sentence-transformers, batch_size={best['batch_size']}", worker, best, **peer))


def _rows(
    dtype: str, timings: dict[str, Timing], vectors: dict[str, NDArray[np.float32]], num_tokens: int
) -> list[list[str]]:
    rows = []
    ours = timings["gritkit"]
    for name, timing in timings.items():
        difference = float(np.abs(vectors[name] - vectors["gritkit"]).max())
        if not difference <= _TOLERANCE[dtype]:
            raise GritkitError(
                f"{name} ({dtype}): vectors differ from gritkit's by {difference:.1e}, so no figure counts"
            )
        low, high = timing.spread
        rows.append(
            [
                dtype,
                name,
                f"{num_tokens / timing.median:,.0f}",
                f"{timing.median:.2f} ({low:.2f} - {high:.2f})",
                "" if name == "gritkit" else f"{ours.ratio_to(timing):.2f}x as fast",
                "" if name == "gritkit" else f"{difference:.0e}",
            ]
        )
    return rows


def _choose(texts: Path | None, num: int) -> list[str]:
    """Texts of mixed length: the given file's lines, or docstrings of the standard library."""
    if texts is not None:
        try:
            found = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the texts: {error}") from None
    else:
        found = sorted(set(docstrings()))
    if len(found) < num:
        raise InputError(f"{len(found)} texts found and {num} wanted: give fewer with --num or more with --texts")
    return random.Random(0).sample(found, num)


def docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                doc = ast.get_docstring(node)
                if doc:
                    yield doc


def make_model(folder: Path, texts: list[str], size: str, device: str = "cpu") -> int:
    """A random model with a tokenizer trained on the texts, saved for both contestants. Returns the texts' tokens.

    Made on the device; on a GPU, where models are large, in bfloat16. Raises InputError for an unknown size or device.
    """
    check_known("size", size, _SIZES)
    check_device(device)
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedTokenizerFast

    from gritkit import GritModel
    from gritkit.config import EmbeddingConfig

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=8192, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    hidden, layers, inner, heads = _SIZES[size]
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=4096, sliding_window=None,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.device(device):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = GritModel.from_parts(lm, tokenizer, EmbeddingConfig(prompt_format="grit", max_length=4096))
    model.save_pretrained(folder)
    sequences = model.tokens.to_embed(texts, "passage", None, 4096, truncate=True)
    return sum(len(sequence) for sequence in sequences)
