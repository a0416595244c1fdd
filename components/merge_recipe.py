"""What the Merge tab's form means as a recipe, and a recipe as values of the form. No widgets here.

A form is a table of values by key: `method`, `profile`, `out_dtype`, `experts` (numbers of the chosen experts),
`partner` (the one expert of a method that takes one), `METHOD.PARAMETER`, and `PARAMETER.NUMBER` for an expert's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.family import Family
from components.forms import default_of, explicit, for_each_expert, merge_wide, tidy
from components.settings import ROOT
from merging import METHODS, MergingError, Method, Plan, PlanError, Recipe
from merging.methods import get_method
from merging.plan import make_plan
from merging.recipe import ModelEntry

Form = Mapping[str, Any]

DEFAULT_METHOD = "ties"
DEFAULT_PARAMETERS: dict[str, Any] = {"density": 0.5}
ONE_CLICK_METHOD = "task_arithmetic"
ONE_CLICK_PARAMETERS: dict[str, Any] = {"lambda": 0.8}
"""The demo family's best merge on its validation files."""
AS_STORED = "as stored"
"""The choice of the output dtype that leaves it to the models."""
MAX_YAML = 64_000
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
        "base_model": reference(family.base) if chosen.needs_base else None,
        "models": tuple(ModelEntry(model=reference(expert)) for expert in family.experts[:count]),
        "parameters": dict(DEFAULT_PARAMETERS) if method == DEFAULT_METHOD else {},
        "profile": "paper",
    }
    return _at_root(Recipe(**content))


def one_click_recipe(family: Family) -> Recipe:
    """The merge the one-click button makes."""
    recipe = default_recipe(family, ONE_CLICK_METHOD)
    return _at_root(recipe.model_copy(update={"parameters": dict(ONE_CLICK_PARAMETERS)}))


def check(recipe: Recipe, earlier: Sequence[str] = ()) -> Checked:
    """Plan the recipe from headers, or say everything that is in the way."""
    try:
        return Checked(make_plan(_at_root(recipe), earlier=earlier))
    except PlanError as error:
        return Checked(None, tuple(error.problems))
    except MergingError as error:
        return Checked(None, (*earlier, str(error)))


def to_recipe(previous: Recipe, family: Family, form: Form) -> Recipe:
    """The recipe the form describes. What no widget shows (gradients, filters, overrides, seed) stays as it was."""
    method = METHODS[form["method"]]
    profile = previous.profile  # whose defaults the widgets show; what differs is kept when another is chosen
    before = _entries(previous, family)
    values = {name: form[f"{method.name}.{name}"] for name in merge_wide(method)}
    parameters = explicit(method, profile, values) | _lists(previous.parameters, method)
    own = for_each_expert(method)
    entries = []
    for number in chosen_experts(method, form, len(family.experts)):
        kept = _lists(before[number].parameters if number in before else {}, method)
        said = explicit(
            method, profile, {name: form[f"{name}.{number}"] for name in own if name not in parameters}
        )
        entries.append(ModelEntry(model=reference(family.experts[number]), parameters=said | kept))
    others = [entry for entry in previous.models if _index(entry.model, previous, family) is None]
    if not others:
        parameters, entries = _shared(parameters, entries)
    same_method = previous.merge_method == method.name
    base = reference(family.base) if method.needs_base else previous.base_model if same_method else None
    recipe = previous.model_copy(
        update={
            "merge_method": method.name,
            "base_model": base,
            "models": (*(others if not method.needs_base else ()), *entries),
            "parameters": parameters,
            "profile": form["profile"],
            "scope": None,
            "out_dtype": None if form["out_dtype"] == AS_STORED else form["out_dtype"],
        }
    )
    return _at_root(recipe)


def to_form(recipe: Recipe, family: Family) -> tuple[dict[str, Any], set[str]]:
    """The form's values for a recipe, and the keys whose value only the YAML can show."""
    fixed: set[str] = set()
    entries = _entries(recipe, family)
    chosen = sorted(entries) or list(range(len(family.experts)))
    form: dict[str, Any] = {
        "method": recipe.merge_method,
        "profile": recipe.profile,
        "out_dtype": recipe.out_dtype or AS_STORED,
        "experts": chosen,
        "partner": chosen[0] if chosen else None,
    }
    given = dict(recipe.parameters) | ({"scope": recipe.scope} if recipe.scope else {})

    def put(key: str, value: Any, default: Any) -> None:
        if isinstance(value, list):
            fixed.add(key)
        form[key] = default if value is None or isinstance(value, list) else value

    for method in METHODS.values():
        active = method.name == recipe.merge_method
        for name in merge_wide(method):
            put(
                f"{method.name}.{name}",
                given.get(name) if active else None,
                default_of(method, name, recipe.profile),
            )
    method = METHODS[recipe.merge_method]
    for name in for_each_expert(method):
        for number in range(len(family.experts)):
            own = entries[number].parameters if number in entries else {}
            put(f"{name}.{number}", own.get(name, given.get(name)), default_of(method, name, recipe.profile))
    return form, fixed


def chosen_experts(method: type[Method], form: Form, experts: int) -> list[int]:
    """The numbers of the experts that take part; numbers that are none are left out."""
    wanted = [form["partner"]] if method.experts_wanted == 1 else form["experts"] or []
    return sorted({number for number in wanted if isinstance(number, int) and 0 <= number < experts})


def from_yaml(text: str, family: Family) -> tuple[Recipe | None, list[str]]:
    """A recipe somebody wrote, over the family's models, or a sentence for each thing that is wrong with it."""
    if len(text) > MAX_YAML:
        return None, [
            f"a recipe of more than {MAX_YAML:,} characters is not read here; use the command line."
        ]
    recipe, problems = Recipe.parse(text, folder=ROOT)
    if recipe is None:
        return None, problems
    if recipe.chat_template is not None:
        problems.append(
            "chat_template: templates are not taken from this page; set it with the command line."
        )
    if recipe.slices:
        return None, [*problems, "slices: this page merges whole models; use the command line for slices."]
    recipe, foreign = _of_family(recipe, family)
    problems += foreign
    try:
        get_method(recipe.merge_method)
    except MergingError as error:
        return None, [*problems, str(error)]
    checked = check(recipe, earlier=problems)
    if checked.problems:
        return None, list(checked.problems)
    return to_recipe(recipe, family, to_form(recipe, family)[0]), []


def title(recipe: Recipe, family: Family) -> str:
    """A job's name: method, experts, and the parameters the recipe sets."""
    entries = _entries(recipe, family)
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


def _of_family(recipe: Recipe, family: Family) -> tuple[Recipe, list[str]]:
    """The recipe without models from elsewhere, which are never opened, and a problem for each of them."""
    problems, entries, seen = [], [], set()
    known = ", ".join(reference(model) for model in (family.base, *family.experts))
    remedy = f"Choose it under Models first. Chosen now: {known}."
    base_counts = recipe.merge_method in METHODS and not METHODS[recipe.merge_method].needs_base
    for entry in recipe.models:
        place = _place(recipe, entry.model)
        if place is not None and place == Path(family.base).resolve():
            entries += [entry] if base_counts else []
        elif _index(entry.model, recipe, family) is None:
            problems.append(f"models: '{entry.model}' is none of the chosen models. {remedy}")
        elif place in seen:
            problems.append(f"models: '{entry.model}' is listed twice.")
        else:
            entries.append(entry)
        seen.add(place)
    base = recipe.base_model
    if base is not None and _place(recipe, base) != Path(family.base).resolve():
        problems.append(f"base_model: '{base}' is not the chosen base. {remedy}")
        base = reference(family.base)
    if problems and not entries:
        entries = [ModelEntry(model=reference(expert)) for expert in family.experts[:1]]
    return recipe.model_copy(update={"models": tuple(entries), "base_model": base}), problems


def _entries(recipe: Recipe, family: Family) -> dict[int, ModelEntry]:
    """The recipe's entries by the number of their expert."""
    numbers = {_index(entry.model, recipe, family): entry for entry in recipe.models}
    return {number: entry for number, entry in numbers.items() if number is not None}


def _index(model: str, recipe: Recipe, family: Family) -> int | None:
    place = _place(_at_root(recipe), model)
    for number, expert in enumerate(family.experts):
        if Path(expert).resolve() == place:
            return number
    return None


def _place(recipe: Recipe, model: str) -> Path | None:
    """The folder a model reference means; None for a name that cannot be one."""
    try:
        return recipe.locate(model).resolve()
    except (OSError, ValueError):
        return None


def _lists(parameters: Mapping[str, Any], method: type[Method]) -> dict[str, Any]:
    known = method.parameters()
    return {name: value for name, value in parameters.items() if isinstance(value, list) and name in known}


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


def _at_root(recipe: Recipe) -> Recipe:
    """The recipe with its model paths looked up from the project's root."""
    recipe._folder = ROOT
    return recipe
