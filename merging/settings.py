"""The configured method of every tensor: profile defaults, recipe, model and override levels put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, get_args

from merging.errors import ParameterError, did_you_mean
from merging.layout import Input, Slot
from merging.methods import Method
from merging.recipe import Override, Recipe
from merging.sources import Member, Part
from merging.values import Scalar, resolve

FOR_MERGEKIT = frozenset(
    [
        "alpha",
        "density",
        "eps",
        "epsilon",
        "filter_wise",
        "gamma",
        "lambda",
        "max_iter",
        "normalize",
        "normalize_weights",
        "nuslerp_flatten",
        "nuslerp_row_wise",
        "r",
        "rescale",
        "scale",
        "select_topk",
        "t",
        "tol",
        "weight",
    ]
)
"""The parameters of mergekit's methods. Each takes any of them, and leaves those alone that are another's."""
NOT_MERGEKITS = frozenset({"magnitude", "pcb", "dppa", "apl"})
"""Methods that only we have: whoever writes such a recipe does not expect what mergekit accepts."""


class Settings:
    """Answers which `Method` instance a tensor gets.

    Levels, strongest first: overrides, the model's entry, its slice, the recipe, the profile. Values of the whole merge
    are looked up by the output tensor's name, a model's own by the name of the tensor it gives.

    `problems` lists unknown and misplaced parameters; `problems_found` fills as tensors are asked for their values.
    """

    def __init__(self, recipe: Recipe, method: type[Method], parts: Sequence[Part]):
        self.recipe = recipe
        self.method = method
        self.parts = list(parts)
        self.warnings: list[str] = []
        self.problems = self._name_problems()
        self.problems_found: list[str] = []
        self._cache: dict[tuple[Any, ...], Method | None] = {}
        self._used: set[int] = set()

    def for_tensor(self, slot: Slot) -> Method | None:
        """The method for one tensor; None, with a problem noted, where its values are not allowed."""
        values = self.values(slot)
        key = (len(slot.experts), *sorted((name, repr(value)) for name, value in values.items()))
        if key not in self._cache:
            self._cache[key] = self._configure(values, len(slot.experts))
        return self._cache[key]

    def values(self, slot: Slot) -> dict[str, Any]:
        """Parameter -> value that something in the recipe sets for this tensor; per-model ones as tuples."""
        overrides = self._overrides(slot.name)
        own = self.method.per_model()
        values: dict[str, Any] = {}
        for parameter in self.method.parameters():
            if parameter not in self._given:
                continue
            if parameter in own:
                given = [
                    self._first(parameter, slot, overrides, (member, one))
                    for member, one in zip(slot.part.experts, slot.experts, strict=True)
                ]
                if any(value is not None for value in given):
                    default = self.method.defaults(self.recipe.profile)[parameter]
                    values[parameter] = tuple(default if value is None else value for value in given)
            elif (value := self._first(parameter, slot, overrides, None)) is not None:
                values[parameter] = value
        if self.recipe.scope is not None:
            values["scope"] = self.recipe.scope
        if "seed" in self.method.parameters():
            values.setdefault("seed", self.recipe.seed)
        return values

    def unused_overrides(self) -> list[str]:
        return [
            f"overrides: '{override.tensors}' matches no tensor."
            for number, override in enumerate(self.recipe.overrides)
            if number not in self._used
        ]

    def _overrides(self, name: str) -> list[Override]:
        found = []
        for number, override in enumerate(self.recipe.overrides):
            if fnmatchcase(name, override.tensors):
                self._used.add(number)
                found.append(override)
        return found

    def _first(
        self, parameter: str, slot: Slot, overrides: Sequence[Override], model: tuple[Member, Input] | None
    ) -> Scalar | None:
        """The value on the strongest level that has one for this tensor; of one model, or of the whole merge."""
        reference = model[0].entry.model if model else None
        levels = [o.parameters for o in overrides if o.model is None or o.model == reference]
        if model is not None:
            levels.append(model[0].entry.parameters)
        name = model[1].name if model else slot.name
        extra = self.method.parameters()[parameter].json_schema_extra
        for level in [*levels, slot.part.parameters, self.recipe.parameters]:
            if parameter not in level:
                continue
            if extra["sequence"]:
                return level[parameter]
            value = resolve(level[parameter], name, slot.position, steps=parameter in self._stepwise)
            if value is not None:
                return value
        return None

    @cached_property
    def _given(self) -> set[str]:
        """Parameters that something in the recipe sets somewhere."""
        return {name for _, _, parameters in self._levels() for name in parameters}

    @cached_property
    def _stepwise(self) -> set[str]:
        """Parameters that are no numbers: their gradients have steps."""
        fields = self.method.parameters().items()
        return {name for name, field in fields if not {int, float} & _kinds(field.annotation)}

    def _configure(self, values: dict[str, Any], experts: int) -> Method | None:
        try:
            method = self.method.configure(self.recipe.profile, values)
        except ParameterError as error:
            self.problems_found.append(f"{self.method.name}: {error}")
            return None
        self.problems_found += [
            f"{self.method.name}: {text}." for text in method.problems(experts, self.recipe.profile)
        ]
        return method

    def _levels(self) -> list[tuple[str, str | None, Mapping[str, Any]]]:
        """Where parameters may stand: what the recipe calls the place, its model if it is one's, and its parameters."""
        levels: list[tuple[str, str | None, Mapping[str, Any]]] = [
            ("parameters", None, self.recipe.parameters)
        ]
        for part in self.parts:
            levels.append((f"{part.where}.parameters", None, part.parameters))
            levels += [
                (f"{part.where}: {member.entry.model}", member.entry.model, member.entry.parameters)
                for member in part.experts
            ]
        return levels + [(f"overrides: {o.tensors}", o.model, o.parameters) for o in self.recipe.overrides]

    def _name_problems(self) -> list[str]:
        known = list(self.method.parameters())
        own = self.method.per_model()
        lenient = self.recipe.profile == "mergekit" and self.method.name not in NOT_MERGEKITS
        idle = FOR_MERGEKIT.difference(known) if lenient else ()
        problems = []
        for where, model, parameters in self._levels():
            for name in parameters:
                if name in idle:
                    self.warnings.append(
                        f"{where}: {name} does nothing in {self.method.name}, in mergekit too."
                    )
                elif name not in known:
                    problems.append(
                        f"{where}: {self.method.name} has no parameter '{name}'.{did_you_mean(name, known)} "
                        f"It has: {', '.join(known)}."
                    )
                elif model is not None and name not in own:
                    problems.append(
                        f"{where}: '{name}' is one value for the merge; move it to the recipe's parameters."
                    )
        if self.recipe.scope is not None and "scope" not in known:
            problems.append(f"scope: {self.method.name} ranks nothing, so it has no scope; remove the key.")
        elif self.recipe.scope is not None and "scope" in self.recipe.parameters:
            problems.append("scope: given twice, at the top and under parameters; keep the one at the top.")
        names = {member.entry.model for part in self.parts for member in part.experts}
        for override in self.recipe.overrides:
            if override.model is not None and override.model not in names:
                problems.append(
                    f"overrides: '{override.model}' is none of the models.{did_you_mean(override.model, sorted(names))}"
                )
        return problems


def _kinds(annotation: Any) -> set[type]:
    """The types an annotation is made of, and those of the literals in it."""
    parts = get_args(annotation)
    if not parts:
        return {annotation if isinstance(annotation, type) else type(annotation)}
    return set().union(*map(_kinds, parts))
