"""The Hub commits behind a recipe's models, so that its record names what was merged and not what a branch means later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from merging.hub_cache import cached_commit, cached_model
from merging.recipe import Recipe
from merging.references import Reference, path_exists

NAMING_KEYS = ("model", "base_model", "tokenizer_source", "chat_template", "special_tokens", "source")
"""The keys of a recipe whose value may be the name of a model."""


def hub_parts(recipe: Recipe, text: str) -> list[Reference]:
    """What of a recipe's reference is of the Hub and not of this machine: the model, its adapter, both or neither."""
    named: Reference | None = Reference.parse(text, lambda path: path_exists(recipe.locate(path)))
    parts = []
    while named is not None:
        here = named.revision is None and path_exists(recipe.locate(named.model))
        if named.looks_like_hub and not here:
            parts.append(named.alone)
        named = named.adapter
    return parts


def commits_here(recipe: Recipe) -> dict[str, str]:
    """A recipe's references to Hub models that were downloaded, with the commit in place of what it writes."""
    found = {}
    values = _values(recipe.model_dump(mode="json", exclude_defaults=True))
    for text in dict.fromkeys(text for text in values if "{" not in text):
        here = {part: cached_commit(part) for part in hub_parts(recipe, text) if cached_model(part)}
        named = Reference.parse(text, lambda path: path_exists(recipe.locate(path)))
        pinned = str(_pinned(named, here))
        if pinned != text:
            found[text] = pinned
    return found


def renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """A recipe with other names for its models."""
    if not names:
        return recipe
    new = Recipe.model_validate(_renamed(recipe.model_dump(exclude_defaults=True), names))
    new._folder = recipe._folder
    return new


def _pinned(named: Reference, commits: Mapping[Reference, str | None]) -> Reference:
    return replace(
        named,
        revision=commits.get(named.alone) or named.revision,
        adapter=_pinned(named.adapter, commits) if named.adapter else None,
    )


def _values(content: Any) -> Iterator[str]:
    for key, value in content.items() if isinstance(content, dict) else ():
        if key in NAMING_KEYS and isinstance(value, str):
            yield value
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    for value in inner:
        yield from _values(value)


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    if isinstance(content, dict):
        return {
            key: names.get(value, value)
            if key in NAMING_KEYS and isinstance(value, str)
            else _renamed(value, names)
            for key, value in content.items()
        }
    if isinstance(content, (list, tuple)):
        return [_renamed(value, names) for value in content]
    return content
