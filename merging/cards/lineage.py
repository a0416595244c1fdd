"""Where a model comes from: what it was merged of, what those were merged of, and so on, as merges write it down.

Each merge keeps the lineage of its parents in the metadata of its weights, so no grandparent has to be there still, and
none is looked for: a path in somebody's file is only a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from merging.cards.licences import OF_THE_PARENTS, Licensed, licence_notes, stated
from merging.checkpoint import Checkpoint, TensorSource
from merging.hub.pinning import names_elsewhere
from merging.methods import METHODS
from merging.recipe import Recipe
from merging.references import is_hub_id

if TYPE_CHECKING:
    from merging.plan import Plan

LINEAGE = "mergescope_lineage"
"""The key of a merge's lineage in the metadata of its weights."""
MOST_STAGES = 8
"""Generations that are kept."""
MOST_MODELS = 60
"""Models in one lineage; more, and the oldest generations are left out."""
MOST_LICENCES = 4
"""Licences of one model."""
MOST_LETTERS = 200
"""Letters of a model's name."""
MOST_TEXT = 100_000
"""Letters of a lineage in a file; what is longer was not written here."""


@dataclass(frozen=True)
class Ancestor:
    """A model of a lineage: `name` as the merge's recipe had it, without what tells of a machine; `method` empty where it
    was not merged here; `licences` as its card stated them when it was merged."""

    name: str
    is_base: bool = False
    method: str = ""
    parents: tuple[Ancestor, ...] = ()
    licences: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The method as people call it."""
        return METHODS[self.method].title if self.method in METHODS else self.method


def lineage_of_plan(plan: Plan) -> Ancestor:
    """The lineage of a plan's output, as far as its parents' files tell."""
    named = list(zip(plan.names, plan.experts, strict=True))
    parents = [lineage_of_model(source, plan.elsewhere.get(name, name)) for name, source in named]
    if plan.base is not None and all(source is not plan.base for _, source in named):
        base = lineage_of_model(plan.base, plan.public.base_model or plan.base.label)
        parents.insert(0, replace(base, is_base=True))
    return _bounded(Ancestor("", method=plan.recipe.merge_method, parents=tuple(parents)))


def lineage_of_model(model: TensorSource, name: str = "") -> Ancestor:
    """The lineage that a model's weights carry; a model that was not merged here has no parents."""
    licences = model.origin.licences if isinstance(model, Checkpoint) else ()
    known = Ancestor(_line(name or model.label), licences=licences[:MOST_LICENCES])
    metadata = model.metadata if isinstance(model, Checkpoint) else {}
    text = metadata.get(LINEAGE, "")
    try:
        content = json.loads(text) if 0 < len(text) <= MOST_TEXT else None
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, Mapping):
        found = _read(content, MOST_STAGES)
    elif "mergescope_version" in metadata:  # an earlier version of ours kept the recipe alone
        found = _of_recipe(metadata.get("recipe", "")[:MOST_TEXT])
    else:
        return known
    return replace(known, method=found.method, parents=found.parents)


def to_text(one: Ancestor) -> str:
    """The lineage as the metadata of a file holds it."""
    return json.dumps(_written(one))


def in_words(one: Ancestor) -> str:
    """`TIES of math and slerp-3f9a1c (SLERP of code over words) over base`; empty for a model without parents."""
    experts = [_named(parent) for parent in one.parents if not parent.is_base]
    bases = [_named(parent) for parent in one.parents if parent.is_base]
    listed = ", ".join(experts[:-1]) + (" and " if len(experts) > 1 else "") + experts[-1] if experts else ""
    over = f"over {bases[0]}" if bases else ""
    of = f"of {listed}" if listed else ""
    return " ".join(part for part in (one.title, of, over) if part) if one.parents else ""


def _named(one: Ancestor) -> str:
    words = in_words(one)
    return f"{short(one.name)} ({words})" if words else short(one.name)


def short(name: str) -> str:
    """The last part of a path, or a Hub id with the first letters of its commit."""
    return nameless_path(re.sub(r"@([0-9a-f]{7})[0-9a-f]{33}\b", r"@\1", name))


def nameless_path(name: str) -> str:
    """A model's name without the folders that it lies in."""
    parts = name.split("+")
    found = [
        part.rstrip("/").rpartition("/")[2]
        if part.startswith(("/", ".", "~")) or part.partition("@")[0].count("/") > 1
        else part
        for part in parts
    ]
    return "+".join(found)


def licensed(one: Ancestor) -> list[Licensed]:
    """The models that a merge was made of in the end, with their licences; and a merge among them that states another
    licence than those do."""
    found = []
    for parent in one.parents:
        inner = [Licensed(f"{each.name} in {short(parent.name)}", each.licences) for each in licensed(parent)]
        known = {OF_THE_PARENTS, *(licence for each in inner for licence in each.licences)}
        if not inner or set(parent.licences) - known:
            found.append(Licensed(short(parent.name), parent.licences))
        found += inner
    return found


def licence_cautions(
    recipe: Recipe, base: TensorSource | None, experts: Mapping[str, TensorSource]
) -> list[str]:
    """What is to be said of the licences of a recipe's models before they are merged; nothing where all are folders of this
    machine that state none, which only the card of the merge says."""
    names = names_elsewhere(recipe, {})
    models = [(names.get(name, name), source) for name, source in experts.items()]
    if base is not None and all(source is not base for source in experts.values()):
        models.insert(0, (names.get(recipe.base_model or "", recipe.base_model or base.label), base))
    parents = licensed(Ancestor("", parents=tuple(lineage_of_model(source, name) for name, source in models)))
    if not any(one.known or is_hub_id(one.name.partition("@")[0]) for one in parents):
        return []
    return licence_notes(parents)


def _written(one: Ancestor) -> dict[str, Any]:
    kept = {
        "name": nameless_path(one.name),
        "base": one.is_base,
        "method": one.method,
        "licences": [*one.licences],
    }
    return {key: value for key, value in kept.items() if value} | (
        {"parents": [_written(parent) for parent in one.parents]} if one.parents else {}
    )


def _read(content: Mapping[str, Any], stages: int) -> Ancestor:
    """What a file says, which may be anything."""
    listed = content.get("parents")
    parents = listed if isinstance(listed, list) and stages else []
    return Ancestor(
        name=_line(content.get("name")),
        is_base=content.get("base") is True,
        method=_line(content.get("method")),
        licences=stated({"license": content.get("licences")})[:MOST_LICENCES],
        parents=tuple(
            _read(parent, stages - 1) for parent in parents[:MOST_MODELS] if isinstance(parent, Mapping)
        ),
    )


def _of_recipe(text: str) -> Ancestor:
    recipe, _ = Recipe.parse(text)
    if recipe is None:
        return Ancestor("")
    base = [Ancestor(_line(recipe.base_model), is_base=True)] if recipe.base_model else []
    models = [entry.model for entry in recipe.models] or [
        source.model for part in recipe.slices for source in part.sources
    ]
    experts = [Ancestor(_line(name)) for name in dict.fromkeys(models) if name != recipe.base_model]
    return Ancestor("", method=_line(recipe.merge_method), parents=(*base, *experts[:MOST_MODELS]))


def _bounded(one: Ancestor) -> Ancestor:
    """As many whole generations as fit into the bounds, the parents at least."""
    stages = MOST_STAGES
    while stages > 1 and _count(_cut(one, stages)) > MOST_MODELS:
        stages -= 1
    return _cut(one, stages)


def _cut(one: Ancestor, stages: int) -> Ancestor:
    parents: Sequence[Ancestor] = one.parents if stages else ()
    return replace(one, parents=tuple(_cut(parent, stages - 1) for parent in parents))


def _count(one: Ancestor) -> int:
    return 1 + sum(_count(parent) for parent in one.parents)


def _line(text: object) -> str:
    """One line of what should be a name."""
    return " ".join(text[: 10 * MOST_LETTERS].split())[:MOST_LETTERS] if isinstance(text, str) else ""
