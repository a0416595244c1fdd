"""The Hub commits behind a recipe's models, so that its record names what was merged and not what a branch means later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from merging.hub.cache import cached_commit, cached_model
from merging.recipe import Recipe
from merging.references import Reference, path_exists

NAMING_KEYS = ("model", "base_model", "tokenizer_source", "chat_template", "special_tokens", "source")
"""The keys of a recipe whose value may be the name of a model."""
WORDS = ("base", "union", "auto")
"""Values of the last four of them that name no folder, even where one is called so."""


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
    named = {text: Reference.parse(text, exists) for text in values}
    return {text: str(pinned(one)) for text, one in named.items() if pinned(one) != one}


def names_elsewhere(recipe: Recipe, commits: Mapping[str, str]) -> dict[str, str]:
    """What a recipe's models are called where this machine is not known: Hub models by id and commit, those of folders by
    the folder's name, each by one of its own."""
    found: dict[str, str] = {}
    places: dict[str, Path] = {}

    def named(one: Reference) -> Reference:
        adapter = named(one.adapter) if one.adapter else None
        if one.revision is not None or (one.looks_like_hub and not path_exists(recipe.locate(one.model))):
            return replace(one, adapter=adapter)
        return Reference(own_name(recipe.locate(one.model)), None, adapter)

    def own_name(path: Path) -> str:
        name = folder_name(path)
        for number in count(2):
            if places.setdefault(name, path) == path:
                return name
            name = f"{folder_name(path)}-{number}"
        raise AssertionError("numbers do not end")

    for text in _values(recipe.model_dump(mode="json", exclude_defaults=True)):
        known = commits.get(text, text)
        found[text] = str(named(Reference.parse(known, lambda one: path_exists(recipe.locate(one)))))
    return {text: name for text, name in found.items() if text != name}


def public_recipe(recipe: Recipe, commits: Mapping[str, str]) -> Recipe:
    """A recipe with the names that its models have elsewhere, and with no path of this machine."""
    new = renamed(recipe, names_elsewhere(recipe, commits))
    return new if new.importance is None else new.model_copy(update={"importance": Path(new.importance).name})


def from_anywhere(recipe: Recipe) -> Recipe:
    """A recipe whose models and importance are found from any folder: what lies beside its file, by its whole path."""

    def whole(text: str) -> str:
        if path_exists(Path(text).expanduser()) or not path_exists(place := recipe.locate(text)):
            return text
        return str(place.resolve())

    def named(one: Reference) -> Reference:
        model = one.model if one.revision is not None else whole(one.model)
        return replace(one, model=model, adapter=named(one.adapter) if one.adapter else None)

    values = _values(recipe.model_dump(mode="json", exclude_defaults=True))
    exists = {text: Reference.parse(text, lambda one: path_exists(recipe.locate(one))) for text in values}
    new = renamed(recipe, {text: str(named(one)) for text, one in exists.items()})
    return new if new.importance is None else new.model_copy(update={"importance": whole(new.importance)})


def folder_name(path: Path) -> str:
    """The last part of a path, of a file of weights that of its folder."""
    path = path.parent if path.suffix == ".safetensors" else path
    return path.name if path.name not in ("", "..") else path.resolve().name


def renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """A recipe with other names for its models."""
    if not names:
        return recipe
    new = Recipe.model_validate(_renamed(recipe.model_dump(exclude_defaults=True), names))
    new._folder = recipe._folder
    return new


def _names_model(key: str, value: Any) -> bool:
    if key not in NAMING_KEYS or not isinstance(value, str) or "{" in value:
        return False
    return key in NAMING_KEYS[:2] or value not in WORDS


def _values(content: Any) -> Iterator[str]:
    for key, value in content.items() if isinstance(content, dict) else ():
        if _names_model(key, value):
            yield value
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    for value in inner:
        yield from _values(value)


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    if isinstance(content, dict):
        return {
            key: names.get(value, value) if _names_model(key, value) else _renamed(value, names)
            for key, value in content.items()
        }
    if isinstance(content, (list, tuple)):
        return [_renamed(value, names) for value in content]
    return content
