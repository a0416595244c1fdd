"""What can be searched over in a recipe: the numbers and choices of its method, read from the method's own fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

from merging.errors import ParameterError, did_you_mean
from merging.methods import Method, get_method
from merging.recipe import ModelEntry, Recipe, Slice, SliceSource

WIDE = 2.0
"""How far a search goes above 0 where nothing limits a number; further for one that is larger already."""
AMPLE = 4.0
"""How far a search goes where there are limits, in usual values: a share of 0.07 is searched for up to 0.28."""
FINE = 1e-2
"""A usual value below this is searched for by its order of magnitude."""
DECADES = 100.0
MOST_WHOLE = 100
"""Whole numbers with more choices than this are not searched over."""
MARGIN = 1e-3
"""How near a search comes to a limit that is itself out, as a share of the way to the other."""
DIGITS = 4

Value = float | int | bool | str
P = TypeVar("P", ModelEntry, Slice, SliceSource)
"""What has parameters of its own."""


@dataclass(frozen=True)
class Dimension:
    """One value that can be varied: of the whole merge, of one `expert` (as the recipe names it), or one `place` of a
    list. A number lies from `low` to `high`, within the method's limits `least` and `most`; else it is one of `choices`.
    """

    name: str
    expert: str | None = None
    place: int | None = None
    low: float = 0.0
    high: float = 1.0
    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    logarithmic: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def label(self) -> str:
        """`density`, `weight of math` or `amplify 1`."""
        if self.expert is not None:
            return f"{self.name} of {PurePath(self.expert).name}"
        return self.name if self.place is None else f"{self.name} {self.place + 1}"

    def tidy(self, value: Value) -> Value:
        """The value as a recipe has it: whole, or with few digits, and never beyond the limits."""
        if self.choices:
            return value
        if self.whole:
            return round(float(value))
        return min(max(float(f"{float(value):.{DIGITS}g}"), self.least), self.most)


Values = Mapping[Dimension, Value]


def labelled(space: Sequence[Dimension]) -> dict[Dimension, str]:
    """What each is called: its label, and of two experts whose folders are called alike, the names that the recipe has."""
    labels = [one.label for one in dict.fromkeys(space)]
    return {
        one: one.label if labels.count(one.label) == 1 else f"{one.name} of {one.expert}"
        for one in dict.fromkeys(space)
    }


def search_space(recipe: Recipe) -> tuple[Dimension, ...]:
    """What a search varies: every parameter that people change, and of those without limits each expert's own.

    Left out are seeds, rare settings, and lists that have to be in order.

    Raises:
        ParameterError: there is no such method.
    """
    method = get_method(recipe.merge_method)
    fields = method.parameters().items()
    usual = [name for name, field in fields if not field.json_schema_extra["rare"]]
    found = [one for name in usual if name != "seed" for one in _dimensions(recipe, method, name)]
    return tuple(one for one in found if not (one.whole and one.high - one.low > MOST_WHOLE))


def numbers(recipe: Recipe) -> tuple[Dimension, ...]:
    """Every number that can be the axis of a grid, rare ones and each expert's own included."""
    method = get_method(recipe.merge_method)
    found = [
        one
        for name in method.parameters()
        if name != "seed"
        for one in (*_shared(recipe, method, name), *_own(recipe, method, name))
    ]
    return tuple(dict.fromkeys(one for one in found if not one.choices))


def dimension(recipe: Recipe, name: str, expert: str | None = None, place: int | None = None) -> Dimension:
    """A number of a recipe by its YAML name.

    Args:
        expert: whose it is, as the recipe names it or by the last part of that; None: of all alike.
        place: which of a list, from 0.

    Raises:
        ParameterError: the method has no such number, or the recipe no such expert.
    """
    method = get_method(recipe.merge_method)
    known = list(method.parameters())
    if name not in known:
        raise ParameterError(
            f"{method.name} has no parameter '{name}'.{did_you_mean(name, known)} It has: {', '.join(known)}."
        )
    if expert is not None:
        expert = _expert(recipe, expert)
        if name not in method.per_model():
            raise ParameterError(f"{name}: is one value for the merge, so no expert has its own.")
    candidates = _own(recipe, method, name) if expert is not None else _shared(recipe, method, name)
    for one in candidates:
        if one.expert == expert and one.place == place and not one.choices:
            return one
    if any(one.place is not None for one in candidates):
        raise ParameterError(f"{name}: is a list of {len(candidates)} values; say which of them, from 0.")
    raise ParameterError(f"{name}: is no number, so there is no range of it.")


def current(recipe: Recipe, one: Dimension) -> Value | None:
    """The value that a recipe has now; None where it differs between blocks, tensors or models."""
    method = get_method(recipe.merge_method)
    found: Any = recipe.parameters.get(one.name, method.defaults(recipe.profile)[one.name])
    if one.name == "scope" and recipe.scope is not None:
        found = recipe.scope
    given = [*_given(recipe, one.name)]
    if one.expert is not None:
        entry = next(entry for entry in recipe.models if entry.model == one.expert)
        found = entry.parameters.get(one.name, found)
    elif given and all(value is not None and value == given[0] for value in given):
        found = given[0]
    elif any(value is not None for value in given):
        return None
    if one.place is not None:
        found = found[one.place]
    return found if isinstance(found, bool | int | float | str) else None


def with_values(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with other values in it; an expert's own goes before that of all alike."""
    parameters, models, slices = dict(recipe.parameters), list(recipe.models), list(recipe.slices)
    scope = recipe.scope
    defaults = get_method(recipe.merge_method).defaults(recipe.profile)
    for one, raw in sorted(values.items(), key=_of_an_expert):
        value = one.tidy(raw)
        if one.expert is not None:
            models = [
                _with(entry, one.name, value) if entry.model == one.expert else entry for entry in models
            ]
        elif one.place is not None:
            items = list(parameters.get(one.name, defaults[one.name]))
            items[one.place] = value
            parameters[one.name] = items
        elif one.name == "scope" and scope is not None:
            scope = value  # type: ignore[assignment]
        else:
            parameters[one.name] = value
            models = [_without(entry, one.name) for entry in models]
        if one.expert is None:
            slices = [_cleared(part, one.name) for part in slices]
    changed = {"parameters": parameters, "models": tuple(models), "slices": tuple(slices), "scope": scope}
    return recipe.model_copy(update=changed)


def _dimensions(recipe: Recipe, method: type[Method], name: str) -> Sequence[Dimension]:
    shared = _shared(recipe, method, name)
    given = any(name in entry.parameters for entry in recipe.models)
    each = name in method.per_model() and (given or math.inf in (shared[0].most, -shared[0].least))
    if each:
        return _own(recipe, method, name)
    if len(shared) > 1 and _ordered(method, name, recipe):
        return ()
    return shared


def _ordered(method: type[Method], name: str, recipe: Recipe) -> bool:
    """Whether a list's values must be in order, so that they cannot be chosen one by one."""
    backwards = tuple(reversed(method.parameters()[name].default))
    turned = method.configure("paper", {name: backwards})
    return bool(turned.problems(len(recipe.models), "paper"))


def _shared(recipe: Recipe, method: type[Method], name: str) -> list[Dimension]:
    schema = _schema(method, name)
    if schema.get("type") != "array":
        return [_made(recipe, name, schema)]
    length = len(recipe.parameters.get(name, method.defaults(recipe.profile)[name]))
    return [_made(recipe, name, schema["items"], place=place) for place in range(length)]


def _own(recipe: Recipe, method: type[Method], name: str) -> list[Dimension]:
    if name not in method.per_model():
        return []
    schema = _schema(method, name)
    return [_made(recipe, name, schema, expert=entry.model) for entry in recipe.experts]


def _schema(method: type[Method], name: str) -> Mapping[str, Any]:
    """The field's limits; of one that each model may have its own of, those of a single value."""
    schema = method.model_json_schema(by_alias=True)["properties"][name]
    found: Mapping[str, Any] = schema["anyOf"][0] if "anyOf" in schema else schema
    return found


def _made(
    recipe: Recipe,
    name: str,
    schema: Mapping[str, Any],
    expert: str | None = None,
    place: int | None = None,
) -> Dimension:
    if schema.get("type") == "boolean":
        return Dimension(name, expert, place, choices=(False, True))
    if "enum" in schema:
        return Dimension(name, expert, place, choices=tuple(schema["enum"]))
    least = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    most = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    plain = Dimension(name, expert, place, least=least, most=most)
    value = current(recipe, plain)
    usual = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 1.0
    fine = 0 < usual < FINE and math.isinf(most)
    low = usual / DECADES if fine else max(least, min(0.0, usual))
    ample = max(WIDE, 2 * usual) if math.isinf(most) else AMPLE * usual or most
    high = usual * DECADES if fine else min(most, ample)
    inner = MARGIN * (high - low)
    if "exclusiveMinimum" in schema:
        least = low = max(low, least + inner)
    if "exclusiveMaximum" in schema:
        most = high = min(high, most - inner)
    return Dimension(
        name, expert, place, low, high, least, most, schema.get("type") == "integer", logarithmic=fine
    )


def _expert(recipe: Recipe, name: str) -> str:
    models = [entry.model for entry in recipe.experts]
    found = [model for model in models if model == name] or [
        model for model in models if PurePath(model).name == name
    ]
    if len(found) != 1:
        shown = ", ".join(models)
        raise ParameterError(
            f"'{name}' is none of the experts.{did_you_mean(name, models)} They are: {shown}."
        )
    return found[0]


def _of_an_expert(item: tuple[Dimension, Value]) -> bool:
    return item[0].expert is not None


def _with(entry: ModelEntry, name: str, value: Value) -> ModelEntry:
    return entry.model_copy(update={"parameters": {**entry.parameters, name: value}})


def _given(recipe: Recipe, name: str) -> Iterator[Any]:
    """What each model, or each source of a slice, has of a parameter by itself or by its slice; None: nothing."""
    yield from (entry.parameters.get(name) for entry in recipe.models)
    for part in recipe.slices:
        yield from (source.parameters.get(name, part.parameters.get(name)) for source in part.sources)


def _cleared(part: Slice, name: str) -> Slice:
    """A slice in which the whole recipe's value of a parameter holds."""
    sources = tuple(_without(source, name) for source in part.sources)
    return _without(part, name).model_copy(update={"sources": sources})


def _without(place: P, name: str) -> P:
    kept = {key: value for key, value in place.parameters.items() if key != name}
    return place.model_copy(update={"parameters": kept})
