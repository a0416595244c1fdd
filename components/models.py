"""From what a visitor typed to models that are checked: facts from headers, fit with the base, and the family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from components.family import DEMO_EXPERTS, Family
from components.hub.sources import DEMO, NotAsked, Opened, name_of, open_typed
from components.settings import Settings
from components.stages import RUN
from merging import Checkpoint, MergingError, Plan
from merging.adapter import Adapted
from merging.anatomy import blocks, locate
from merging.compatibility import compare
from merging.errors import PlanError
from merging.header import DTYPE_WORDS
from merging.lineage import in_words, lineage_of_model
from merging.plan import plan_sources
from merging.recipe import ModelEntry
from merging.references import Reference
from merging.sources import open_model

LONG_EXPERT = "math-long"
MOST_EXPERTS = 8
LONGEST = 1000
"""Letters of what is typed for one model."""
_README_BYTES = 64 << 10


@dataclass(frozen=True)
class Facts:
    """What a card shows of a model; `licence` is None where its folder names none."""

    parameters: int
    blocks: int
    width: int | None
    dtypes: tuple[str, ...]
    vocabulary: int | None
    tied: bool
    licence: str | None
    nbytes: int
    lineage: str = ""
    """What it was merged of, in words; empty for a model that was not merged here."""


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


@dataclass(frozen=True)
class Choice:
    """What the rows amount to: a card a row, and the models that fit, be all their weights here or not.

    `to_ask` are models that the Hub would have to be asked for.
    """

    base: Card
    experts: tuple[Card, ...]
    base_model: Opened | None = None
    members: tuple[Opened, ...] = ()
    to_ask: tuple[Reference, ...] = ()

    @cached_property
    def family(self) -> Family:
        """The models whose weights are here."""
        if self.base_model is None or self.base_model.missing:
            return Family("", ())
        return Family(
            self.base_model.reference, tuple(one.reference for one in self.members if not one.missing)
        )

    @property
    def opened(self) -> tuple[Opened, ...]:
        """The base and the experts that fit."""
        return (*((self.base_model,) if self.base_model is not None else ()), *self.members)

    @property
    def missing(self) -> int:
        """Bytes that are still to be downloaded of all of them."""
        parts = {
            pinned.id: looked.missing
            for one in self.opened
            for looked in one.looked
            if (pinned := looked.pinned)
        }
        return sum(parts.values())

    @cached_property
    def plan(self) -> Plan | None:
        """A plain merge of all that fit, for sizes; None where they cannot be merged."""
        base = self.base_model
        readable = [one for one in self.members if one.model is not None]
        if base is None or base.model is None or not readable:
            return None
        recipe = Family(base.reference, tuple(one.reference for one in readable)).recipe()
        experts = [(ModelEntry(model=one.reference), one.model) for one in readable]
        try:
            return plan_sources(recipe, base.model, experts)
        except MergingError:
            return None


def demo_rows(settings: Settings) -> tuple[str, list[str]]:
    """The base and the experts of the demo family as a visitor would type them."""
    return DEMO + "base", [DEMO + name for name in DEMO_EXPERTS]


def remembered(base: str, experts: Sequence[str]) -> dict[str, Any]:
    """What a browser keeps of the rows."""
    return {"base": base, "experts": list(experts)}


def kept_rows(stored: object) -> tuple[str, list[str]] | None:
    """The base and the experts that a browser kept; None where it kept nothing, or what is no list of models."""
    if not isinstance(stored, dict):
        return None
    base, experts = stored.get("base"), stored.get("experts")
    if (
        not isinstance(experts, list)
        or len(experts) > MOST_EXPERTS
        or not all(map(_is_text, (base, *experts)))
    ):
        return None
    return base, experts


def _is_text(value: object) -> bool:
    """Whether a value can have been typed for a model; half a character cannot be sent back to the browser."""
    return (
        isinstance(value, str) and len(value) <= LONGEST and value.encode(errors="ignore").decode() == value
    )


def has_long_expert(settings: Settings) -> bool:
    return (settings.demo / LONG_EXPERT).is_dir()


def choose(settings: Settings, base: str, experts: Sequence[str], owner: str = "") -> Choice:
    """Open what was typed, by headers only, and judge each expert against the base."""
    opening = _Opening(settings, owner)
    base_card, base_model = opening.open(base.strip())
    cards: list[Card] = []
    members: list[Opened] = []
    for typed in list(experts)[:MOST_EXPERTS]:
        card, opened = opening.open(typed.strip(), base_model)
        if opened is not None:
            problems, warnings = _judged(card.name, opened, base_model, members)
            card = replace(card, problems=tuple(problems), warnings=(*card.warnings, *warnings))
            if not problems:
                members.append(opened)
        cards.append(card)
    return Choice(base_card, tuple(cards), base_model, tuple(members), tuple(opening.to_ask))


@dataclass
class _Opening:
    """Opens what was typed, and notes what the Hub has to be asked for."""

    settings: Settings
    owner: str
    to_ask: list[Reference] = field(default_factory=list)

    def open(self, typed: str, base: Opened | None = None) -> tuple[Card, Opened | None]:
        if not typed:
            return Card(""), None
        name = name_of(typed)
        try:
            opened = open_typed(self.settings, self.owner, typed, base.reference if base is not None else "")
            if typed.startswith(RUN) and opened.model is not None:
                name = opened.model.label
            return _card(name, opened), opened
        except NotAsked as waiting:
            self.to_ask.append(waiting.reference)
            return Card(name, problems=(str(waiting),), waits=True), None
        except MergingError as error:
            return Card(name, problems=(str(error),)), None
        except (OSError, ValueError):
            return Card(
                name, problems=("This folder cannot be read; check its name and its permissions.",)
            ), None


def _card(name: str, opened: Opened) -> Card:
    model = opened.model
    hub = tuple(
        HubFacts(
            one.pinned.commit,
            tuple(word for word, on in (("gated", one.pinned.gated), ("private", one.pinned.private)) if on),
            one.missing,
        )
        for one in opened.looked
        if one.pinned is not None
    )
    if model is None:
        return Card(name, hub=hub, warnings=("Whether it fits is known once it is downloaded.",))
    licence = next(
        (one.pinned.licence for one in reversed(opened.looked) if one.pinned and one.pinned.licence), None
    )
    adapter = _adapter_facts(model) if isinstance(model, Adapted) else None
    return Card(name, read_facts(model, licence), adapter=adapter, hub=hub, warnings=tuple(model.remarks))


def _adapter_facts(model: Adapted) -> AdapterFacts:
    one = model.adapter
    return AdapterFacts(one.ranks, one.alphas, one.targets, one.base, one.stored.nbytes)


def _judged(
    name: str, opened: Opened, base: Opened | None, earlier: Sequence[Opened]
) -> tuple[list[str], list[str]]:
    """Problems and warnings of an expert beside the base and the experts above it."""
    if base is None:
        return ["Cannot be compared before the base can be read."], []
    if _same(opened, base):
        return ["This is the base itself, so it changes nothing. Name a model that was tuned from it."], []
    if any(_same(opened, other) for other in earlier):
        return ["Already listed above. Remove one of the two."], []
    if opened.model is None or base.model is None:
        return [], []
    return _fit(base.model, opened.model, name)


def _same(one: Opened, other: Opened) -> bool:
    if one.model is None or other.model is None:
        return one.reference == other.reference
    return one.model.path.resolve() == other.model.path.resolve()


def _fit(base: Checkpoint, model: Checkpoint, name: str) -> tuple[list[str], list[str]]:
    try:
        problems, warnings = compare(base, model, name)
    except MergingError as error:
        problems, warnings = [str(error)], []

    def plain(sentence: str) -> str:
        sentence = sentence.removeprefix(f"{name}: ")
        return sentence[:1].upper() + sentence[1:]

    return [plain(problem) for problem in problems], [plain(warning) for warning in warnings]


def read_facts(model: Checkpoint, licence: str | None = None) -> Facts:
    """The facts of a card, from headers, config and the front matter of the README, unless the licence is known."""
    config = {**model.config, **(model.config.get("text_config") or {})}
    embedding = next((t for n, t in model.tensors.items() if locate(n).role == "embedding"), None)
    width = config.get("hidden_size") or config.get("n_embd")
    if width is None and embedding is not None and len(embedding.shape) == 2:
        width = embedding.shape[1]
    dtypes = dict.fromkeys(DTYPE_WORDS.get(t.dtype, t.dtype.lower()) for t in model.tensors.values())
    return Facts(
        parameters=model.parameters,
        blocks=len(blocks(model.tensors)),
        width=width if isinstance(width, int) else None,
        dtypes=tuple(sorted(dtypes)),
        vocabulary=embedding.rows if embedding is not None else None,
        tied=model.tied,
        licence=licence or _licence(model.folder),
        nbytes=model.nbytes,
        lineage=in_words(lineage_of_model(model)),
    )


def _licence(folder: Path) -> str | None:
    try:
        with (folder / "README.md").open(encoding="utf-8") as file:
            start = file.read(_README_BYTES)
        if not start.startswith("---\n"):
            return None
        found = yaml.safe_load(start[4:].split("\n---", 1)[0])
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence[:60] if isinstance(licence, str) else None


def unreadable(family: Family) -> list[str]:
    """A sentence for each model of a family that cannot be opened: which one, why, and what to do."""
    models = [("base", family.base_name, family.base)]
    models += [("expert", name, folder) for name, folder in zip(family.names, family.experts, strict=True)]
    sentences = []
    for role, name, folder in models:
        try:
            open_model(folder)
        except (MergingError, OSError) as error:
            reason = (
                str(error) if isinstance(error, MergingError) else f"{folder}: {error.strerror or error}."
            )
            sentences.append(
                f"The {role} {name} cannot be read. {reason} Put it back, or choose another {role} on the Models tab."
            )
    return sentences


def explained(family: Family, error: MergingError | OSError) -> str:
    """What to tell who only looks at a family, without a recipe, and something went wrong."""
    if gone := unreadable(family):
        return " ".join(gone)
    if isinstance(error, PlanError):
        return f"These models cannot be read together. {' '.join(error.problems)} The Models tab shows what does not fit."
    if isinstance(error, OSError):
        return f"{error.filename or 'A file of these models'} could not be read: {error.strerror or error}. Try again."
    return str(error)
