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


def commits_here(recipe: Recipe) -> dict[str, str]:
    """A recipe's references to Hub models that were downloaded, with the commit in place of what it writes."""

    def exists(text: str) -> bool:
        return path_exists(recipe.locate(text))

    def pinned(named: Reference) -> Reference:
        own, adapter = named.alone, pinned(named.adapter) if named.adapter else None
        local = named.revision is None and exists(named.model)
        if named.looks_like_hub and not local and cached_model(own) is not None:
            own = replace(own, revision=cached_commit(own))
        return replace(own, adapter=adapter)

    values = _values(recipe.model_dump(mode="json", exclude_defaults=True))
    named = {text: Reference.parse(text, exists) for text in values if "{" not in text}
    return {text: str(pinned(one)) for text, one in named.items() if pinned(one) != one}


def renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """A recipe with other names for its models."""
    if not names:
        return recipe
    new = Recipe.model_validate(_renamed(recipe.model_dump(exclude_defaults=True), names))
    new._folder = recipe._folder
    return new


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
