"""Which stored tensors are one and the same: embedding and output head, and copies that some programs write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from merging.anatomy import locate
from merging.folders.header import TensorInfo

TIED_BY_DEFAULT = [
    "albert",
    "bart",
    "bert",
    "bloom",
    "deberta-v2",
    "distilbert",
    "electra",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "mbart",
    "mt5",
    "opt",
    "pegasus",
    "roberta",
    "t5",
    "xlm-roberta",
]
"""Model types whose config need not say that the head is tied."""
SAID_TO_BE_TIED = ("t5", "mt5", "umt5")
"""Model types whose config transformers always writes as tied, whether there is a head of its own or not."""
HEADED = ("CausalLM", "LMHeadModel", "MaskedLM", "ConditionalGeneration", "PreTraining", "WithLMHead")
"""Words in the name of a class that has an output head over the vocabulary."""
BUFFERS = (".rotary_emb.inv_freq", ".masked_bias", ".position_ids")
MASKS = (".attn.bias", ".attention.bias")


def embedding_of(names: Iterable[str]) -> str | None:
    """The name of the token embedding; T5's and BART's `shared.weight` where there are copies of it."""
    found = [name for name in names if locate(name).kind == "embedding"]
    return next((name for name in found if name.endswith("shared.weight")), found[0] if found else None)


def head_of(names: Iterable[str]) -> str | None:
    """The name of the stored output head over the vocabulary; None where none is stored."""
    return next((name for name in names if locate(name).kind == "head"), None)


def is_tied(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether a model of this config and these stored names has its embedding as its output head."""
    names = list(names)
    head = head_of(names)
    listed = config.get("architectures")
    headless = isinstance(listed, list) and not any(word in str(one) for one in listed for word in HEADED)
    if not config or embedding_of(names) is None or (head is None and listed and headless):
        return False
    # transformers ties by default: a config that is silent and a checkpoint without a head is tied as well
    silent = head is None or config.get("model_type") in TIED_BY_DEFAULT
    return config.get("tie_word_embeddings", silent) is True


def copies(names: Iterable[str], *, tied: bool) -> set[str]:
    """Stored names whose values are another tensor's: a tied head, and the embeddings of encoder and decoder."""
    names = list(names)
    places = [locate(name) for name in names]
    found = {place.name for place in places if place.kind == "head"} if tied else set()
    shared = embedding_of(names)
    if shared is not None and shared.endswith("shared.weight"):
        found |= {place.name for place in places if place.kind == "embedding"} - {shared}
    biases = [place.name for place in places if place.kind == "head bias"]
    if len(biases) > 1:  # BERT's decoder has the bias of its predictions
        found |= {name for name in biases if name.endswith(".decoder.bias")}
    return found


def is_buffer(tensor: TensorInfo) -> bool:
    """Whether it is no weight: old checkpoints store masks and positions that every program makes itself."""
    return tensor.name.endswith(BUFFERS) or (tensor.name.endswith(MASKS) and len(tensor.shape) == 4)
