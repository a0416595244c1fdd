"""What the Merge tab's form means as a recipe, and a recipe as values of the form. No widgets here.

A form is a table of values by key: `method`, `profile`, `out_dtype`, `keep_modules`, `keep_blocks`, `experts` (numbers of the chosen experts),
`partner` (the one expert of a method that takes one), `with_base` (for methods to which a base is optional), the
parameters of the method it shows by name, and `PARAMETER.NUMBER` for an expert's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from components.family import Family
from components.forms import (
    LARGEST_WHOLE,
    default_of,
    explicit,
    for_each_expert,
    is_sequence,
    merge_wide,
    tidy,
)
from components.merge.keep_fields import keep_of, to_fields
from components.server.settings import ROOT
from merging import METHODS, MergingError, Method, Plan, PlanError, Recipe
from merging.methods import Profile, get_method
from merging.plan import make_plan
from merging.recipe import Dtype, ModelEntry

Form = Mapping[str, Any]

DEFAULT_METHOD = "ties"
DEFAULT_PARAMETERS: dict[str, Any] = {"density": 0.5}
ONE_CLICK_METHOD = "task_arithmetic"
ONE_CLICK_PARAMETERS: dict[str, Any] = {"lambda": 0.8}
"""The demo family's best merge on its validation files."""
AS_STORED = "as stored"
"""The choice of the output dtype that leaves it to the models."""
MAX_TITLE = 120


@dataclass(frozen=True)
class Checked:
    """What came of checking a recipe: a plan that can run, or sentences that say why there is none."""

    plan: Plan | None
    problems: tuple[str, ...] = ()


def reference(model: str) -> str:
    """A model's path as a recipe of ours names it: inside the project from its root, so that no machine shows."""
    path = Path(model)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else model


def default_recipe(family: Family, method: str = DEFAULT_METHOD) -> Recipe:
    """Where the form begins: TIES with more density than its paper; for another method, the paper's values."""
    chosen = METHODS[method]
    count = chosen.experts_wanted or len(family.experts)
    content = {
        "merge_method": method,
        "base_model": reference(family.base) if chosen.takes_base else None,
        "models": tuple(ModelEntry(model=reference(expert)) for expert in family.experts[:count]),
        "parameters": dict(DEFAULT_PARAMETERS) if method == DEFAULT_METHOD else {},
        "profile": "paper",
        **{key: reference(value) for key, value in family.words},
    }
    return at_root(Recipe(**content))


def one_click_recipe(family: Family) -> Recipe:
    """The merge the one-click button makes."""
    recipe = default_recipe(family, ONE_CLICK_METHOD)
    return at_root(recipe.model_copy(update={"parameters": dict(ONE_CLICK_PARAMETERS)}))


def check(recipe: Recipe, earlier: Sequence[str] = ()) -> Checked:
    """Plan the recipe from headers, or say everything that is in the way."""
    try:
        return Checked(make_plan(at_root(recipe), earlier=earlier))
    except PlanError as error:
        return Checked(None, tuple(error.problems))
    except MergingError as error:
        return Checked(None, (*earlier, str(error)))


def to_recipe(previous: Recipe, family: Family, form: Form) -> Recipe:
    """The recipe the form describes; it shows the parameters of `previous`'s method.

    What no widget shows (gradients, filters, overrides) stays as it was. Another method starts at its own values, but
    keeps what the experts' own parameters were set to where both methods have them with the same default.
    """
    method = get_method(form["method"])
    same_method = previous.merge_method == method.name
    parameters, entries = (
        _said(previous, family, form) if same_method else _carried(previous, family, form, method)
    )
    others = [entry for entry in previous.models if number_of(entry.model, previous, family) is None]
    if not others:
        parameters, entries = _shared(parameters, entries)
    base = previous.base_model if same_method else None
    if method.takes_base:
        base = reference(family.base) if method.needs_base or form["with_base"] else None
    seed = previous.seed
    if same_method and "seed" in method.parameters() and not isinstance(parameters.get("seed"), list | dict):
        seed = parameters.pop("seed", 0)
    recipe = previous.model_copy(
        update={
            "merge_method": method.name,
            "base_model": base,
            "models": (*(others if not method.takes_base else ()), *entries),
            "parameters": parameters,
            "profile": form["profile"] if form["profile"] in get_args(Profile) else previous.profile,
            "scope": None,
            "seed": seed,
            "out_dtype": form["out_dtype"] if form["out_dtype"] in get_args(Dtype) else None,
            "keep": keep_of(previous, form),
        }
    )
    return at_root(recipe)


def _said(previous: Recipe, family: Family, form: Form) -> tuple[dict[str, Any], list[ModelEntry]]:
    """What the form's widgets say beyond the defaults: for the merge, and for every chosen expert."""
    method, profile = METHODS[previous.merge_method], previous.profile
    before = entries_of(previous, family)
    kept = _unshown(previous, method)
    values = {name: form[name] for name in merge_wide(method) if name not in kept}
    parameters = explicit(method, profile, values) | kept
    own = for_each_expert(method)
    entries = []
    for number in chosen_experts(method, form, len(family.experts)):
        kept = _lists(before[number].parameters if number in before else {}, method)
        said = explicit(method, profile, {n: form[f"{n}.{number}"] for n in own if n not in parameters})
        entries.append(ModelEntry(model=reference(family.experts[number]), parameters=said | kept))
    return parameters, entries


def _carried(
    previous: Recipe, family: Family, form: Form, method: type[Method]
) -> tuple[dict[str, Any], list[ModelEntry]]:
    """The experts for another method, with their own parameters that mean the same in both."""
    earlier, profile = METHODS[previous.merge_method], previous.profile
    both = [
        name
        for name in for_each_expert(method)
        if name in for_each_expert(earlier)
        and default_of(method, name, profile) == default_of(earlier, name, profile)
    ]
    values, _ = to_form(previous, family)
    numbers = chosen_experts(method, form, len(family.experts))
    if earlier.experts_wanted is not None and earlier.experts_wanted < (
        method.experts_wanted or len(family.experts)
    ):
        numbers = list(range(len(family.experts)))
    entries = [
        ModelEntry(
            model=reference(family.experts[number]),
            parameters=explicit(method, profile, {name: values[f"{name}.{number}"] for name in both}),
        )
        for number in numbers[: method.experts_wanted]
    ]
    return {}, entries


def to_form(recipe: Recipe, family: Family) -> tuple[dict[str, Any], set[str]]:
    """The form's values for a recipe, and the keys whose value only the YAML can show."""
    entries = entries_of(recipe, family)
    chosen = sorted(entries) or list(range(len(family.experts)))
    form: dict[str, Any] = {
        "method": recipe.merge_method,
        "profile": recipe.profile,
        "out_dtype": recipe.out_dtype or AS_STORED,
        **to_fields(recipe),
        "experts": chosen,
        "partner": chosen[0] if chosen else None,
        "with_base": recipe.base_model is not None,
    }
    method = METHODS[recipe.merge_method]
    top = {"scope": recipe.scope, "seed": recipe.seed or None}
    given = dict(recipe.parameters) | {name: value for name, value in top.items() if value is not None}
    hidden = _unshown(recipe, method)
    fixed: set[str] = set(hidden)

    def put(key: str, value: Any, default: Any) -> None:
        if isinstance(value, list | dict) and not is_sequence(method.parameters()[key.partition(".")[0]]):
            fixed.add(key)
        form[key] = default if value is None or key in fixed else value

    for name in merge_wide(method):
        put(name, given.get(name), default_of(method, name, recipe.profile))
    for name in for_each_expert(method):
        for number in range(len(family.experts)):
            own = entries[number].parameters if number in entries else {}
            put(f"{name}.{number}", own.get(name, given.get(name)), default_of(method, name, recipe.profile))
    return form, fixed


def chosen_experts(method: type[Method], form: Form, experts: int) -> list[int]:
    """The numbers of the experts that take part; numbers that are none are left out."""
    wanted = [form["partner"]] if method.experts_wanted == 1 else form["experts"]
    wanted = wanted if isinstance(wanted, list) else []
    return sorted({number for number in wanted if isinstance(number, int) and 0 <= number < experts})


def title(recipe: Recipe, family: Family) -> str:
    """A job's name: method, experts, and the parameters the recipe sets."""
    entries = entries_of(recipe, family)
    method = METHODS[recipe.merge_method].title
    said = " ".join(f"{name} {_short(value)}" for name, value in recipe.parameters.items())
    experts = [
        family.names[number]
        + "".join(f" {name} {_short(v)}" for name, v in entries[number].parameters.items())
        for number in sorted(entries)
    ]
    return " · ".join(part for part in (method, said, ", ".join(experts)) if part)[:MAX_TITLE]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "varied" if isinstance(value, list) else str(value)


def expert_names(recipe: Recipe) -> tuple[str, ...]:
    """Short names of a recipe's models, in its order."""
    return Family(recipe.base_model or "", tuple(entry.model for entry in recipe.models)).names


def entries_of(recipe: Recipe, family: Family) -> dict[int, ModelEntry]:
    """The recipe's entries by the number of their expert."""
    numbers = {number_of(entry.model, recipe, family): entry for entry in recipe.models}
    return {number: entry for number, entry in numbers.items() if number is not None}


def number_of(model: str, recipe: Recipe, family: Family) -> int | None:
    place = place_of(at_root(recipe), model)
    for number, expert in enumerate(family.experts):
        if Path(expert).resolve() == place:
            return number
    return None


def is_of(recipe: Recipe, family: Family) -> bool:
    """Whether a recipe merges models of this family only, as changes from its base if from any."""
    base = Path(family.base).resolve()
    if recipe.base_model is not None and place_of(at_root(recipe), recipe.base_model) != base:
        return False
    return all(
        number_of(entry.model, recipe, family) is not None or place_of(recipe, entry.model) == base
        for entry in recipe.models
    )


def place_of(recipe: Recipe, model: str) -> Path | None:
    """The folder a model reference means; None for a name that cannot be one."""
    try:
        return recipe.locate(model).resolve()
    except (OSError, ValueError):
        return None


def _lists(parameters: Mapping[str, Any], method: type[Method]) -> dict[str, Any]:
    """Gradients and filters, which no widget shows."""
    known = method.parameters()
    return {
        name: value
        for name, value in parameters.items()
        if isinstance(value, list | dict) and name in known and not is_sequence(known[name])
    }


def _unshown(recipe: Recipe, method: type[Method]) -> dict[str, Any]:
    """The values for the whole merge that no widget shows: gradients, filters, and numbers too large for the browser."""
    given = dict(recipe.parameters) | ({"seed": recipe.seed} if "seed" in method.parameters() else {})
    large = {
        n: v
        for n, v in given.items()
        if n in merge_wide(method) and isinstance(v, int) and abs(v) > LARGEST_WHOLE
    }
    return _lists(recipe.parameters, method) | large


def _shared(parameters: dict[str, Any], entries: list[ModelEntry]) -> tuple[dict[str, Any], list[ModelEntry]]:
    """Values on which all experts agree, said once for the merge."""
    if len(entries) < 2:
        return parameters, entries
    first, *rest = (entry.parameters for entry in entries)
    common = {n: v for n, v in first.items() if all(n in other and other[n] == v for other in rest)}
    kept = [
        ModelEntry(model=e.model, parameters={n: tidy(v) for n, v in e.parameters.items() if n not in common})
        for e in entries
    ]
    return {**common, **parameters}, kept


def at_root(recipe: Recipe) -> Recipe:
    """The recipe with its model paths looked up from the project's root."""
    recipe._folder = ROOT
    return recipe
