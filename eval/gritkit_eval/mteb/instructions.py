"""What a model is told a task is about: the instructions that GRIT was evaluated with, and a user's own.

A task that the GRIT set (Muennighoff et al. 2024, arXiv 2402.09906, the "e5" set of its evaluation) does not name takes
mteb's prompt for it, and without one a sentence for its type. In retrieval the queries alone are instructed; in all
other types both sides are, reranking included, as in that set.

This module knows nothing about models or data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit.errors import InputError
from gritkit.files import resolve

QUERY_ONLY = frozenset({"Retrieval", "InstructionRetrieval", "InstructionReranking"})
"""Types whose documents are embedded without an instruction."""
TWO_SIDED = QUERY_ONLY | {"Reranking"}
"""Types whose two sides are a query and a document; in all others every text is a query."""

_RETRIEVAL = {
    "ArguAna": "Given a claim, find documents that refute the claim",
    "ClimateFEVER": "Given a claim about climate change, retrieve documents that support or refute the claim",
    "CQADupstack": "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates "
    "to the given question",
    "DBPedia": "Given a query, retrieve relevant entity descriptions from DBPedia",
    "FEVER": "Given a claim, retrieve documents that support or refute the claim",
    "FiQA2018": "Given a financial question, retrieve user replies that best answer the question",
    "HotpotQA": "Given a multi-hop question, retrieve documents that can help answer the question",
    "MSMARCO": "Given a web search query, retrieve relevant passages that answer the query",
    "NFCorpus": "Given a question, retrieve relevant documents that best answer the question",
    "NQ": "Given a question, retrieve Wikipedia passages that answer the question",
    "QuoraRetrieval": "Given a question, retrieve questions that are semantically equivalent to the given question",
    "SCIDOCS": "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper",
    "SciFact": "Given a scientific claim, retrieve documents that support or refute the claim",
    "Touche2020": "Given a question, retrieve detailed and persuasive arguments that answer the question",
    "TRECCOVID": "Given a query on COVID-19, retrieve documents that answer the query",
}
_RERANKING = {
    "AskUbuntuDupQuestions": "Retrieve duplicate questions from AskUbuntu forum",
    "MindSmallReranking": "Retrieve relevant news articles based on user browsing history",
    "SciDocsRR": "Given a title of a scientific paper, retrieve the titles of other relevant papers",
    "StackOverflowDupQuestions": "Retrieve duplicate questions from StackOverflow forum",
}
_CLASSIFICATION = {
    "AmazonCounterfactualClassification": "Classify a given Amazon customer review text as either counterfactual or "
    "not-counterfactual",
    "AmazonPolarityClassification": "Classify Amazon reviews into positive or negative sentiment",
    "AmazonReviewsClassification": "Classify the given Amazon review into its appropriate rating category",
    "Banking77Classification": "Given a online banking query, find the corresponding intents",
    "EmotionClassification": "Classify the emotion expressed in the given Twitter message into one of the six "
    "emotions: anger, fear, joy, love, sadness, and surprise",
    "ImdbClassification": "Classify the sentiment expressed in the given movie review text from the IMDB dataset",
    "MassiveIntentClassification": "Given a user utterance as query, find the user intents",
    "MassiveScenarioClassification": "Given a user utterance as query, find the user scenarios",
    "MTOPDomainClassification": "Classify the intent domain of the given utterance in task-oriented conversation",
    "MTOPIntentClassification": "Classify the intent of the given utterance in task-oriented conversation",
    "ToxicConversationsClassification": "Classify the given comments as either toxic or not toxic",
    "TweetSentimentExtractionClassification": "Classify the sentiment of a given tweet as either positive, negative, "
    "or neutral",
}
_CLUSTERING = {
    "ArxivClusteringP2P": "Identify the main and secondary category of Arxiv papers based on the titles and abstracts",
    "ArxivClusteringS2S": "Identify the main and secondary category of Arxiv papers based on the titles",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles",
    "RedditClustering": "Identify the topic or theme of Reddit posts based on the titles",
    "RedditClusteringP2P": "Identify the topic or theme of Reddit posts based on the titles and posts",
    "StackExchangeClustering": "Identify the topic or theme of StackExchange posts based on the titles",
    "StackExchangeClusteringP2P": "Identify the topic or theme of StackExchange posts based on the given paragraphs",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles",
}
_PAIRS = {
    "SprintDuplicateQuestions": "Retrieve duplicate questions from Sprint forum",
    "TwitterSemEval2015": "Retrieve tweets that are semantically similar to the given tweet",
    "TwitterURLCorpus": "Retrieve tweets that are semantically similar to the given tweet",
}
GRIT_SET: Mapping[str, str] = _RETRIEVAL | _RERANKING | _CLASSIFICATION | _CLUSTERING | _PAIRS
"""mteb's name of a task, without its version -> instruction."""
BY_TYPE: Mapping[str, str] = {
    "BitextMining": "Retrieve parallel sentences.",
    "Classification": "Classify user passages.",
    "Clustering": "Identify categories in user passages.",
    "InstructionReranking": "Retrieve text based on user query.",
    "InstructionRetrieval": "Retrieve text based on user query.",
    "MultilabelClassification": "Classify user passages.",
    "PairClassification": "Retrieve text that are semantically similar to the given text.",
    "Regression": "Predict the value of the user passage.",
    "Reranking": "Retrieve text based on user query.",
    "Retrieval": "Retrieve text based on user query.",
    "STS": "Retrieve semantically similar text.",
    "Summarization": "Given a news summary, retrieve other semantically similar summaries",
    "ZeroShotClassification": "Classify the given input into one of the candidate labels.",
}
_VARIANT = re.compile(r"(?:HardNegatives|\.v\d+)+$")


@dataclass(frozen=True)
class Instruction:
    """Of one task; None: that side has none."""

    query: str | None
    """Of queries, and of all texts of a task without documents."""
    passage: str | None
    """Of documents."""


Overrides = Mapping[str, "str | Instruction"]
"""A task's name or type -> what its user wants instead."""


def instruction_for(task: Any, overrides: Overrides | None = None) -> Instruction:
    """For a task's mteb metadata: the user's own by its name or else its type, the GRIT set's, mteb's, the type's."""
    given = (overrides or {}).get(task.name, (overrides or {}).get(task.type))
    if isinstance(given, Instruction):
        return given
    if given is not None:
        return _sides(given, task.type)
    known = _known(task.name)
    if known is not None:
        return _sides(known, task.type)
    if isinstance(task.prompt, Mapping):
        return Instruction(task.prompt.get("query") or None, task.prompt.get("document") or None)
    return _sides(task.prompt or BY_TYPE.get(task.type), task.type)


def load_overrides(path: Path, known: Collection[str]) -> dict[str, str | Instruction]:
    """A user's JSON file: ``{task or type: instruction}`` or ``{task or type: {"query": ..., "passage": ...}}``.

    An instruction of ``""`` or ``null`` means none.

    Raises:
        InputError: naming file and key, for what is neither, or a name that is not among ``known``.
    """
    path = resolve(path)
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the instructions in {path}: {error}") from None
    if not isinstance(given, dict):
        raise InputError(f"{path} must hold one JSON object of task -> instruction, not a {type(given).__name__}")
    return {name: _override(path, name, value, known) for name, value in given.items()}


def _override(path: Path, name: str, value: Any, known: Collection[str]) -> str | Instruction:
    if name not in known:
        raise InputError(f"{path}: {name!r} is neither a task nor a type of this run: {', '.join(sorted(known))}")
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise InputError(f"{path}: {name!r} must be a string or an object of query and passage, not {value!r:.60}")
    for side, text in value.items():
        if side not in ("query", "passage"):
            raise InputError(f"{path}: {name!r} has a key {side!r}; an instruction has query and passage")
        if text is not None and not isinstance(text, str):
            raise InputError(f"{path}: {name!r}: {side!r} must be a string, not {text!r:.60}")
    return Instruction(value.get("query") or None, value.get("passage") or None)


def _known(name: str) -> str | None:
    if name.startswith("CQADupstack"):
        return GRIT_SET["CQADupstack"]
    bare = _VARIANT.sub("", name)
    return GRIT_SET.get(bare) or GRIT_SET.get(bare.removesuffix("Retrieval"))


def _sides(text: str | None, task_type: str) -> Instruction:
    return Instruction(text or None, None if task_type in QUERY_ONLY else text or None)
