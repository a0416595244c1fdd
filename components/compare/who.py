"""Who is measured: the parents of a family, the recipe as it stands, and finished merges."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import merging
from components.chat.models import unable
from components.chat.recipe import LABEL, RECIPE, summary
from components.compare.job import Subject
from components.family import Family
from components.merge.cards import KIND as MERGE
from components.merge.cards import fits
from components.merge.recipe import at_root, check
from components.preview.store import shared_previews
from components.server.backend import job_store, model_cache, run_history
from components.server.kept_bytes import require_room
from components.server.settings import Settings
from components.server.zero_gpu import size_of
from merging import MergingError, Recipe
from merging.devices import resolve_device
from merging.inference import LoadedModel
from merging.job_records import Job
from merging.judging.history import Draft, Run, subject_of_model, subject_of_plan
from merging.memory.unsaved import load_unsaved
from merging.plan import make_plan
from merging.sources import open_model

MOST_MERGES = 12
"""Finished merges that are offered, the newest ones."""
JOB = "job:"
STANDING = LABEL[:1].upper() + LABEL[1:]


def merged(settings: Settings, owner: str, family: Family) -> list[Job]:
    """This owner's finished merges of a family, the newest first."""
    store = job_store(settings)
    return [
        job
        for job in store.list(owner)
        if job.kind == MERGE
        and job.state == "done"
        and fits(job, family)
        and store.model(owner, job.id) is not None
    ]


def candidates(settings: Settings, owner: str, family: Family, recipe: Recipe) -> list[tuple[str, str]]:
    """Label and key of all that can be measured beside the parents; the recipe only where it can run. Nothing where the
    family does not write."""
    if unable(family.base):
        return []
    found = [(STANDING, RECIPE)] if check(recipe).plan is not None else []
    for job in merged(settings, owner, family)[:MOST_MERGES]:
        when = time.strftime("%d %b %H:%M", time.localtime(job.created))
        found.append((f"{job.title} ({when})", JOB + job.id))
    return found


def parents(settings: Settings, family: Family) -> list[Subject]:
    """The base and all experts of a family.

    Raises:
        MergingError: there is no expert, the models do not write, or one of them cannot be opened.
    """
    if not family.experts:
        raise MergingError("There is no expert yet. Choose a base and an expert on the Models tab.")
    if reason := unable(family.base):
        raise MergingError(reason)
    named = ((family.base_name, family.base), *zip(family.names, family.experts, strict=True))
    return [_parent(settings, name, folder) for name, folder in named]


def _parent(settings: Settings, name: str, model: str) -> Subject:
    opened = open_model(model)
    load = partial(_saved, settings, Path(model))
    return Subject(subject_of_model(opened), name, load, parameters=opened.parameters)


def wanted(settings: Settings, owner: str, family: Family, recipe: Recipe, keys: Any) -> list[Subject]:
    """The recipe and the merges that keys name, in the order of `candidates`.

    Raises:
        MergingError: the recipe is among them and cannot run.
    """
    asked = [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
    found = [_recipe(settings, owner, family, recipe)] if RECIPE in asked else []
    for job in merged(settings, owner, family):
        if JOB + job.id in asked:
            found.append(_merge(settings, owner, job))
    return list({subject.key: subject for subject in found}.values())


def _recipe(settings: Settings, owner: str, family: Family, recipe: Recipe) -> Subject:
    checked = check(recipe)
    if checked.plan is None:
        raise MergingError(f"The recipe under Merge cannot run: {' '.join(checked.problems)}")
    plan = checked.plan
    name = summary(recipe, family)
    record = partial(_record, settings, owner, Draft.of(plan, title=name))
    parameters = size_of(plan).parameters
    return Subject(subject_of_plan(plan), name, partial(_unsaved, settings, recipe), record, parameters)


def _record(settings: Settings, owner: str, draft: Draft) -> Run | None:
    """Make a merge a run, unless it is one."""
    history = run_history(settings)
    if any(run.subject == draft.subject for run in history.list(owner)):
        return None
    return history.add(owner, draft)


def _merge(settings: Settings, owner: str, job: Job) -> Subject:
    """A finished merge; one that is no run yet becomes one when it is measured."""
    folder = job_store(settings).model(owner, job.id)
    if folder is None:
        raise MergingError(f"{job.title}: the merged model is no longer there. Merge again.")
    model = open_model(str(folder))
    key = subject_of_model(model)
    record = partial(_record_merge, settings, owner, job, key)
    return Subject(key, job.title, partial(_saved, settings, folder), record, model.parameters)


def _record_merge(settings: Settings, owner: str, job: Job, key: str) -> Run | None:
    plan = check(at_root(Recipe.from_yaml(job.recipe or ""))).plan
    if plan is None:
        return None
    draft = Draft(
        recipe=plan.recipe.to_yaml(),
        models=Draft.of(plan).models,
        subject=key,
        title=job.title,
        seconds=(job.result or {}).get("seconds"),
        job=job.id,
    )
    return _record(settings, owner, draft)


def _saved(settings: Settings, folder: Path, scratch: Path) -> LoadedModel:
    """A model of a folder, kept in memory with those of the chat."""
    return model_cache(settings).get(folder, str(resolve_device(settings.device)))


def _unsaved(settings: Settings, recipe: Recipe, scratch: Path) -> LoadedModel:
    """The merge of a recipe: in memory where its models fit, else by way of a folder that is given up afterwards."""
    plan = make_plan(at_root(recipe))
    device, residents = str(resolve_device(settings.device)), shared_previews().residents
    if residents.fits(plan):
        return load_unsaved(plan, residents, device)
    require_room(settings, plan.bytes_to_write, "This merge")
    for _ in merging.run(plan.recipe, scratch, device=settings.device):
        pass
    return LoadedModel.load(scratch, device)
