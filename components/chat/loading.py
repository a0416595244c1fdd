"""How the models of the columns are got, and which of them may be in memory at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.chat.models import NOBODY, Visit, choices, locate
from components.chat.recipe import RECIPE, page_merges, recipe_bytes, summary
from components.server.backend import job_store, model_cache
from merging import MergingError
from merging.answering.model_cache import bytes_to_run, in_rounds
from merging.devices import resolve_device
from merging.folders.room import bytes_text
from merging.inference import LoadedModel
from merging.sources import open_model

GONE = "This model is no longer there. Choose another."


@dataclass(frozen=True)
class Asked:
    """The model of a column: how to get it, here or in a worker, the bytes it will take, and what the page and a record call
    it.

    `recipe` is what it was merged by, as YAML; `about` says which model it is where its column does not.
    """

    load: Callable[[], LoadedModel]
    key: str
    nbytes: int
    name: str
    recipe: str = ""
    about: str = ""


@dataclass(frozen=True)
class Turns:
    """The columns in rounds of models that fit into memory together; `reason` says why there are several, or is empty."""

    rounds: tuple[tuple[int, ...], ...]
    reason: str = ""


def asked_models(visit: Visit, keys: Sequence[str]) -> dict[int, Asked]:
    """The model of every column that names one; one that is gone says so when it is loaded."""
    device = str(resolve_device(visit.settings.device))
    store = job_store(visit.settings)
    names = {key: name for name, key in choices(store, visit.owner, visit.family)}

    def model(key: str) -> Asked:
        if key == RECIPE:
            return _recipe(visit, device)
        folder = locate(store, visit.owner, visit.family, key)
        job = store.get(visit.owner, key.partition(":")[2]) if key.startswith("job:") else None
        recipe = (job.recipe if job is not None else None) or ""
        load = partial(_load, visit, folder)
        return Asked(load, key, _bytes_of(folder, device), names.get(key, "a model that is gone"), recipe)

    return {column: model(key) for column, key in enumerate(keys) if key != NOBODY}


def _recipe(visit: Visit, device: str) -> Asked:
    page_merges(visit.settings).enter(visit.session)
    about = summary(visit.recipe, visit.family)
    size = recipe_bytes(visit.recipe, device)
    return Asked(partial(_merge, visit), RECIPE, size, f"{about} (not saved)", visit.recipe.to_yaml(), about)


def _load(visit: Visit, folder: Path | None) -> LoadedModel:
    if folder is None:
        raise MergingError(GONE)
    return model_cache(visit.settings).get(folder, str(resolve_device(visit.settings.device)))


def _merge(visit: Visit) -> LoadedModel:
    device = str(resolve_device(visit.settings.device))
    return page_merges(visit.settings).model(visit.session, visit.recipe, device)


def _bytes_of(folder: Path | None, device: str) -> int:
    """Bytes that a folder's model will take; 0 where it cannot be opened, which its loading will tell."""
    try:
        return bytes_to_run(open_model(str(folder)).tensors, device) if folder is not None else 0
    except MergingError:
        return 0


def take_turns(visit: Visit, models: Mapping[int, Asked]) -> Turns:
    """Who answers with whom: all at once where their weights fit into memory together."""
    room = model_cache(visit.settings).room(str(resolve_device(visit.settings.device)))
    columns = list(models)
    places = in_rounds([(models[column].key, models[column].nbytes) for column in columns], room)
    rounds = tuple(tuple(columns[place] for place in places) for places in places)
    if len(rounds) < 2:
        return Turns(rounds)
    together = sum({model.key: model.nbytes for model in models.values()}.values())
    return Turns(
        rounds,
        f"one after another: the models take {bytes_text(together)} together, and there is room for {bytes_text(room)}",
    )
