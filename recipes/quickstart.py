"""From nothing to one small model that finds and writes docstrings, on two CPU cores in minutes.

    gritkit train quickstart output=out/quickstart

No downloads: the text is the docstrings of the Python standard library and of the packages installed beside gritkit,
found by parsing their files. Whole packages are held out, because inherited docstrings would leak otherwise. A
byte-level BPE tokenizer and a Mistral-architecture model with a sliding window are trained from scratch. In every step
the model learns both jobs: to find a docstring from the name and arguments of its function (contrastive loss), and to
write docstrings and short answers (next-token loss). The table compares held-out functions before and after, with BM25
and the fusion of both beside. A model this small finds well, and writes words rather than sense.

Written to ``output``: ``model``, ``losses.png``, ``results.md``, and ``held_out.jsonl`` to index.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedTokenizerFast

from gritkit import GritModel
from gritkit.config import EmbeddingConfig
from gritkit.data import EmbeddingRecord, GenerativeRecord
from gritkit.errors import InputError
from gritkit.files import resolve, write_atomic
from gritkit.metrics import ndcg_at_k, recall_at_k
from gritkit.prompts import GRIT
from gritkit.search import reciprocal_rank_fusion, top_k
from gritkit.train import TrainConfig, train

_SKIP = {"test", "tests", "testing", "_test", "__pycache__", "site-packages", "dist-packages", "idlelib", "lib2to3"}
_SKIP |= {"turtledemo", "_vendor", "vendor", "vendored", "externals"}

# Packages held out wherever they are installed: well-known ones of the standard library, and some that gritkit brings.
_NAMES = """numpy networkx requests rich jinja2 click PIL fsspec sortedcontainers psutil dateutil tqdm markdown_it
asyncio email http urllib logging unittest tkinter turtle xml tarfile zipfile pathlib statistics collections threading
subprocess shutil functools random datetime json ssl socket inspect difflib textwrap itertools configparser argparse csv
sqlite3 os tempfile heapq bisect calendar string ast gzip imaplib smtplib ftplib mailbox ipaddress fractions decimal
_pydecimal contextlib typing enum codecs locale copy pickle queue sched secrets uuid"""
_HELD_OUT = set(_NAMES.split())
_FROM_ONE_PACKAGE = 250  # held-out functions, so that none dominates
_LONGEST = 600  # characters of a document

# Words, case changes, single digits and punctuation are pieces, so a name and the prose about it share tokens.
_PIECES = r" ?[A-Z]?[a-z]+| ?[A-Z]+(?![a-z])| ?[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Function:
    """A documented function or class of an installed package."""

    module: str
    name: str
    arguments: tuple[str, ...]
    is_class: bool
    document: str

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def query(self) -> str:
        """``numpy.linalg``, ``solve``, (a, b) -> "numpy linalg solve a b"."""
        words = _words(f"{self.module} {self.name} {' '.join(self.arguments)}")
        return " ".join(word for index, word in enumerate(words) if not index or word != words[index - 1])

    @property
    def signature(self) -> str:
        return f"{self.module}.{self.name}({', '.join(self.arguments)})"

    @property
    def question(self) -> str:
        return f"What does {' '.join(_words(self.name.split('.')[-1]))} do?"

    @property
    def first_sentence(self) -> str | None:
        found = re.match(r"(.{15,200}?)[.:](\s|$)", self.document)
        return found.group(1) + "." if found else None


def main(
    *, output: str = "out/quickstart", steps: int = 140, batch_size: int = 384, held_out: int = 1000, seed: int = 0
) -> None:
    """Collect, split, train, compare, save."""
    started = time.perf_counter()
    folder = resolve(output)
    train_on, unseen = split(collect(), seed)
    if len(unseen) < held_out:
        raise InputError(f"held_out={held_out}, but only {len(unseen)} functions can be held out here")
    unseen = unseen[:held_out]
    print(
        f"{len(train_on)} docstrings to train on, {held_out} functions of {_packages(unseen)} other packages held out"
    )
    model = new_model(train_tokenizer(train_on), seed)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, vocabulary {len(model.tokenizer)}")

    rows: list[tuple[str, float, float, float | None]] = [
        ("before training", *figures(dense(model, unseen)), next_token_loss(model, unseen))
    ]
    config = TrainConfig(
        output_dir=str(folder),
        max_steps=steps,
        embedding_batch_size=batch_size,
        generative_batch_size=32,
        num_hard_negatives=0,
        temperature=0.05,
        query_max_length=24,
        passage_max_length=48,
        generative_max_length=144,
        learning_rate=4e-3,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        adam_beta2=0.98,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        bf16=_fast_bf16(),
        tokens_per_row=8192,
        grad_cache=False,
        save_strategy="no",
        logging_steps=5,
        seed=seed,
    )
    train(model, records(train_on, seed), config)
    found, lexical = dense(model, unseen), bm25(unseen)
    rows.append(("after training", *figures(found), next_token_loss(model, unseen)))
    rows.append(("BM25", *figures(lexical), None))
    fused = [[int(i) for i, _ in reciprocal_rank_fusion(pair)] for pair in zip(found, lexical, strict=True)]
    rows.append(("both fused", *figures(fused), None))

    text = table(rows, held_out)
    print(text)
    write_atomic(folder / "results.md", text.encode())
    lines = (json.dumps({"id": one.signature, "text": one.document, "package": one.package}) for one in unseen)
    write_atomic(folder / "held_out.jsonl", "".join(line + "\n" for line in lines).encode())
    print(f"Saved {folder}/model, losses.png, results.md, held_out.jsonl; {time.perf_counter() - started:.0f} s in all")


# -- text ------------------------------------------------------------------------------------------------------------


def collect() -> list[Function]:
    """Every documented function and class of the standard library and site-packages; parsed, never imported."""
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return [one for found in pool.map(_documented, list(_files()), chunksize=64) for one in found]


def _files() -> Iterator[tuple[str, str]]:
    """(path, path relative to its root) of Python files, in a stable order."""
    places = sysconfig.get_paths()
    for root in dict.fromkeys([places["stdlib"], places["purelib"], places["platlib"]]):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in _SKIP)
            for name in sorted(names):
                if name.endswith(".py") and not name.startswith("test_"):
                    path = os.path.join(folder, name)
                    yield path, os.path.relpath(path, root)


def _documented(place: tuple[str, str]) -> list[Function]:
    path, relative = place
    try:
        source = Path(path).read_text(encoding="utf-8", errors="ignore")
        if '"""' not in source and "'''" not in source:
            return []
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    parts = relative.removesuffix(".py").removesuffix(f"{os.sep}__init__").split(os.sep)
    return list(_walk(tree, ".".join(parts), ()))


def _walk(node: ast.AST, module: str, owner: tuple[str, ...]) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inside = (*owner, child.name)
            docstring = ast.get_docstring(child)
            if docstring:
                arguments: tuple[str, ...] = ()
                if not isinstance(child, ast.ClassDef):
                    given = child.args
                    named = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                    arguments = tuple(name for name in named if name not in ("self", "cls"))
                is_class = isinstance(child, ast.ClassDef)
                yield Function(module, ".".join(inside), arguments, is_class, _body(docstring, child.name))
            yield from _walk(child, module, inside)
        elif isinstance(child, (ast.If, ast.Try)):
            yield from _walk(child, module, owner)


def _body(docstring: str, name: str) -> str:
    """The prose: without a leading signature, which would hand the answer to the query, without rules and layout."""
    lines = docstring.strip().split("\n")
    while lines and (not lines[0].strip() or re.match(rf"^\s*[\w.]*\b{re.escape(name)}\s*\(", lines[0])):
        open_brackets = lines[0].count("(") - lines[0].count(")")
        lines = lines[1:]
        while lines and open_brackets > 0:
            open_brackets += lines[0].count("(") - lines[0].count(")")
            lines = lines[1:]
    text = re.sub(r"^(--|->[^\n]*)\s*", "", "\n".join(lines).strip())
    text = re.sub(r"(?m)^\s*[-=~^\"*]{3,}\s*$", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0]


def _words(text: str) -> list[str]:
    text = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    text = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", text)
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


def split(functions: Sequence[Function], seed: int) -> tuple[list[Function], list[Function]]:
    """(to train on, held out): no exact duplicates, no near ones among the held-out or across the split."""
    seen: set[str] = set()
    kept = []
    for one in functions:
        key = re.sub(r"\W+", " ", one.document.lower())[:160]
        prose = sum(letter.isalpha() or letter == " " for letter in one.document)
        if len(one.document) >= 60 and prose >= 0.6 * len(one.document) and key not in seen and one.query:
            seen.add(key)
            kept.append(one)
    packages = _held_out_packages(Counter(one.package for one in kept if not one.is_class))
    candidates = [one for one in kept if one.package in packages and not one.is_class]
    random.Random(seed).shuffle(candidates)
    taken: Counter[str] = Counter()
    known: set[int] = set()
    unseen = []
    for one in candidates:
        shingles = _shingles(one.document)
        if taken[one.package] < _FROM_ONE_PACKAGE and len(shingles & known) <= 0.4 * len(shingles):
            taken[one.package] += 1
            known |= shingles
            unseen.append(one)
    train_on = []
    for one in kept:
        shingles = _shingles(one.document)
        if one.package not in packages and len(shingles & known) <= 0.3 * len(shingles):
            train_on.append(one)
    return train_on, unseen


def _held_out_packages(counts: Counter[str]) -> set[str]:
    """The fixed list; where little of it is installed, further packages in the order of a hash of their names."""
    held_out = _HELD_OUT & set(counts)
    room = 1500 - sum(min(_FROM_ONE_PACKAGE, counts[name]) for name in held_out)
    for name in sorted(set(counts) - held_out, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if room > 0 and counts[name] < counts.total() / 20:  # never one that most of the training text comes from
            held_out.add(name)
            room -= min(_FROM_ONE_PACKAGE, counts[name])
    return held_out


def _shingles(text: str, size: int = 5) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + size])) for i in range(max(1, len(words) - size + 1))}


def _packages(functions: Sequence[Function]) -> int:
    return len({one.package for one in functions})


def records(functions: Sequence[Function], seed: int) -> list[EmbeddingRecord | GenerativeRecord]:
    """A pair for each docstring; to write, the docstring from its signature or an answer about the docstring before it.

    The answers are the raw text of what ``gritkit ask`` lays out: the document, the question, the first sentence.
    """
    made: list[EmbeddingRecord | GenerativeRecord] = []
    draw = random.Random(seed)
    for one in functions:
        made.append(EmbeddingRecord.of(one.query, [one.document]))
        answer = one.first_sentence
        if answer and draw.random() < 0.5:
            before = one.document[: max(240, len(answer))]
            asked = GRIT.ask.replace("{question}", one.question)
            made.append(GenerativeRecord.of(GRIT.embed_prefix("passage", None) + before + asked + answer))
        elif len(one.signature) <= 200:  # a longer one leaves no room for what is to be written
            made.append(GenerativeRecord.of(_chat(one)))
    return made


def _chat(one: Function) -> list[str]:
    return [f"Document {one.signature}", one.document]


# -- model -----------------------------------------------------------------------------------------------------------


def train_tokenizer(functions: Sequence[Function], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """Uncased byte-level BPE; the markers of the prompt format are one token each."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    pieces = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytes_of])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(GRIT.markers),
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((text for one in functions[::2] for text in (" " + one.query, one.document)), trainer)
    backend.add_tokens([AddedToken(marker, special=False) for marker in GRIT.markers])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int, hidden: int = 256, layers: int = 2) -> GritModel:
    """Random weights of deviation 1/sqrt(width) (LeCun); the usual 0.02 is that of a width of 2,500."""
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        sliding_window=128,
        max_position_embeddings=2048,
        initializer_range=hidden**-0.5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    lm = AutoModelForCausalLM.from_config(config)
    return GritModel.from_parts(lm, tokenizer, EmbeddingConfig(prompt_format="grit", max_length=1024))


def _fast_bf16() -> bool:
    """Whether the processor multiplies bf16 faster than fp32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and bool({"amx_bf16", "avx512_bf16"} & set(flags.read_text(encoding="utf-8").split()))


# -- figures ---------------------------------------------------------------------------------------------------------

Rankings = list[list[int]]
"""For each query the places of documents, best first; the right one of query i is i."""


def dense(model: GritModel, functions: Sequence[Function], depth: int = 100) -> Rankings:
    """By the model's vectors."""
    model.eval()
    queries = model.embed([one.query for one in functions], role="query", truncate=True)
    documents = model.embed([one.document for one in functions], truncate=True)
    places: NDArray[np.int64] = top_k(queries, documents, depth)[1]
    return [list(map(int, row)) for row in places]


def bm25(functions: Sequence[Function], depth: int = 100) -> Rankings:
    """By the words, with the library bm25s at its defaults."""
    import bm25s

    index = bm25s.BM25()
    tokenized = bm25s.tokenize([one.document for one in functions], stopwords="en", show_progress=False)
    index.index(tokenized, show_progress=False)
    queries = bm25s.tokenize([one.query for one in functions], stopwords="en", show_progress=False)
    found, _ = index.retrieve(queries, k=depth, show_progress=False)
    return [list(map(int, row)) for row in found]


def figures(rankings: Rankings) -> tuple[float, float]:
    """Mean recall@10 and nDCG@10."""
    recall = [recall_at_k(ranking, {right: 1.0}, 10) for right, ranking in enumerate(rankings)]
    ndcg = [ndcg_at_k(ranking, {right: 1.0}, 10) for right, ranking in enumerate(rankings)]
    return float(np.mean(recall)), float(np.mean(ndcg))


@torch.no_grad()
def next_token_loss(model: GritModel, functions: Sequence[Function], count: int = 300) -> float:
    """Nats a token of held-out docstrings, given their signatures."""
    from gritkit.batch import pack, rows_of

    model.eval()
    chats = [_chat(one) for one in functions[:count]]
    roles = ("user", "assistant")
    examples = [
        model.tokens.chat_example([{"role": role, "content": text} for role, text in zip(roles, chat, strict=True)])
        for chat in chats
    ]
    rows = [pack([examples[i] for i in row]) for row in rows_of([len(example) for example in examples], 2048)]
    summed = sum(float(model("next_token", row)) for row in rows)
    return summed / sum(int(row.loss_mask_T.sum()) for row in rows)


def table(rows: Sequence[tuple[str, float, float, float | None]], held_out: int) -> str:
    """The comparison, as Markdown."""
    lines = [
        f"| {held_out} held-out functions | recall@10 | nDCG@10 | next-token loss |",
        "| --- | --- | --- | --- |",
    ]
    for name, recall, ndcg, loss in rows:
        lines.append(f"| {name} | {recall:.3f} | {ndcg:.3f} | {'' if loss is None else f'{loss:.2f}'} |")
    return "\n".join(lines) + "\n"
