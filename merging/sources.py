"""From the model references of a recipe to open models."""

from __future__ import annotations

from pathlib import Path

from merging.checkpoint import Checkpoint, TensorSource
from merging.errors import CheckpointError
from merging.methods import METHODS
from merging.recipe import ModelEntry, Recipe, path_exists


def open_models(
    recipe: Recipe, problems: list[str]
) -> tuple[Checkpoint | None, list[tuple[ModelEntry, TensorSource]]]:
    """Base and experts that could be opened; each other one leaves a problem. The base among `models` is dropped
    where a method works on changes from it, and counts as a model for one that needs no base."""
    opened: dict[str, Checkpoint | None] = {}

    def open_model(reference: str) -> Checkpoint | None:
        if reference not in opened:
            opened[reference] = None
            try:
                opened[reference] = _open(recipe, reference)
            except CheckpointError as error:
                problems.append(str(error))
        return opened[reference]

    base = open_model(recipe.base_model) if recipe.base_model is not None else None
    keep_base = recipe.merge_method in METHODS and not METHODS[recipe.merge_method].needs_base
    experts: list[tuple[ModelEntry, TensorSource]] = []
    seen: list[Path] = []
    for entry in recipe.models:
        source = open_model(entry.model)
        if source is None or (base is not None and not keep_base and _same(source.path, base.path)):
            continue
        if any(_same(source.path, path) for path in seen):
            problems.append(
                f"models: {entry.model} is listed twice; list it once with the sum of the weights."
            )
        seen.append(source.path)
        experts.append((entry, source))
    counts = keep_base and recipe.profile == "mergekit" and "weight" in recipe.parameters
    if counts and base is not None and recipe.base_model and not any(_same(base.path, path) for path in seen):
        experts.append((ModelEntry(model=recipe.base_model), base))
    return base, experts


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _open(recipe: Recipe, reference: str) -> Checkpoint:
    path = recipe.locate(reference)
    if not path_exists(path):
        model, _, adapter = reference.partition("+")
        if adapter and path_exists(recipe.locate(model)):
            raise CheckpointError(
                f"{reference}: adapters ('+{adapter}') are not supported yet; merge it into its base first."
            )
        if model.partition("@")[0].count("/") == 1 and not model.startswith((".", "~", "/")):
            raise CheckpointError(
                f"{reference}: there is no such folder here. If it is a Hub model, download it first: "
                f"hf download {model.partition('@')[0]} --local-dir FOLDER, and name that folder."
            )
    return Checkpoint.open(path)
