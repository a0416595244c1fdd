"""What a card of the Models tab shows of a model, from headers, config, and what the Hub says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.hub.sources import Opened
from merging import Checkpoint
from merging.anatomy import blocks, locate
from merging.answering.abilities import why_silent
from merging.cards.licences import asked_by
from merging.cards.lineage import in_words, lineage_of_model
from merging.folders.adapter import Adapted
from merging.folders.header import DTYPE_WORDS
from merging.tokenizing.heads import head_kind


@dataclass(frozen=True)
class Facts:
    """What a card shows of a model; `licence` is None where its folder names none."""

    parameters: int
    blocks: int
    width: int | None
    dtypes: tuple[str, ...]
    vocabulary: int | None
    head: str | None
    """ "own", "tied" or "missing"; None for a model that has no use for one."""
    licence: str | None
    nbytes: int
    lineage: str = ""
    """What it was merged of, in words; empty for a model that was not merged here."""
    silent: str = ""
    """Why it cannot be asked, and what can be done with it; empty for a model that writes."""


@dataclass(frozen=True)
class AdapterFacts:
    """What a card shows of an adapter; `base` is the model it was trained on, as it says itself."""

    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    targets: tuple[str, ...]
    base: str
    nbytes: int


@dataclass(frozen=True)
class HubFacts:
    """What a card shows of where a model of the Hub comes from; `missing` bytes are still to be downloaded."""

    commit: str
    marks: tuple[str, ...]
    missing: int


@dataclass(frozen=True)
class Card:
    """One row of the Models tab. Without facts the model could not be opened; `problems` keep it out of the family.

    `waits`: the Hub has not been asked for it yet.
    """

    name: str
    facts: Facts | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    adapter: AdapterFacts | None = None
    hub: tuple[HubFacts, ...] = ()
    waits: bool = False

    @property
    def empty(self) -> bool:
        return not self.name

    @property
    def missing(self) -> int:
        """Bytes that are still to be downloaded."""
        return sum(one.missing for one in self.hub)


def card_of(opened: Opened) -> Card:
    """The card of a model that was opened, before it is compared with others."""
    name, model = opened.name, opened.model
    hub = tuple(
        HubFacts(
            one.pinned.commit,
            tuple(word for word, on in (("gated", one.pinned.gated), ("private", one.pinned.private)) if on),
            one.missing,
        )
        for one in opened.looked[-1:]
        if one.pinned is not None and (len(opened.looked) == 1 or one.is_adapter)
    )
    if model is None:
        trained = opened.pinned[-1].base
        whose = f"Trained on {trained}, as its page says. " if trained else ""
        return Card(name, hub=hub, warnings=(f"{whose}Whether it fits is known once it is downloaded.",))
    tagged = [one.licence for one in opened.pinned if one.licence]
    licences = model.licences or tuple(dict.fromkeys(tagged))
    adapter = _adapter_facts(model) if isinstance(model, Adapted) else None
    return Card(
        name,
        read_facts(model, licences),
        adapter=adapter,
        hub=hub,
        warnings=(*(plain(text, opened) for text in model.remarks), *asked_by(licences)),
    )


def _adapter_facts(model: Adapted) -> AdapterFacts:
    one = model.adapter
    return AdapterFacts(one.ranks, one.alphas, one.targets, one.base, one.stored.nbytes)


def plain(sentence: str, model: Opened) -> str:
    """A sentence about a model as its own card says it."""
    label = model.model.label if model.model is not None else model.name
    sentence = sentence.removeprefix(f"{model.reference}: ").removeprefix(f"{label}: ")
    sentence = sentence.replace(model.reference, model.name)
    return sentence[:1].upper() + sentence[1:]


def read_facts(model: Checkpoint, licences: Sequence[str] = ()) -> Facts:
    """The facts of a card, from headers and config, with the licences that are known of the model."""
    config = {**model.config, **(model.config.get("text_config") or {})}
    embedding = next((t for n, t in model.tensors.items() if locate(n).kind == "embedding"), None)
    width = config.get("hidden_size") or config.get("n_embd") or config.get("d_model")
    if width is None and embedding is not None and len(embedding.shape) == 2:
        width = embedding.shape[1]
    dtypes = dict.fromkeys(DTYPE_WORDS.get(t.dtype, t.dtype.lower()) for t in model.tensors.values())
    return Facts(
        parameters=model.parameters,
        blocks=len(blocks(model.tensors)),
        width=width if isinstance(width, int) else None,
        dtypes=tuple(sorted(dtypes)),
        vocabulary=embedding.rows if embedding is not None else None,
        head=head_kind(model),
        silent=why_silent(model.config),
        licence=", ".join(licences) or None,
        nbytes=model.nbytes,
        lineage=in_words(lineage_of_model(model)),
    )
