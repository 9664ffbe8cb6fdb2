"""A GritModel as mteb knows models: texts of a task in, vectors out, with the task's instruction.

What mteb asks of an encoder is its ``EncoderProtocol`` (``encode``, ``similarity``, ``similarity_pairwise``,
``mteb_model_meta``); :class:`Encoder` is all of it but the vectors, for any model.

This module knows nothing about data, metrics or results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gritkit.errors import InputError, MissingExtraError
from gritkit.prompts import Role
from gritkit_eval.mteb.instructions import TWO_SIDED, Instruction, Overrides, instruction_for

if TYPE_CHECKING:
    import torch

    from gritkit import GritModel

Vectors = NDArray[np.float32]
REVISION = 40
"""Characters of a fingerprint that name a model's results, as many as a commit has."""


class Encoder(ABC):
    """mteb's EncoderProtocol around :meth:`vectors`; similarity is the cosine."""

    @abstractmethod
    def vectors(self, texts: Sequence[str], task: Any, *, document: bool) -> Vectors:
        """float32 [n, dim] of distinct texts. ``task``: mteb's TaskMetadata."""

    @property
    @abstractmethod
    def mteb_model_meta(self) -> Any:
        """mteb's ModelMeta."""

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, hf_split: str, hf_subset: str,
        prompt_type: Any = None, **kwargs: Any,
    ) -> Vectors:  # fmt: skip
        """float32 [n, dim] of the ``text`` of every batch; a text that comes twice is embedded once."""
        texts = [text for batch in inputs for text in batch["text"]]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        found = self.vectors(list(places), task_metadata, document=prompt_type == "document")
        return np.ascontiguousarray(found[[places[text] for text in texts]], dtype=np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines [n, m] of vectors [n, dim] and [m, dim] (or single ones, [dim]); 0 for a vector of zeros."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines [n] of vectors [n, dim] and [n, dim], one by one."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)


class GritEncoder(Encoder):
    """A GritModel that embeds the texts of mteb's tasks.

    ``instructions`` replace the GRIT set's (task name or type -> instruction). ``dim`` keeps the first dimensions of
    each vector and ``layers`` runs only the first layers, for models trained for that. Texts longer than ``max_length``
    tokens (default: the checkpoint's own limit) are cut. A text without words has a vector of zeros: nothing is near
    it.

    Raises:
        InputError: for a ``dim``, ``layers`` or ``max_length`` that the model does not have.
    """

    def __init__(
        self, model: GritModel, *, name: str, dim: int | None = None, layers: int | None = None,
        max_length: int | None = None, instructions: Overrides | None = None,
    ) -> None:  # fmt: skip
        if dim is not None and not 1 <= dim <= model.dim:
            raise InputError(f"dim={dim} must be between 1 and {model.dim}")
        if layers is not None and not 1 <= layers <= len(model.windows):
            raise InputError(f"layers={layers} must be between 1 and {len(model.windows)}")
        limit = min(model.embedding_config.max_length, model.context_length)
        if max_length is not None and not 1 <= max_length <= model.context_length:
            raise InputError(f"max_length={max_length} must be between 1 and {model.context_length}")
        self.model = model
        self.name = name
        self.dim = dim
        self.layers = layers
        self.max_length = max_length or limit
        self.instructions = instructions

    def instruction(self, task: Any) -> Instruction:
        """What this model is told about a task (its mteb metadata); None where its format has no place for it."""
        asked, form = instruction_for(task, self.instructions), self.model.tokens.format
        has_place = {"query": form.query_instructed is not None, "passage": form.passage_instructed is not None}
        return Instruction(
            asked.query if has_place[_role(task, document=False)] else None,
            asked.passage if has_place[_role(task, document=True)] else None,
        )

    def settings(self, task: Any) -> dict[str, Any]:
        """What figures depend on beside the model and the task, as plain JSON values."""
        layers = {} if self.layers is None else {"layers": self.layers}
        return {
            "dim": self.dim, "max_length": self.max_length, "instruction": dataclasses.asdict(self.instruction(task)),
            **layers,
        }  # fmt: skip

    def vectors(self, texts: Sequence[str], task: Any, *, document: bool) -> Vectors:
        instruction, role = self.instruction(task), _role(task, document=document)
        wordy = [place for place, text in enumerate(texts) if text.strip()]
        result = np.zeros((len(texts), self.dim or self.model.dim), dtype=np.float32)
        result[wordy] = self.model.embed(
            [texts[place] for place in wordy], role=role, dim=self.dim, layers=self.layers, max_length=self.max_length,
            truncate=True, instruction=instruction.passage if document else instruction.query,
        )  # fmt: skip
        return result

    @cached_property
    def mteb_model_meta(self) -> Any:
        sizes = [parameter.numel() * parameter.element_size() for parameter in self.model.parameters()]
        changed: dict[str, Any] = {
            name: value for name, value in (("dim", self.dim), ("layers", self.layers)) if value is not None
        }
        if self.max_length != min(self.model.embedding_config.max_length, self.model.context_length):
            changed["max_length"] = self.max_length
        if self.instructions is not None:
            changed["instructions"] = _digest(self.instructions)
        return model_meta(
            self.name,
            self.model.fingerprint,
            n_parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            n_embedding_parameters=self.model.lm.get_input_embeddings().weight.numel(),  # type: ignore[operator]
            memory_usage_mb=sum(sizes) / 2**20,
            max_tokens=self.max_length,
            embed_dim=self.dim or self.model.dim,
            framework=["PyTorch"],
            use_instructions=self.model.tokens.format.query_instructed is not None,
            experiment_kwargs=changed or None,
        )


def model_meta(name: str, fingerprint: str, **known: Any) -> Any:
    """mteb's ModelMeta of a model that is on no hub; what is not ``known`` stays empty.

    Raises MissingExtraError where mteb is not installed.
    """
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ImportError:
        raise MissingExtraError("mteb", "eval") from None
    named = name if "/" in name else f"gritkit/{name}"  # mteb wants a name with an owner
    given = {"name": named, "revision": fingerprint[:REVISION], "similarity_fn_name": ScoringFunction.COSINE, **known}
    empty = {name: None for name, field in ModelMeta.model_fields.items() if field.is_required()}
    known_here = {name: value for name, value in given.items() if name in ModelMeta.model_fields}  # they grow with mteb
    return ModelMeta(**{**empty, "framework": [], **known_here})


def _digest(instructions: Overrides) -> str:
    plain = {
        name: dataclasses.asdict(told) if isinstance(told, Instruction) else told for name, told in instructions.items()
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _role(task: Any, *, document: bool) -> Role:
    return "passage" if document and task.type in TWO_SIDED else "query"


def _unit(vectors: Any) -> torch.Tensor:
    import torch

    rows = torch.atleast_2d(torch.as_tensor(vectors, dtype=torch.float32))
    return torch.nn.functional.normalize(rows, dim=-1)
