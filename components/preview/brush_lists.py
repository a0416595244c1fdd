"""The recipe's lists `overrides` and `exclude`, changed for some tensors and for no other. No widgets here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from components.forms import same
from components.preview.brush_globs import globs_for, matching
from merging import MergingError, Recipe
from merging.recipe import Override
from merging.values import covers

Overrides = tuple[Override, ...]
MOST_ENTRIES = 100
"""More entries than this in overrides or exclude are nothing to read; one brush that needs them is refused."""


def added(older: Overrides, new: Override, wanted: Sequence[str], names: Sequence[str]) -> Overrides:
    """The overrides with `new` (its glob does not count) before all others on `wanted`.

    What it hides for good is left out, and overrides that set the same are named together where that is shorter.
    """
    [(parameter, value)] = new.parameters.items()
    reaches = {override.tensors: set(matching(override.tensors, names)) for override in older}
    inside = set(wanted)
    equal = [
        override
        for place, override in enumerate(older)
        if override.model == new.model
        and list(override.parameters) == [parameter]
        and same(override.parameters[parameter], value)
        and not any(
            parameter in earlier.parameters and reaches[earlier.tensors] & reaches[override.tensors]
            for earlier in older[:place]
        )
    ]
    globs = globs_for(inside, names)
    together = inside.union(*(reaches[override.tensors] for override in equal))
    if equal and len(joined := globs_for(together, names)) < len(globs) + len(equal):
        globs, inside = joined, together
        older = tuple(override for override in older if not any(override is one for one in equal))
    refuse_many(len(globs), "overrides")
    rest = _without_hidden(older, reaches, {(new.model, parameter): set(inside)})
    fresh = []
    for glob in globs:
        one = new.model_copy(update={"tensors": glob})
        place = _home(rest, one, reaches)
        if place is None:
            fresh.append(one)
        else:
            host = rest[place]
            rest[place] = host.model_copy(update={"parameters": {**host.parameters, parameter: value}})
    return (*fresh, *rest)


Taken = dict[tuple[str | None, str], set[str]]
"""Tensors that earlier overrides decide for good, by model (None: all of them) and parameter."""


def _without_hidden(
    overrides: Iterable[Override], reaches: dict[str, set[str]], taken: Taken
) -> list[Override]:
    """The overrides without the parameters for which earlier ones leave them no tensor; names unknown here stay."""
    kept = []
    for override in overrides:
        reach, left = reaches[override.tensors], {}
        for name, value in override.parameters.items():
            hidden = taken.get((None, name), set()) | taken.get((override.model, name), set())
            if not reach or not reach <= hidden:
                left[name] = value
                if covers(value):
                    taken.setdefault((override.model, name), set()).update(reach)
        if left == override.parameters:
            kept.append(override)
        elif left:
            kept.append(override.model_copy(update={"parameters": left}))
    return kept


def _home(rest: Sequence[Override], new: Override, reaches: dict[str, set[str]]) -> int | None:
    """The place of an override of the same tensors and model that may hold the new parameter too: nothing before it
    sets that for any of these tensors."""
    [parameter] = new.parameters
    for place, override in enumerate(rest):
        if override.tensors == new.tensors and override.model == new.model:
            return place if parameter not in override.parameters else None
        if parameter in override.parameters and reaches[override.tensors] & reaches.get(new.tensors, set()):
            return None
    return None


def cut(glob: str, without: Collection[str], names: Sequence[str]) -> list[str]:
    """Globs for what a glob matches but for some names; the glob itself where that is no difference.

    Raises:
        MergingError: it would take too many.
    """
    reach = matching(glob, names)
    left = set(reach).difference(without)
    if len(left) == len(reach):
        return [glob]
    globs = globs_for(left, names)
    if len(globs) > MOST_ENTRIES:
        raise MergingError(
            f"'{glob}' covers {len(left)} tensors more than the chosen ones and would become {len(globs)} entries; "
            "change it in the YAML."
        )
    return globs


def cut_globs(globs: Iterable[str], without: Collection[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(left for glob in globs for left in cut(glob, without, names)))


def cleaned(recipe: Recipe, exclude: Sequence[str], overrides: Overrides, names: Sequence[str]) -> Recipe:
    """The recipe with these lists, less the overrides that no merged tensor is left to."""
    copied = reached(exclude, names)
    reaches = {override.tensors: set(matching(override.tensors, names)) for override in overrides}
    seen = _without_hidden(overrides, reaches, {})
    used = [one for one in seen if not (reach := reaches[one.tensors]) or not reach <= copied]
    return recipe.model_copy(update={"exclude": tuple(exclude), "overrides": tuple(used)})


def reached(globs: Iterable[str], names: Sequence[str]) -> set[str]:
    return {name for glob in globs for name in matching(glob, names)}


def refuse_many(entries: int, where: str) -> None:
    if entries > MOST_ENTRIES:
        raise MergingError(
            f"These tensors would take {entries} entries under {where}; choose whole blocks or whole modules."
        )
