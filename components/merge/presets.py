"""Published values and profiles: what they change in a recipe, and what speaks against a recipe's values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from components.family import Family
from components.forms import default_of, same, tidy
from components.merge.recipe import at_root, expert_names, number_of
from merging import METHODS, Plan, Recipe, Report
from merging.inspecting.relations import Relations
from merging.methods.sparse import Trim
from merging.recipe import ModelEntry


def with_preset(recipe: Recipe, preset: str | None = None) -> Recipe:
    """The recipe with every parameter at its paper's value; `preset` names one of the method's other published values."""
    method = METHODS[recipe.merge_method]
    published = {
        name: [tidy(one) for one in value] if isinstance(value, tuple) else tidy(value)
        for name, value in method.presets.get(preset or "", {}).items()
    }
    entries = tuple(ModelEntry(model=entry.model) for entry in recipe.models)
    update = {"models": entries, "parameters": published, "profile": "paper", "scope": None, "overrides": ()}
    return at_root(recipe.model_copy(update=update))


def profile_changes(recipe: Recipe, profile: str) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """What another profile changes, parameter -> (value before, value after), and the parameters that stay as set."""
    method = METHODS[recipe.merge_method]
    set_here = {*recipe.parameters, *(name for entry in recipe.models for name in entry.parameters)}
    set_here |= {"scope"} if recipe.scope else set()
    before, after = (
        {name: default_of(method, name, each) for name in method.parameters()}
        for each in (recipe.profile, profile)
    )
    differ = [name for name in before if not same(before[name], after[name])]
    return {n: (before[n], after[n]) for n in differ if n not in set_here}, [
        n for n in differ if n in set_here
    ]


def advice(plan: Plan | None, family: Family, report: Report | None) -> list[str]:
    """What speaks against a merge that could run, a sentence each: from its values, and from an inspection of the family
    where there is one."""
    if plan is None:
        return []
    names = expert_names(plan.recipe)
    numbers = [number_of(model, plan.recipe, family) for model in plan.names]
    if len(names) != len(numbers) or None in numbers:
        return []
    total = report.total if report is not None else None
    relations = measured(report, [n for n in numbers if n is not None]) if report is not None else None
    changes = relations.changes if relations is not None else [0.0] * len(names)
    found = broken(plan, report, [n for n in numbers if n is not None]) if report is not None else []
    found += relations.remarks(names) if relations is not None else []
    for method in dict.fromkeys(tensor.method for tensor in plan.tensors if tensor.method is not None):
        found += method.cautions(changes, names)
        if total is not None and isinstance(method, Trim):
            shares = [total.changed_share(n) or 0.0 for n in numbers if n is not None]
            found += _unattainable(method, names, shares)
    return list(dict.fromkeys(found))


def broken(plan: Plan, report: Report, experts: Sequence[int]) -> list[str]:
    """Which models hold NaN or infinite values where the plan reads them: each of them ends the merge."""
    merged = {tensor.info.name for tensor in plan.tensors if tensor.method is not None}
    read = {tensor.info.name for tensor in plan.tensors}
    models = [("The base", 0, read)] if plan.recipe.base_model is not None else []
    models += [(name, 1 + n, merged) for name, n in zip(expert_names(plan.recipe), experts, strict=True)]
    found = []
    for model, place, names in models:
        counts = {
            name: count[place] for name, count in report.broken.items() if name in names and count[place]
        }
        if not counts:
            continue
        values, where = sum(counts.values()), next(iter(counts))
        others = f" and {len(counts) - 1} more tensors" if len(counts) > 1 else ""
        remedy = ", leave it out, or keep the base in these cells (brush them on the map)" if place else ""
        found.append(
            f"{model} holds {values:,} NaN or infinite value{'s' if values > 1 else ''} in {where}{others}, so this merge "
            f"would fail. Use an intact copy of it{remedy}."
        )
    return found


def measured(report: Report, experts: Sequence[int]) -> Relations:
    """The relations of some experts of a report; how their changes lie to the base itself was not measured."""
    total = report.total
    products = np.zeros((1 + len(report.experts), 1 + len(report.experts)))
    products[0, 0] = total.base
    for expert, change in enumerate(total.change):
        products[1 + expert, 1 + expert] = change
    for (a, b), dot in zip(report.pairs, total.dot, strict=True):
        products[1 + a, 1 + b] = products[1 + b, 1 + a] = dot
    rows = [0, *(1 + expert for expert in experts)]
    relations = Relations(len(experts))
    relations.products = products[rows][:, rows]
    inner = relations.products[1:, 1:]
    relations.equal = {(a, b) for a, b in relations.equal if inner[a, a] == inner[b, b] == inner[a, b]}
    return relations


def _unattainable(method: Trim, names: Sequence[str], changed: Sequence[float]) -> list[str]:
    densities = method.for_experts("density", len(names))
    return [
        f"{name} changed only {share:.1%} of the weights, so density {density:g} cannot be attained: the rest of what is "
        "kept are zeros."
        for name, density, share in zip(names, densities, changed, strict=True)
        if share < density < 1
    ]
