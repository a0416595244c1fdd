"""From our recipe to one that mergekit runs: its parameters written out, and all it cannot express told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from merging.errors import MergingError
from merging.methods import METHODS, Method
from merging.recipe import Keep, ModelEntry, Recipe
from merging.settings import FOR_MERGEKIT
from merging.values import ParameterValue, Scalar, covers, leaves, with_leaves
from merging.yaml_text import dump_yaml

DELTAS = frozenset({"weight", "density", "normalize", "rescale", "lambda"})
TAKES: Mapping[str, frozenset[str]] = {
    "linear": frozenset({"weight", "normalize"}),
    "task_arithmetic": DELTAS,
    "ties": DELTAS,
    "dare_linear": DELTAS,
    "dare_ties": DELTAS,
    "della": DELTAS | {"epsilon"},
    "della_linear": DELTAS | {"epsilon"},
    "breadcrumbs": DELTAS | {"gamma"},
    "breadcrumbs_ties": DELTAS | {"gamma"},
    "slerp": frozenset({"t"}),
    "nearswap": frozenset({"t"}),
    "nuslerp": frozenset({"weight", "nuslerp_flatten", "nuslerp_row_wise"}),
    "multislerp": frozenset({"weight", "normalize_weights", "eps"}),
    "karcher": frozenset({"max_iter", "tol"}),
    "model_stock": frozenset({"filter_wise"}),
    "sce": frozenset({"select_topk"}),
    "ram": frozenset({"epsilon"}),
    "ramplus_tl": frozenset({"epsilon", "r", "alpha"}),
    "arcee_fusion": frozenset(),
    "passthrough": frozenset({"scale"}),
}
"""mergekit's methods that we have, and the parameters they take there."""
REQUIRED = frozenset({"weight", "t"})
"""What mergekit has no default for."""
OWN_KEYS = frozenset(
    {"profile", "seed", "scope", "importance", "exclude", "keep", "overrides", "parameters", "special_tokens"}
)
RESCALE: Mapping[Scalar, bool] = {"l1": True, "none": False}
"""Our words for what mergekit writes as true and false."""
_RESCALES = {"l1", "none", "true", "false"}


def to_mergekit(recipe: Recipe, *, approximate: bool = False) -> str:
    """A YAML that gives the same weights in mergekit (random masks excepted: they are drawn anew).

    Args:
        approximate: leave out what mergekit cannot express and say so in comments, instead of refusing.

    Raises:
        MergingError: mergekit lacks the method, or something that decides the weights, all of it in one text.
    """
    if recipe.merge_method not in TAKES or recipe.merge_method not in METHODS:
        raise MergingError(
            f"mergekit has no method '{recipe.merge_method}', so this recipe cannot be exported; merge it here. It has: "
            f"{', '.join(TAKES)}."
        )
    export = _Export(recipe, METHODS[recipe.merge_method])
    if unknown := export.unknown():
        raise MergingError(
            f"{recipe.merge_method} has no parameter {', '.join(unknown)}; mend the recipe first (see `check`)."
        )
    problems = list(export.problems())
    if problems and not approximate:
        raise MergingError(
            "mergekit cannot express this recipe:\n"
            + "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
            + "\nUse --approximate (in Python approximate=True) to leave these out."
        )
    lines = [f"# left out: {problem}" for problem in problems] + [f"# {note}" for note in export.notes()]
    return "".join(f"{line}\n" for line in lines) + dump_yaml(export.content())


@dataclass(frozen=True)
class _Export:
    """One recipe on its way to mergekit."""

    recipe: Recipe
    method: type[Method]

    @cached_property
    def levels(self) -> list[Mapping[str, ParameterValue]]:
        """The parameters of every place in the recipe."""
        recipe = self.recipe
        models = [*recipe.models, *(source for part in recipe.slices for source in part.sources)]
        return [
            recipe.parameters,
            *(part.parameters for part in recipe.slices),
            *(model.parameters for model in models),
            *(override.parameters for override in recipe.overrides),
        ]

    @cached_property
    def takes(self) -> frozenset[str]:
        return TAKES[self.method.name]

    @cached_property
    def theirs(self) -> dict[str, Any]:
        """mergekit's defaults, also for what is fixed there."""
        return self.method.defaults("mergekit")

    @cached_property
    def ours(self) -> dict[str, Any]:
        return self.method.defaults(self.recipe.profile)

    def unknown(self) -> list[str]:
        """Parameters that neither we nor mergekit know for this method."""
        known = self.takes | self.method.parameters().keys()
        if self.recipe.profile == "mergekit":
            known |= FOR_MERGEKIT  # what another of its methods takes is left alone, there and here
        return sorted({name for level in self.levels for name in level} - known)

    def possible(self, name: str) -> list[Any]:
        """All values that some tensor may get of a parameter."""
        if name == "scope" and self.recipe.scope is not None:
            return [self.recipe.scope]
        found = [leaf for level in self.levels if name in level for leaf in leaves(level[name])]
        if not self._set_everywhere(name):
            found.append(self.ours[name])
        return found

    def _set_everywhere(self, name: str) -> bool:
        def sets(table: Any) -> bool:
            return name in table.parameters and covers(table.parameters[name])

        if sets(self.recipe):
            return True
        if self.recipe.slices:
            return all(
                sets(part) or all(sets(source) for source in part.sources if not self._is_base(source))
                for part in self.recipe.slices
            )
        entries = [entry for entry in self.recipe.models if not self._is_base(entry)]
        return bool(entries) and all(sets(entry) for entry in entries)

    def _is_base(self, entry: ModelEntry) -> bool:
        bases = {self.recipe.base_model, *(part.base_model for part in self.recipe.slices)}
        return self.method.takes_base and entry.model in bases

    @cached_property
    def _keeps_all(self) -> bool:
        """Whether no expert loses a part of its change, so that trimming and rescaling do not matter."""
        names = [name for name in ("density", "select_topk") if name in self.method.parameters()]
        return bool(names) and all(_at_least_one(value) for name in names for value in self.possible(name))

    @cached_property
    def _most_experts(self) -> int:
        parts = [list[ModelEntry](part.sources) for part in self.recipe.slices] or [list(self.recipe.models)]
        return max(sum(not self._is_base(entry) for entry in part) for part in parts)

    def matters(self, name: str) -> bool:
        """Whether a parameter can change a weight in this recipe."""
        alone = self._most_experts <= 1
        if name in {
            "zero_divisor",
            "seed",
        }:  # a recipe whose divisor is 0 does not run at all; masks have a note
            return False
        if name in {"count", "rescale"}:
            return not self._keeps_all
        if name == "zero_sum":
            return not alone
        if name in {"elect_on", "sign"}:
            weights = self.possible("weight") if name == "elect_on" else []
            equal = len(set(weights)) == 1 and _positive(weights[0])
            return not alone and not equal
        if name == "scope":
            draws = "majority" in self.possible("zero_sum") if "zero_sum" in self.ours else False
            trims = "count" in self.ours and not self._keeps_all
            return trims or (draws and not alone)
        return True

    def problems(self) -> Iterator[str]:
        """What mergekit cannot express and this recipe asks for, a sentence each."""
        recipe = self.recipe
        if recipe.exclude:
            yield f"exclude: mergekit merges every tensor; it cannot keep the base's {', '.join(recipe.exclude)}."
        if recipe.keep != Keep():
            yield "keep: mergekit merges every tensor; it cannot keep modules or blocks of the base."
        if recipe.overrides:
            yield "overrides: mergekit has no globs; write these values as filters."
        for name in self.method.parameters():
            if not self.matters(name):
                continue
            values = set(map(_word, self.possible(name)))
            if name == "rescale":
                allowed = _RESCALES
            else:
                allowed = values if name in self.takes else {_word(self.theirs[name])}
            if other := values - allowed:
                fixed = "true (l1) and false (none)" if name == "rescale" else _word(self.theirs[name])
                yield f"{name}: {', '.join(sorted(other))}; mergekit has only {fixed}."
        if "epsilon" in self.takes and "density" in self.takes and not self._keeps_all:
            yield from self._window_problems()

    def _window_problems(self) -> Iterator[str]:
        pairs = [(d, e) for d in self.possible("density") for e in self.possible("epsilon")]
        numbers = [
            (d, e) for d, e in pairs if _positive(d) and not _at_least_one(d) and isinstance(e, int | float)
        ]
        for density, epsilon in numbers:
            if density + epsilon >= 1:
                yield f"epsilon: mergekit needs density + epsilon below 1, and {density:g} + {epsilon:g} is not."
                return

    def notes(self) -> Iterator[str]:
        """What a reader of the exported recipe should know."""
        if "seed" in self.method.parameters() and not self._keeps_all:
            yield "masks are random: mergekit draws others, so single weights differ."
        if self._drops_base:
            yield f"base_model {self.recipe.base_model} is not written: mergekit would average it as one more model."
        if self.recipe.special_tokens is not None:
            yield "special_tokens is not written: mergekit takes those of the model that gives the tokenizer."
        if self._drops_template:
            yield f"chat_template: {self.recipe.chat_template} is not written: mergekit takes auto or the Jinja text."
        if self.recipe.profile == "paper" and not self.recipe.dtype and not self.recipe.out_dtype:
            yield "without dtype, mergekit computes in the models' own dtype; set dtype: float32 to compute as here."

    @property
    def _drops_base(self) -> bool:
        listed = any(entry.model == self.recipe.base_model for entry in self.recipe.models)
        counts = self.recipe.profile == "paper" and not self.method.takes_base and not self.recipe.slices
        return counts and self.recipe.base_model is not None and not listed

    @property
    def _drops_template(self) -> bool:
        wanted = self.recipe.chat_template
        return wanted is not None and wanted != "auto" and "{" not in wanted

    def content(self) -> dict[str, Any]:
        """The recipe in mergekit's words."""
        recipe = self.recipe
        dumped = recipe.model_dump(mode="json", exclude_defaults=True, exclude=set(OWN_KEYS))
        made = {"merge_method": recipe.merge_method, **dumped}
        if self._drops_base:
            del made["base_model"]
        if self._drops_template:
            del made["chat_template"]
        written = recipe.out_dtype or recipe.dtype
        if recipe.profile == "paper" and written is not None:  # here dtype rounds the result, there the work
            made |= {"dtype": "float32", "out_dtype": written}
        tables = [*made.get("models", []), *made.get("slices", [])]
        for part in made.get("slices", []):
            tables += part["sources"]
        for table in tables:
            table["parameters"] = self._translated(table.get("parameters", {}))
            if not table["parameters"]:
                del table["parameters"]
        if parameters := self._with_defaults(self._translated(recipe.parameters)):
            made["parameters"] = parameters
        return made

    def _translated(self, parameters: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
        made = {}
        for name, value in parameters.items():
            if name == "rescale":
                if self._keeps_all or not set(map(_word, leaves(value))) <= _RESCALES:
                    continue
                value = with_leaves(value, lambda leaf: RESCALE.get(leaf, leaf))
            if name in self.takes:
                made[name] = value
        return made

    def _with_defaults(self, parameters: dict[str, ParameterValue]) -> dict[str, ParameterValue]:
        """Recipe-level parameters, with our defaults where mergekit has another or none."""
        for name in self.method.parameters():
            default = self.ours[name]
            if name not in self.takes or (default == self.theirs[name] and name not in REQUIRED):
                continue
            if name == "rescale":
                if default not in RESCALE or self._keeps_all:
                    continue
                default = RESCALE[default]
            if self._set_everywhere(name):
                continue
            if name not in parameters:
                parameters[name] = default
            elif not covers(parameters[name]):
                value = parameters[name]
                parameters[name] = [*(value if isinstance(value, list) else [value]), {"value": default}]
        return parameters


def _word(value: Any) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _at_least_one(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1
