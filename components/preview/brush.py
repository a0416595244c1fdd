"""From chosen cells of a map to a changed recipe: overrides, exclusions, and back. No widgets here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components.forms import default_of, is_sequence, tidy, words
from components.merge.recipe import check, expert_names
from components.preview.brush_globs import globs_for, matching
from components.preview.brush_lists import added, cleaned, cut, cut_globs, reached, refuse_many
from merging import METHODS, MergingError, Method, Recipe
from merging.anatomy import locate
from merging.effective import Names
from merging.keeping import keepers
from merging.methods import get_method
from merging.recipe import Override
from merging.reports.report import Cell

NOTHING_CHOSEN = "Choose cells first: drag over the map, click a name beside it, or take blocks and modules."
NEVER_BRUSHED = frozenset({"seed", "scope"})
"""Parameters that are one for the whole merge by what they mean."""
MOST_WORDS = 120


@dataclass(frozen=True)
class SetParameter:
    """Give a parameter another value; `model` is one of the recipe's, None means all."""

    parameter: str
    value: Any
    model: str | None = None


@dataclass(frozen=True)
class KeepBase:
    """Copy the base's tensors."""


@dataclass(frozen=True)
class BackToRecipe:
    """Let nothing but the recipe's own parameters hold."""


Action = SetParameter | KeepBase | BackToRecipe


def apply(
    recipe: Recipe,
    chosen: Collection[str],
    names: Sequence[str],
    action: Action,
    problems_of: Callable[[Recipe], Sequence[str]] = lambda recipe: check(recipe).problems,
) -> tuple[Recipe, str]:
    """The recipe with the action done to the chosen tensors of `names`, and a sentence that says what was done.

    Where the result cannot be merged the recipe comes back as it was, with a sentence that says why. Tensors ranked
    together must share a rule; where the action breaks that, `scope` becomes `tensor`.
    """
    wanted = [name for name in names if name in set(chosen)]
    if not wanted:
        return recipe, NOTHING_CHOSEN
    try:
        changed, sentence = _ACTIONS[type(action)](recipe, wanted, names, action)
    except MergingError as error:
        return recipe, f"Nothing changed. {error}"
    if changed == recipe:
        return recipe, sentence
    problems = problems_of(changed)
    if not problems:
        return changed, sentence
    if "scope" in METHODS[recipe.merge_method].parameters() and (before := _scope(recipe)) != "tensor":
        by_tensor = _with_scope(changed, "tensor")
        if not problems_of(by_tensor):
            return by_tensor, (
                f"{sentence} scope is now tensor: with scope {before}, tensors are ranked together and cannot differ in "
                "this."
            )
    return recipe, f"Nothing changed. {' '.join(problems)}"


def tensors_of(cells: Iterable[Cell], names: Sequence[str]) -> list[str]:
    """The tensors that chosen cells (block, module kind) stand for, in their order."""
    wanted = set(cells)
    return [name for name in names if (place := locate(name)) and (place.block, place.kind) in wanted]


def brushable(method: type[Method]) -> list[str]:
    """The parameters a tensor may have for itself: first those that experts have for themselves."""
    fields = method.parameters()
    found = [name for name in fields if name not in NEVER_BRUSHED and not is_sequence(fields[name])]
    own = method.per_model()
    return sorted(found, key=lambda name: name not in own)


def settled(recipe: Recipe) -> tuple[Recipe, str]:
    """The recipe without overrides that its method or its models have no use for, as after a change of method; and a
    sentence that says what was left out, or nothing."""
    method = get_method(recipe.merge_method)
    models = {entry.model for entry in recipe.models}
    kept, gone = [], []
    for override in recipe.overrides:
        known = {
            name: value
            for name, value in override.parameters.items()
            if name in method.parameters() and (override.model is None or name in method.per_model())
        }
        if override.model is not None and override.model not in models:
            known = {}
        gone += [name for name in override.parameters if name not in known]
        kept += [override.model_copy(update={"parameters": known})] if known else []
    if not gone:
        return recipe, ""
    names = ", ".join(dict.fromkeys(gone))
    sentence = f"Left out: {names} for single tensors, which {method.title} with these models does not use."
    return recipe.model_copy(update={"overrides": tuple(kept)}), sentence


def _set_parameter(
    recipe: Recipe, wanted: Sequence[str], names: Sequence[str], action: SetParameter
) -> tuple[Recipe, str]:
    method = get_method(recipe.merge_method)
    value = _checked(method, recipe, action)
    _refuse_kept(recipe, wanted)
    exclude = cut_globs(recipe.exclude, wanted, names)
    new = Override(tensors="*", model=action.model, parameters={action.parameter: value})
    overrides = added(recipe.overrides, new, wanted, names)
    who = ""
    if action.parameter in method.per_model():
        who = f" for {_short(recipe, action.model)}" if action.model is not None else " for all experts"
    sentence = f"{action.parameter} is {words(value)}{who} in {_tensors(wanted, names)}."
    if exclude != recipe.exclude:
        sentence += " What kept the base there is merged again."
    return cleaned(recipe, exclude, overrides, names), sentence


def _keep_base(
    recipe: Recipe, wanted: Sequence[str], names: Sequence[str], action: KeepBase
) -> tuple[Recipe, str]:
    if recipe.base_model is None:
        title = METHODS[recipe.merge_method].title
        raise MergingError(f"{title} merges here without a base, so there is none to keep; give it weight 0.")
    inside = set(wanted)
    if inside <= reached(recipe.exclude, names):
        return recipe, f"The base is kept already in {_tensors(wanted, names)}."
    kept = [glob for glob in recipe.exclude if not inside.issuperset(matching(glob, names))]
    fresh = globs_for(wanted, names)
    whole = globs_for(inside | reached(kept, names), names)
    exclude = tuple(whole) if len(whole) < len(kept) + len(fresh) else (*kept, *fresh)
    refuse_many(len(exclude) - len(kept), "exclude")
    changed = cleaned(recipe, exclude, recipe.overrides, names)
    return changed, f"The base is kept in {_tensors(wanted, names)}."


def _back(
    recipe: Recipe, wanted: Sequence[str], names: Sequence[str], action: BackToRecipe
) -> tuple[Recipe, str]:
    _refuse_kept(recipe, wanted)
    overrides: list[Override] = []
    for override in recipe.overrides:
        globs = cut(override.tensors, wanted, names)
        overrides += [override.model_copy(update={"tensors": glob}) for glob in globs]
    exclude = cut_globs(recipe.exclude, wanted, names)
    changed = cleaned(recipe, exclude, tuple(overrides), names)
    if changed == recipe:
        return recipe, f"The recipe's own values hold already in {_tensors(wanted, names)}."
    sentence = f"The recipe's own values hold again in {_tensors(wanted, names)}."
    usual = default_of(METHODS[recipe.merge_method], "scope", recipe.profile) if _scope(recipe) else None
    if not changed.overrides and _scope(recipe) == "tensor" != usual:
        sentence += f" scope stays tensor; the method's own is {usual}."
    return changed, sentence


def _refuse_kept(recipe: Recipe, wanted: Sequence[str]) -> None:
    """Refuse to change tensors that the recipe's `keep` holds, which names whole modules and blocks."""
    by_keep = recipe.model_copy(update={"exclude": ()})
    held = [name for name in wanted if keepers(by_keep, name)]
    if held:
        raise MergingError(
            f"The recipe's keep holds the base in {len(held)} of these tensors; change it in the form first, under what stays the base's."
        )


_ACTIONS: dict[type, Callable[..., tuple[Recipe, str]]] = {
    SetParameter: _set_parameter,
    KeepBase: _keep_base,
    BackToRecipe: _back,
}


def _checked(method: type[Method], recipe: Recipe, action: SetParameter) -> Any:
    """The value as the recipe holds it.

    Raises:
        MergingError: the method has no such parameter, it is one for the whole merge, or the value is not allowed.
    """
    name, value = action.parameter, tidy(action.value)
    if name not in method.parameters():
        known = ", ".join(brushable(method))
        raise MergingError(f"{method.title} has no parameter '{name}'; it has: {known}.")
    if name not in brushable(method):
        raise MergingError(f"{name} is one value for the whole merge; set it in the form.")
    if action.model is not None and name not in method.per_model():
        raise MergingError(f"{name} is one value for all experts; choose all of them.")
    if action.model is not None and action.model not in {entry.model for entry in recipe.models}:
        raise MergingError("The chosen expert is none of the recipe's models; choose it again.")
    if value is None or not isinstance(value, bool | int | float | str):
        raise MergingError(f"{name} needs a value; type one and set it again.")
    method.configure(recipe.profile, {name: value})
    return value


def _scope(recipe: Recipe) -> str | None:
    """Over what the recipe ranks; None for a method that cannot be told."""
    method = METHODS[recipe.merge_method]
    if "scope" not in method.parameters():
        return None
    given = recipe.scope or recipe.parameters.get("scope", default_of(method, "scope", recipe.profile))
    return given if isinstance(given, str) else "varied"


def _with_scope(recipe: Recipe, scope: str) -> Recipe:
    others = {name: value for name, value in recipe.parameters.items() if name != "scope"}
    return recipe.model_copy(update={"scope": scope, "parameters": others})


def _short(recipe: Recipe, model: str) -> str:
    names = dict(zip((entry.model for entry in recipe.models), expert_names(recipe), strict=True))
    return names.get(model, model)


def _tensors(wanted: Sequence[str], names: Sequence[str]) -> str:
    """`9 tensors (layers 2-4 q, k, v)`."""
    pattern = Names(names).pattern(wanted)
    if len(pattern) > MOST_WORDS:
        pattern = f"{pattern[:MOST_WORDS].rstrip()}…"
    return f"{len(wanted)} tensor{'s' if len(wanted) > 1 else ''} ({pattern})"
