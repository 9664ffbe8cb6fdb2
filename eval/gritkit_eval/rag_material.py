"""Question sets of real text for a very small model: what two models are trained on, and what they are asked.

    python -m gritkit_eval.rag_material SHARED MODEL OUT

``SHARED`` is the folder of data sets, ``MODEL`` the model whose tokenizer decides how long a text may be. Of each
training question there are two forms: a record with an ``answer`` that reads its passages (``with/``, for
``gritkit train grit_rag``), and the same record without it beside a conversation whose user turn holds the passages as
an answer without reuse reads them (``without/``, for ``gritkit train grit``). Answers stand in the passages word for
word (but for yes and no), since a small model has little else to say:

    medquad   a question about a disease; the answer is how the passage begins; distractors are about the same disease
    quotes    some words of a sentence; the answer is what follows them; distractors are of the same article, or any
    boolq     a yes/no question

Test questions (``test/``) come from files that are held out of all training, and from HotpotQA and RGB besides.
This module knows nothing about models beyond their tokenizer.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit.prompts import GRIT

PASSAGE_TOKENS = 80
"""Of a passage, its format aside."""
QUESTION_TOKENS = 48
"""Of a question and its answer together, their template aside."""
_ANSWER_TOKENS = 12
_SEED = 0
_TEST_SIZE = 400


@dataclass(frozen=True)
class Asked:
    """A question, its answer, the passage that has it and others that do not."""

    question: str
    answer: str
    gold: str
    others: tuple[str, ...]


Size = Callable[[str], int]
"""Tokens of a text."""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def clean(text: str) -> str:
    """Plain ASCII with single spaces: anything else is three tokens a character here."""
    return " ".join(re.sub(r"[^\x20-\x7e]+", " ", text).split())


def cut(text: str, limit: int, size: Size) -> str:
    """The first words of a text that are at most ``limit`` tokens."""
    words = text.split()[: limit * 2]
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(" ".join(words[:middle])) <= limit else (low, middle - 1)
    return " ".join(words[:low])


def medquad(path: Path, size: Size, chance: random.Random) -> Iterator[Asked]:
    for row in rows(path):
        question = clean(row["query"])
        spare = QUESTION_TOKENS - size(question)
        gold = cut(clean(row["pos"][0]), PASSAGE_TOKENS, size)
        others = [cut(clean(text), PASSAGE_TOKENS, size) for text in row["neg"][:2]]
        answer = cut(gold, min(spare, _ANSWER_TOKENS), size)
        if len(answer.split()) >= 3 and len(gold.split()) >= 8:
            yield Asked(question, answer, gold, tuple(text for text in others if len(text.split()) >= 8))


def quote(text: str, chance: random.Random, size: Size) -> tuple[str, str] | None:
    """(some words of a text that stand there once, the words after them), or None where there are none."""
    words = text.split()
    if len(words) < 14:
        return None
    for _ in range(4):
        start = chance.randrange(0, len(words) - 8)
        asked, answer = " ".join(words[start : start + 4]), " ".join(words[start + 4 : start + 8])
        if text.count(asked) == 1 and size(asked) + size(answer) <= QUESTION_TOKENS - 10:
            return asked, answer
    return None


def quotes(sections: Iterable[tuple[str, Sequence[str]]], size: Size, chance: random.Random) -> Iterator[Asked]:
    """From (section, other sections of its article)."""
    before: list[str] = []
    for section, same in sections:
        gold = cut(clean(section), PASSAGE_TOKENS, size)
        others = [cut(clean(text), PASSAGE_TOKENS, size) for text in same]
        others = [text for text in others if len(text.split()) >= 8 and text != gold] + before[-1:]
        found = quote(gold, chance, size)
        before = [*before[-8:], gold]
        if found and not any(found[0] in text for text in others):
            yield Asked(f"Complete: {found[0]}", found[1], gold, tuple(others[:2]))


def boolq(path: Path, size: Size) -> Iterator[Asked]:
    before: list[str] = []
    for row in rows(path):
        gold = clean(row["passage"])
        question = clean(row["question"])
        if size(gold) <= PASSAGE_TOKENS and size(question) <= QUESTION_TOKENS - 6:
            yield Asked(question, "Yes" if row["answer"] else "No", gold, tuple(before[-2:]))
            before = [*before[-4:], gold]


def wikipedia_sections(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    for row in rows(path):
        parts = [part.split("\n", 1)[-1] for part in re.split(r"\n## ", row["text"])]
        parts = [part for part in parts if len(part) > 200]
        for index, part in enumerate(parts[:2]):
            yield part, [other for place, other in enumerate(parts[:3]) if place != index]


def training(shared: Path, size: Size) -> list[Asked]:
    """Every training question, shuffled; a third of them has one passage, a third two, a third three."""
    chance = random.Random(_SEED)
    triples = rows(shared / "contrastive" / "wiki_section_triples.jsonl.gz")
    questions = [
        *medquad(shared / "contrastive" / "medquad" / "train.jsonl.gz", size, chance),
        *quotes(((row["pos"][0], row["neg"]) for row in triples), size, chance),
        *boolq(shared / "gen_eval" / "boolq" / "train.jsonl.gz", size),
    ]
    chance.shuffle(questions)
    return [Asked(q.question, q.answer, q.gold, q.others[: index % 3]) for index, q in enumerate(questions)]


def with_answer(asked: Asked) -> dict[str, Any]:
    return {"query": asked.question, "pos": [asked.gold], "neg": list(asked.others), "answer": asked.answer}


def without_answer(asked: Asked) -> dict[str, Any]:
    return {"query": asked.question, "pos": [asked.gold], "neg": list(asked.others)}


def conversation(asked: Asked, chance: random.Random) -> dict[str, Any]:
    """The same question as a chat: the user's turn has the passages in the format in which they are embedded."""
    passages = [asked.gold, *asked.others]
    chance.shuffle(passages)
    read = "".join(GRIT.embed_prefix("passage", None) + passage for passage in passages)
    asking = GRIT.ask.replace("{question}", asked.question).removesuffix("\n<|assistant|>\n")
    return {"messages": [{"role": "user", "content": read + asking}, {"role": "assistant", "content": asked.answer}]}


def question(asked: Asked) -> dict[str, Any]:
    """A test question with its passages; the gold one is marked."""
    passages = [{"text": asked.gold, "gold": True}, *({"text": text, "gold": False} for text in asked.others)]
    return {"question": asked.question, "answer": asked.answer, "passages": passages}


def hotpotqa(path: Path) -> Iterator[dict[str, Any]]:
    for row in rows(path):
        passages = [{"text": clean(p["text"]), "gold": p["gold"]} for p in row["passages"]]
        yield {"question": clean(row["question"]), "answer": row["answer"], "passages": passages}


def rgb(path: Path) -> Iterator[dict[str, Any]]:
    for row in rows(path):
        passages = [{"text": clean(t), "gold": True} for t in row["positive"]]
        passages += [{"text": clean(t), "gold": False} for t in row["negative"]]
        yield {"question": clean(row["query"]), "answer": list(_answers(row["answer"])), "passages": passages}


def _answers(given: Any) -> Iterator[str]:
    """RGB gives one answer, several, or lists of spellings."""
    if isinstance(given, str):
        yield given
    else:
        for one in given:
            yield from _answers(one)


def write(path: Path, records: Iterable[dict[str, Any]]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def prepare(shared: Path, size: Size, out: Path) -> dict[str, int]:
    """Write everything; file -> records."""
    chance = random.Random(_SEED)
    shared = shared / "data"
    train = training(shared, size)
    sections = wikipedia_sections(shared / "lm" / "wikipedia_en" / "test.jsonl.gz")
    tests: dict[str, list[Asked]] = {
        "medquad": list(medquad(shared / "contrastive" / "medquad" / "test.jsonl.gz", size, chance)),
        "quotes": list(quotes(sections, size, chance)),
        "boolq": list(boolq(shared / "gen_eval" / "boolq" / "validation.jsonl.gz", size)),
    }
    files: dict[str, Iterable[dict[str, Any]]] = {
        "with/questions.jsonl": map(with_answer, train),
        "without/pairs.jsonl": map(without_answer, train),
        "without/conversations.jsonl": (conversation(asked, chance) for asked in train),
        "test/hotpotqa.jsonl": hotpotqa(shared / "rag" / "hotpotqa_mini" / "qa.jsonl.gz"),
        "test/rgb.jsonl": rgb(shared / "rag" / "rgb_en_fact" / "qa.jsonl.gz"),
    }
    for name, asked in tests.items():
        some = chance.sample(asked, min(_TEST_SIZE, len(asked)))
        files[f"test/{name}.jsonl"] = map(question, some)
    return {name: write(out / name, records) for name, records in files.items()}


def main(arguments: Sequence[str]) -> None:
    from tokenizers import Tokenizer

    shared, model, out = (Path(argument) for argument in arguments)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for name, count in prepare(
        shared, lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), out
    ).items():
        print(f"{count:8} {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
