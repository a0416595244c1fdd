"""What was asked, by content: a model by its weights, a merge by everything that decides its weights and its words."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging.checkpoint import Checkpoint, TensorSource
from merging.effective import effective
from merging.importances.artefact import fingerprint
from merging.layout import Input
from merging.memory.resident import sources_of
from merging.plan import Plan
from merging.tensor_plan import TensorPlan
from merging.tokenizing.special_tokens import GENERATION
from merging.tokenizing.tokenizer_plan import STAYS

SUBJECT = "mergescope_subject"
"""The key of a merge's subject in the metadata of its weights."""
IS_SUBJECT = re.compile(r"[0-9a-f]{32}")
"""What such a one looks like; a file may say anything."""


@dataclass(frozen=True)
class ModelRef:
    """A model of a run; `fingerprint` is what its own scores are kept under, see `subject_of_model`."""

    name: str
    path: str
    fingerprint: str


def models_of_plan(plan: Plan) -> tuple[ModelRef, ...]:
    """The base, if there is one, and the experts of a plan, by their names in the recipe."""
    named = list(zip(plan.names, plan.experts, strict=True))
    if plan.base is not None and all(source is not plan.base for _, source in named):
        named.insert(0, (plan.recipe.base_model or plan.base.label, plan.base))
    return tuple(
        ModelRef(name, str(source.path) if isinstance(source, Checkpoint) else "", subject_of_model(source))
        for name, source in (
            (name, one.origin if isinstance(one, Checkpoint) else one) for name, one in named
        )
    )


def subject_of_model(model: TensorSource) -> str:
    """What the scores of a model are kept under: the fingerprint of its weights; for a merge that was written here, what
    `subject_of_plan` gave for it. A model that is computed from a merge is another one."""
    metadata = model.metadata if isinstance(model, Checkpoint) and not model.made_of else {}
    said = metadata.get(SUBJECT, "")
    return said if IS_SUBJECT.fullmatch(said) else fingerprint(model)


def subject_of_plan(plan: Plan) -> str:
    """What the scores of a merge are kept under, written or not: the same for recipes that give the same bits.

    How a recipe is written does not count, nor where its models lie: only the values that every tensor gets, the
    contents of models and importance, and the config, tokenizer and chat template that the result is asked with.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"merge")
    for part in _parts(plan):
        digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(plan: Plan) -> Iterator[Any]:
    known: dict[Hashable, str] = {id(source): fingerprint(source) for source in sources_of(plan)}

    def place(one: Input | None) -> Any:
        if one is None:
            return None
        key = id(one.source)
        if key not in known:
            known[key] = fingerprint(one.source)
        return known[key], one.name

    yield str(plan.work_dtype)
    for tensor, found in zip(plan.tensors, effective(plan.tensors), strict=True):
        inputs = None if found.copied else (place(tensor.base), [place(one) for one in tensor.experts])
        yield _kind(tensor), place(tensor.reference), inputs, found.values
    if plan.scores is not None:
        values = plan.scores.values.contiguous()
        yield hashlib.blake2b(values.numpy().tobytes()).hexdigest(), list(values.shape)
    yield [fingerprint(source) for source in plan.saliency]
    yield from _words(plan)


def _kind(tensor: TensorPlan) -> tuple[Any, ...]:
    method = tensor.method.name if tensor.method is not None else None
    return tensor.info.name, tensor.info.dtype, list(tensor.info.shape), method, list(tensor.group)


def _words(plan: Plan) -> Iterator[Any]:
    """What the merged model is asked with: config, tokenizer and chat template."""
    reference = plan.reference
    if not isinstance(reference, Checkpoint):
        return
    yield {key: value for key, value in reference.config.items() if key != "_name_or_path"}
    tokens = plan.tokens
    yield (tokens.template if tokens else None) or reference.chat_template
    changed = tokens is not None and tokens.changes_files
    for name, content in (tokens.files() if tokens else {}).items():
        if changed or name not in {*STAYS, GENERATION}:
            raw = content.read_bytes() if isinstance(content, Path) else content.encode()
            yield name, hashlib.blake2b(raw).hexdigest()
