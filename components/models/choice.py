"""The models that fit together, what a merge of them would be, and what there is to decide about their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from components.family import Family
from components.hub.sources import Opened
from components.models.facts import Card
from components.models.words import Decision, Named, decided, decisions
from merging import Checkpoint, MergingError, Plan, PlanError
from merging.plan import plan_sources
from merging.recipe import ModelEntry
from merging.references import Reference


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
    words: Mapping[str, str] = field(default_factory=dict)
    """What the visitor decided where the models differ in tokens, by recipe key; see `words`."""

    @cached_property
    def family(self) -> Family:
        """The models whose weights are here."""
        if self.base_model is None or self.base_model.missing:
            return Family("", ())
        here = tuple(one.reference for one in self.members if not one.missing)
        return Family(self.base_model.reference, here, self._keys)

    @property
    def opened(self) -> tuple[Opened, ...]:
        """The base and the experts that fit."""
        return (*((self.base_model,) if self.base_model is not None else ()), *self.members)

    @property
    def readable(self) -> tuple[Opened, ...]:
        """Those of them whose headers are known."""
        return tuple(one for one in self.opened if one.model is not None)

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

    @property
    def named(self) -> Named:
        return [(one.typed, one.name, one.reference) for one in self.readable]

    @cached_property
    def own_tokens(self) -> frozenset[str]:
        """The experts whose vocabulary is not the base's, by their names in a recipe."""
        base, *experts = self.readable or (None,)
        return frozenset(one.reference for one in experts if base is not None and unequal(base, one))

    @cached_property
    def decisions(self) -> list[Decision]:
        """What there is to decide about tokens."""
        tokens = self.plan.tokens if self.plan is not None else None
        return decisions(self.words, self.named, own=self.own_tokens, plan=tokens)

    @property
    def _keys(self) -> tuple[tuple[str, str], ...]:
        """The recipe's keys for what was decided and still is to be."""
        open_keys = {one.key for one in self.decisions}
        found = decided(self.words, self.named, unequal=bool(self.own_tokens))
        return tuple((key, value) for key, value in found.items() if key in open_keys)

    @property
    def plan(self) -> Plan | None:
        """A plain merge of all that fit, for sizes; None where they cannot be merged."""
        return self._planned[0]

    @property
    def problems(self) -> tuple[str, ...]:
        """Why there is no plan though all models fit by themselves."""
        return self._planned[1]

    @cached_property
    def _planned(self) -> tuple[Plan | None, tuple[str, ...]]:
        base, *experts = self.readable or (None,)
        if base is None or base is not self.base_model or not experts:
            return None, ()
        return planned(base, experts, decided(self.words, self.named, unequal=bool(self.own_tokens)))


def planned(
    base: Opened, experts: Sequence[Opened], words: Mapping[str, str]
) -> tuple[Plan | None, tuple[str, ...]]:
    """A plain merge over a base, or why there is none."""
    family = Family(base.reference, tuple(one.reference for one in experts), tuple(words.items()))
    entries = [(ModelEntry(model=one.reference), one.model) for one in experts if one.model is not None]
    assert base.model is not None
    try:
        return plan_sources(family.recipe(), base.model, entries), ()
    except PlanError as error:
        return None, tuple(error.problems)
    except MergingError as error:
        return None, (str(error),)


def unequal(base: Opened, model: Opened) -> bool:
    """Whether the vocabulary of two models differs, in tokens or in rows."""
    if base.model is None or model.model is None:
        return False
    ours, theirs = base.model.vocabulary, model.model.vocabulary
    if ours is not None and theirs is not None and ours != theirs:
        return True
    return _rows(base.model) != _rows(model.model)


def _rows(model: Checkpoint) -> int | None:
    name = model.embedding
    return None if name is None else model.tensors[name].rows
