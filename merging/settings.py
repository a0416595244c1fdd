"""The configured method of every tensor: profile defaults, recipe, model and override levels put together."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from merging.errors import ParameterError, did_you_mean
from merging.methods import Method
from merging.recipe import ModelEntry, Recipe
from merging.values import Scalar, resolve


class Settings:
    """Answers which `Method` instance a tensor gets. Levels, strongest first: overrides, model entry, recipe, profile.

    `problems` lists unknown and misplaced parameters; `problems_found` fills as tensors are asked for their values.
    """

    def __init__(self, recipe: Recipe, method: type[Method], entries: Sequence[ModelEntry]):
        self.recipe = recipe
        self.method = method
        self.entries = list(entries)
        self.problems = self._name_problems()
        self.problems_found: list[str] = []
        self._cache: dict[tuple[Any, ...], Method | None] = {}
        self._used: set[int] = set()

    def for_tensor(self, name: str, position: float) -> Method | None:
        """The method for one tensor; None, with a problem noted, where its values are not allowed."""
        values = self.values(name, position)
        key = tuple(sorted((name, repr(value)) for name, value in values.items()))
        if key not in self._cache:
            self._cache[key] = self._configure(name, values)
        return self._cache[key]

    def values(self, name: str, position: float) -> dict[str, Any]:
        """Parameter -> value that something in the recipe sets for this tensor; per-model ones as tuples."""
        overrides = self._overrides(name)
        own = self.method.per_model()
        values: dict[str, Any] = {}
        for parameter, field in self.method.parameters().items():
            default = self.method.MERGEKIT.get(parameter, field.default)
            if self.recipe.profile == "paper":
                default = field.default
            if parameter in own:
                given = [self._first(parameter, name, position, overrides, entry) for entry in self.entries]
                if any(value is not None for value in given):
                    values[parameter] = tuple(default if value is None else value for value in given)
            elif (value := self._first(parameter, name, position, overrides, None)) is not None:
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

    def _overrides(self, name: str) -> list[Any]:
        found = []
        for number, override in enumerate(self.recipe.overrides):
            if fnmatchcase(name, override.tensors):
                self._used.add(number)
                found.append(override)
        return found

    def _first(
        self, parameter: str, name: str, position: float, overrides: list[Any], entry: ModelEntry | None
    ) -> Scalar | None:
        model = entry.model if entry else None
        levels = [o.parameters for o in overrides if o.model is None or o.model == model]
        if entry is not None:
            levels.append(entry.parameters)
        for level in [*levels, self.recipe.parameters]:
            if parameter not in level:
                continue
            if self.method.parameters()[parameter].json_schema_extra["sequence"]:
                return level[parameter]
            if (value := resolve(level[parameter], name, position)) is not None:
                return value
        return None

    def _configure(self, name: str, values: dict[str, Any]) -> Method | None:
        try:
            method = self.method.configure(self.recipe.profile, values)
        except ParameterError as error:
            self.problems_found.append(f"{self.method.name}: {error}")
            return None
        self.problems_found += [
            f"{self.method.name}: {text}." for text in method.problems(len(self.entries), self.recipe.profile)
        ]
        return method

    def _name_problems(self) -> list[str]:
        known = list(self.method.parameters())
        own = self.method.per_model()
        levels: list[tuple[str, str | None, dict[str, Any]]] = [("parameters", None, self.recipe.parameters)]
        levels += [(f"models: {entry.model}", entry.model, entry.parameters) for entry in self.entries]
        levels += [(f"overrides: {o.tensors}", o.model, o.parameters) for o in self.recipe.overrides]
        problems = []
        for where, model, parameters in levels:
            for name in parameters:
                if name not in known:
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
        names = {entry.model for entry in self.entries}
        for override in self.recipe.overrides:
            if override.model is not None and override.model not in names:
                problems.append(
                    f"overrides: '{override.model}' is none of the models.{did_you_mean(override.model, sorted(names))}"
                )
        return problems
