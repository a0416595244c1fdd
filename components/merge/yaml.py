"""A recipe that somebody wrote, made sure of before the page takes it."""

from __future__ import annotations

from pathlib import Path

from components.family import Family
from components.importance.job import is_kept
from components.merge.recipe import check, number_of, place_of, reference, to_form, to_recipe
from components.models.words import KEYS, TEMPLATE
from components.server.settings import ROOT
from merging import METHODS, MergingError, Recipe
from merging.methods import get_method
from merging.recipe import ModelEntry

MAX_YAML = 64_000
NOT_MEASURED = "importance: missing"
"""A problem that the page can solve by itself."""


def from_yaml(text: str, family: Family) -> tuple[Recipe | None, list[str]]:
    """A recipe somebody wrote, over the family's models, or a sentence for each thing that is wrong with it."""
    if len(text) > MAX_YAML:
        return None, [
            f"a recipe of more than {MAX_YAML:,} characters is not read here; use the command line."
        ]
    recipe, problems = Recipe.parse(text, folder=ROOT)
    if recipe is None:
        return None, problems
    recipe, foreign = _known_words(recipe, family)
    problems += foreign
    if recipe.slices:
        return None, [*problems, "slices: this page merges whole models; use the command line for slices."]
    if recipe.importance is not None and not is_kept(recipe.importance):
        problems.append(
            "importance: files are not read by this page; leave the line out and measure importance under Inspect."
        )
        recipe = recipe.model_copy(update={"importance": None})
    recipe, foreign = _of_family(recipe, family)
    problems += foreign
    try:
        get_method(recipe.merge_method)
    except MergingError as error:
        return None, [*problems, str(error)]
    wrong = [line for line in check(recipe, earlier=problems).problems if not line.startswith(NOT_MEASURED)]
    if wrong:
        return None, wrong
    return to_recipe(recipe, family, to_form(recipe, family)[0]), []


def _known_words(recipe: Recipe, family: Family) -> tuple[Recipe, list[str]]:
    """The recipe without tokenizers and templates from elsewhere, which are never opened, and a problem for each of them."""
    models = (family.base, *family.experts)
    known = {"base", "union", "auto", *models, *map(reference, models)}
    named = {key: getattr(recipe, key) for key in KEYS}
    if recipe.tokenizer is not None:
        named["tokenizer"] = recipe.tokenizer.source
    foreign = [key for key, value in named.items() if value is not None and value not in known]
    problems = [
        f"{key}: templates are not taken from this page, only those of the chosen models; set it with the command line."
        if key == TEMPLATE and "{" in named[key]
        else f"{key}: '{named[key][:200]}' is none of the chosen models. Choose it under Models first."
        for key in foreign
    ]
    return recipe.model_copy(update=dict.fromkeys(foreign)), problems


def _of_family(recipe: Recipe, family: Family) -> tuple[Recipe, list[str]]:
    """The recipe without models from elsewhere, which are never opened, and a problem for each of them."""
    problems, entries, seen = [], [], set()
    known = ", ".join(reference(model) for model in (family.base, *family.experts))
    remedy = f"Choose it under Models first. Chosen now: {known}."
    base_counts = recipe.merge_method in METHODS and not METHODS[recipe.merge_method].takes_base
    for entry in recipe.models:
        place = place_of(recipe, entry.model)
        if place is not None and place == Path(family.base).resolve():
            entries += [entry] if base_counts else []
        elif number_of(entry.model, recipe, family) is None:
            problems.append(f"models: '{entry.model}' is none of the chosen models. {remedy}")
        elif place in seen:
            problems.append(f"models: '{entry.model}' is listed twice.")
        else:
            entries.append(entry)
        seen.add(place)
    base = recipe.base_model
    if base is not None and place_of(recipe, base) != Path(family.base).resolve():
        problems.append(f"base_model: '{base}' is not the chosen base. {remedy}")
        base = reference(family.base)
    for key, name in recipe.vocabulary_models():
        if place_of(recipe, name) != Path(family.base).resolve() and number_of(name, recipe, family) is None:
            problems.append(f"{key}: '{name}' is none of the chosen models. {remedy}")
            recipe = recipe.model_copy(
                update=dict.fromkeys(("tokenizer_source", "tokenizer", "special_tokens", "chat_template"))
            )
    if problems and not entries:
        entries = [ModelEntry(model=reference(expert)) for expert in family.experts[:1]]
    return recipe.model_copy(update={"models": tuple(entries), "base_model": base}), problems
