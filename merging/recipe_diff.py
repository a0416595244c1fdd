"""What differs between two recipes, by the values that they come to and not by how they are written."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from merging.effective import short_names
from merging.methods import METHODS
from merging.recipe import ModelEntry, Recipe, SliceSource
from merging.values import ParameterValue

LONGEST = 80
"""Characters of a value that a difference shows."""
EVERYWHERE = (None, "", "*")
"""Filters that match every tensor."""


@dataclass(frozen=True)
class Difference:
    """A key and what it is in the one recipe and in the other; None: nothing there."""

    key: str
    one: str | None
    other: str | None

    @property
    def words(self) -> str:
        """The difference as a sentence."""
        if self.one is None:
            return f"Only the second recipe has {self.key}: {self.other}."
        if self.other is None:
            return f"Only the first recipe has {self.key}: {self.one}."
        return f"{self.key} is {self.other} instead of {self.one}."


@dataclass(frozen=True)
class _Place:
    """Where a parameter may have a value of its own: the whole merge, a slice, a model, or a model of a slice."""

    where: str
    levels: tuple[Mapping[str, ParameterValue], ...]
    """The strongest first."""
    own: bool
    """Whether it is one model's."""


def diff(one: Recipe, other: Recipe) -> tuple[Difference, ...]:
    """Every key whose value differs, in the order of a recipe: method, models, slices, parameters, the rest.

    A default counts as if it were written out, a value for all models as if each had it. Where the methods differ, a
    parameter that only one of them has is told where it is set. Models are told apart by their paths as written.
    """
    names = short_names([*_references(one), *_references(other)])
    first, second = _Flat(one, names), _Flat(other, names)
    found = list(_of_tables(first.models(), second.models()))
    for name in dict.fromkeys([*first.parameters, *second.parameters]):
        if (name in first.parameters or second.sets(name)) and (
            name in second.parameters or first.sets(name)
        ):
            found += _of_tables(*_folded(name, first.values(name), second.values(name)))
    return (*found, *_of_tables(first.rest(), second.rest()))


class _Flat:
    """A recipe as keys and texts."""

    def __init__(self, recipe: Recipe, names: Mapping[str, str]):
        self.recipe = recipe
        self.names = names
        self.method = METHODS.get(recipe.merge_method)
        self.places = list(self._places())

    def models(self) -> dict[str, str]:
        """Method, base, models and slices."""
        recipe = self.recipe
        found = {"method": recipe.merge_method}
        if recipe.base_model is not None:
            found["base"] = _path(recipe.base_model)
        entries = self._entries(recipe.models, recipe.base_model)
        merged = [self._entries(part.sources, part.base_model or recipe.base_model) for part in recipe.slices]
        for entry in [*entries, *chain.from_iterable(merged)]:
            found[f"model {self._name(entry.model)}"] = _path(entry.model)
        if entries:
            found["order of models"] = ", ".join(self._name(entry.model) for entry in entries)
        for number, part in enumerate(recipe.slices, 1):
            found[f"slice {number}"] = ", ".join(map(self._source, part.sources))
            if part.base_model is not None and part.base_model != recipe.base_model:
                found[f"base of slice {number}"] = self._name(part.base_model)
        return found

    @cached_property
    def parameters(self) -> list[str]:
        """The method's parameters, then those that the recipe sets and the method does not know."""
        known = list(self.method.parameters()) if self.method else []
        return list(dict.fromkeys([*known, *self._set]))

    def sets(self, name: str) -> bool:
        """Whether the recipe sets a parameter somewhere, overrides apart."""
        return name in self._set or (name == "scope" and self.recipe.scope is not None)

    def values(self, name: str) -> dict[str, str]:
        """Where a parameter has a value -> what it comes to there; empty where this recipe has none of that name."""
        known = self.method.parameters() if self.method else {}
        if name not in self.parameters:
            return {}
        own = self.method is not None and name in self.method.per_model()
        wanted = [place for place in self.places if place.own == own or name not in known]
        sequence = name in known and known[name].json_schema_extra["sequence"]
        return {
            place.where: text
            for place in wanted
            if (text := self._comes_to(name, place.levels, sequence)) is not None
        }

    def rest(self) -> dict[str, str]:
        """What is neither a model nor a parameter."""
        recipe = self.recipe
        found: dict[str, str | None] = {"profile": recipe.profile, "importance": recipe.importance}
        if recipe.profile == "mergekit":
            found["dtype"] = recipe.dtype
        found["out_dtype"] = recipe.out_dtype or recipe.dtype
        if recipe.tokenizer_source != "base":
            found["tokenizer_source"] = recipe.tokenizer_source
        if recipe.tokenizer is not None:
            found["tokenizer"] = json.dumps(
                recipe.tokenizer.model_dump(exclude_defaults=True), ensure_ascii=False
            )
        found["special_tokens"] = recipe.special_tokens
        found["chat_template"] = recipe.chat_template
        found["exclude"] = ", ".join(sorted(recipe.exclude)) or None
        found["keep"] = ", ".join(sorted(recipe.keep.modules)) or None
        found["keep blocks"] = ", ".join(f"{a} to {b - 1}" for a, b in sorted(recipe.keep.layers)) or None
        for number, override in enumerate(recipe.overrides, 1):
            who = f" of {self._name(override.model)}" if override.model else ""
            values = (f"{name} {_chain([value])}" for name, value in sorted(override.parameters.items()))
            found[f"override {number}"] = f"{override.tensors}{who}: {', '.join(values)}"
        return {key: value for key, value in found.items() if value is not None}

    @cached_property
    def _set(self) -> list[str]:
        return [name for place in self.places for level in place.levels for name in level]

    def _places(self) -> Iterator[_Place]:
        recipe = self.recipe
        if not recipe.slices:
            yield _Place("", (recipe.parameters,), False)
            for entry in self._entries(recipe.models, recipe.base_model):
                where = f" of {self._name(entry.model)}"
                yield _Place(where, (entry.parameters, recipe.parameters), True)
        for number, part in enumerate(recipe.slices, 1):
            levels = (part.parameters, recipe.parameters)
            yield _Place(f" in slice {number}", levels, False)
            for source in self._entries(part.sources, part.base_model or recipe.base_model):
                where = f" of {self._name(source.model)} in slice {number}"
                yield _Place(where, (source.parameters, *levels), True)

    def _entries(self, entries: Sequence[ModelEntry], base: str | None) -> list[ModelEntry]:
        """The models that are merged: the base among them is none where a method works on changes from it."""
        dropped = base is not None and (self.method is None or self.method.takes_base)
        return [entry for entry in entries if not (dropped and _path(entry.model) == _path(base or ""))]

    def _comes_to(
        self, name: str, levels: Sequence[Mapping[str, ParameterValue]], sequence: bool
    ) -> str | None:
        given = [level[name] for level in levels if name in level]
        known = self.method is not None and name in self.method.parameters()
        if not given and not known:
            return None
        default = self.method.defaults(self.recipe.profile)[name] if self.method and known else None
        if name == "scope" and self.recipe.scope is not None:
            given = [self.recipe.scope]
        if name == "seed" and not given:
            given = [self.recipe.seed]
        return _text(given[0] if given else default) if sequence else _chain(given, default)

    def _name(self, reference: str) -> str:
        return self.names[_path(reference)]

    def _source(self, source: SliceSource) -> str:
        first, stop = source.layer_range
        return f"{self._name(source.model)} blocks {first} to {stop - 1}"


def _references(recipe: Recipe) -> Iterator[str]:
    """Every model that a recipe names, as a path."""
    entries = [*recipe.models, *(source for part in recipe.slices for source in part.sources)]
    others = [recipe.base_model, *(part.base_model for part in recipe.slices)]
    others += [override.model for override in recipe.overrides]
    for reference in [*(entry.model for entry in entries), *others]:
        if reference is not None:
            yield _path(reference)


def _path(reference: str) -> str:
    """A model's path without detours; `.` is kept for what is empty."""
    return posixpath.normpath(reference)


def _of_tables(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[Difference]:
    for key in dict.fromkeys([*one, *other]):
        first, second = one.get(key), other.get(key)
        if first == second or (key == "order of models" and _same_words(first, second)):
            continue
        same = len(posixpath.commonprefix([first, second])) if first and second else 0
        yield Difference(key, _short(first, same), _short(second, same))


def _same_words(one: str | None, other: str | None) -> bool:
    """Whether one list of models lacks some of the other's, so that added and removed models say it all."""
    return one is None or other is None or set(one.split(", ")) != set(other.split(", "))


def _folded(
    name: str, one: Mapping[str, str], other: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """A parameter's values as rows: one row where neither recipe has different values at different places."""
    if max(len(set(one.values())), len(set(other.values()))) <= 1:
        first, second = next(iter(one.values()), None), next(iter(other.values()), None)
        return {name: first} if first is not None else {}, {name: second} if second is not None else {}
    return {name + where: text for where, text in one.items()}, {
        name + where: text for where, text in other.items()
    }


def _chain(given: Sequence[ParameterValue], default: Any = None) -> str:
    """What values on several levels, the strongest first, come to: filters in the order in which they are tried."""
    tried: dict[Any, str] = {}
    for value in [*given, default]:
        for part in _filtered(value):
            wanted = None if part.get("filter") in EVERYWHERE else str(part["filter"])
            tried.setdefault(wanted, _over_blocks(part["value"]))
        if None in tried:
            break
    last = tried.pop(None)
    while tried and next(reversed(tried.values())) == last:
        tried.popitem()
    return ", ".join([*(f"{text} for {wanted}" for wanted, text in tried.items()), last]) + (
        " elsewhere" if tried else ""
    )


def _filtered(value: Any) -> list[dict[str, Any]]:
    """A value as a list of filters and values."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and isinstance(value[0], dict):
        return value
    return [{"value": value}]


def _over_blocks(value: Any) -> str:
    """A value, or a gradient over the blocks; one whose ends and middle are equal is a value."""
    if isinstance(value, list):
        texts = list(map(_text, value))
        return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}] over the blocks"
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return "none" if value is None else str(value)


def _short(text: str | None, same: int) -> str | None:
    """A text, or of a long one the part in which the difference begins after `same` characters."""
    if text is None or len(text) <= LONGEST:
        return text
    start = max(0, same - LONGEST // 2)
    return (
        f"{'…' if start else ''}{text[start : start + LONGEST]}{'…' if start + LONGEST < len(text) else ''}"
    )
