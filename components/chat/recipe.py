"""The recipe of the Merge tab as one more model to ask: merged in memory when a question needs it, and never written."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from functools import partial

from components.family import Family
from components.forms import default_of
from components.merge.recipe import at_root, check, title
from components.preview.store import preview_key, shared_previews
from components.server.backend import model_cache
from components.server.process import kept
from components.server.settings import Settings
from merging import METHODS, Checkpoint, MergingError, Plan, Recipe
from merging.answering.abilities import why_silent
from merging.answering.model_cache import ModelCache, bytes_to_run
from merging.inference import LoadedModel
from merging.memory.resident import sources_of
from merging.memory.unsaved import load_unsaved
from merging.memory.whatif import Residents

RECIPE = "recipe:"
"""Its key in a column. It names no recipe: whoever asks gets the one of the own page."""
LABEL = "the recipe as it stands (not saved)"
MAIN = ("density", "ratio", "t", "select_topk", "lambda", "weight")
"""The parameter that says most of a recipe: the first of these that its method has."""
GONE = (
    "The models of the recipe changed or went away while they were read. Look under Models, then ask again."
)


def can_be_asked(recipe: Recipe) -> bool:
    """Whether a recipe can run, over models that write and fit into memory."""
    plan = check(recipe).plan
    if plan is None or (isinstance(plan.reference, Checkpoint) and why_silent(plan.reference.config)):
        return False
    return shared_previews().residents.fits(plan)


def summary(recipe: Recipe, family: Family) -> str:
    """What a recipe is, in a line: method, main parameter, all that it sets, and the experts."""
    method = METHODS[recipe.merge_method]
    main = next((name for name in MAIN if name in method.parameters()), None)
    if main is not None and not any(main in entry.parameters for entry in recipe.models):
        parameters = {main: default_of(method, main, recipe.profile), **recipe.parameters}
        recipe = at_root(recipe.model_copy(update={"parameters": parameters}))
    return title(recipe, family)


def recipe_bytes(recipe: Recipe, device: str) -> int:
    """Bytes that the merge of a recipe takes while it answers; 0 where it cannot run."""
    plan = check(recipe).plan
    return _bytes_to_run(plan, device) if plan is not None else 0


def _bytes_to_run(plan: Plan, device: str) -> int:
    return bytes_to_run({tensor.info.name: tensor.info for tensor in plan.tensors}, device)


class PageMerges:
    """The merged model of every page that asks its recipe: one each at most, in the cache of all models. Pages with one
    recipe share it."""

    def __init__(self, models: ModelCache, residents: Residents):
        self._models, self._residents = models, residents
        self._keys: dict[str, Hashable] = {}
        self._lock = threading.Lock()

    def enter(self, page: str) -> None:
        """From now on a page's model is kept, until it is left."""
        with self._lock:
            self._keys.setdefault(page, None)

    def leave(self, page: str) -> None:
        """Free a page's model: no column asks it any more, or the page is closed."""
        with self._lock:
            self._let_go(self._keys.pop(page, None))

    def model(self, page: str, recipe: Recipe, device: str) -> LoadedModel:
        """The merge of a page's recipe; an earlier one of the page makes room for it.

        Raises:
            MergingError: the recipe cannot run, its models do not fit into memory, or they make no model.
        """
        try:
            plan = _plan(recipe)
            key = _key(plan, device)
            self._keep(page, key)
            nbytes = _bytes_to_run(plan, device)
            model = self._models.kept(
                key, partial(load_unsaved, plan, self._residents, device), nbytes, device
            )
        except OSError:
            raise MergingError(GONE) from None
        with self._lock:
            self._let_go(key)  # where the page was left meanwhile
        return model

    def _keep(self, page: str, key: Hashable) -> None:
        with self._lock:
            if page in self._keys:
                before, self._keys[page] = self._keys[page], key
                self._let_go(before)

    def _let_go(self, key: Hashable) -> None:
        """Forget a model unless a page has it."""
        if key not in self._keys.values():
            self._models.forget(key)


def page_merges(settings: Settings) -> PageMerges:
    """The merged models of all pages of this process."""
    return _of(model_cache(settings))


@kept
def _of(models: ModelCache) -> PageMerges:
    return PageMerges(models, shared_previews().residents)


def _plan(recipe: Recipe) -> Plan:
    checked = check(recipe)
    if checked.plan is None:
        first, *others = checked.problems
        more = f" Merge lists {len(others)} more." if others else ""
        raise MergingError(f"This recipe cannot run: {first}{more}")
    return checked.plan


def _key(plan: Plan, device: str) -> Hashable:
    """What a merged model depends on: recipe and weights, and the files around them, such as config and tokenizer."""
    folders = {
        folder for source in sources_of(plan) if isinstance(source, Checkpoint) for folder in source.folders
    }
    found = [file for folder in folders for file in folder.iterdir() if file.is_file()]
    states = [(str(file), file.stat()) for file in found]
    files = sorted((name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states)
    return "recipe", preview_key(plan), tuple(files), device
