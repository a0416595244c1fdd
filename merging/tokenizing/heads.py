"""Output heads: which models have one of their own, which share it with the embedding, and which the output gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merging.checkpoint import Checkpoint

GENERATES = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
"""What the names of architectures with an output head end in."""
TIE = "tie_word_embeddings"


def stand_ins(models: Sequence[Checkpoint], others: Sequence[Checkpoint] = ()) -> dict[int, dict[str, str]]:
    """For each model without a head, where one of them or of `others` has one: the head's name and the embedding that stands
    for it; by the model's identity."""
    head = next((model.head for model in (*models, *others) if model.head is not None), None)
    found: dict[int, dict[str, str]] = {}
    for model in models:
        embedding = model.embedding
        if head is not None and embedding is not None and model.head is None:
            found[id(model)] = {head: embedding}
    return found


def with_tie(config: Mapping[str, Any], reference: Checkpoint, head: bool) -> dict[str, Any]:
    """The reference's config for an output with a head of its own, or without one."""
    made = dict(config)
    if head == (reference.head is not None) and (head or reference.tied or not loses_head(reference)):
        return made
    made[TIE] = not head
    for key, inner in made.items():
        if key.endswith("config") and isinstance(inner, Mapping) and TIE in inner:
            made[key] = {**inner, TIE: not head}
    return made


def loses_head(source: Checkpoint) -> bool:
    """Whether a model that generates lacks its head, though its config says that it has one."""
    generates = source.architecture is not None and source.architecture.endswith(GENERATES)
    return generates and not source.tied and source.embedding is not None and source.head is None


def head_kind(source: Checkpoint) -> str | None:
    """ "own", "tied" or "missing"; None for a model that has no use for one."""
    if source.head is not None:
        return "own"
    if source.tied:
        return "tied"
    return "missing" if loses_head(source) else None
