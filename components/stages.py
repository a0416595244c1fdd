"""A finished merge as a model of the next: what a visitor names it by, and the folder that recipes name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from components.merge.cards import KIND
from components.server.backend import job_store
from components.server.settings import Settings
from merging import MergingError, Recipe
from merging.job_records import Job
from merging.methods import get_method

RUN = "run:"
"""What stands before the id of a merge where a model is typed."""
LINKS = "by-name"
"""The folder of links to merges that became parents, beside the folders of the owners; none of them can have that name."""
LENGTHS = (6, 12, 32)
"""Letters of the id in a link's name: as few as tell it from the others."""


def run_folder(settings: Settings, owner: str, id: str) -> str:
    """The folder of this owner's finished merge under a name of its own, such as `RUNS/by-name/ties-3f9a1c`.

    Recipes and cards travel with a model, and an owner's id is its key: so they name this link, not the job's folder.

    Raises:
        MergingError: this owner has no finished merge of that id, or the link cannot be made.
    """
    store = job_store(settings)
    folder, job = store.model(owner, id), store.get(owner, id)
    if folder is None or job is None or job.kind != KIND:
        raise MergingError("There is no such finished merge of yours; it may have been deleted. Merge again.")
    try:
        return str(_link(settings.runs.resolve() / LINKS, folder.resolve(), job))
    except OSError as error:
        raise MergingError(
            f"The merge cannot be made a model of the next ({error.strerror}); download it, and name its folder."
        ) from None


def _link(links: Path, folder: Path, job: Job) -> Path:
    links.mkdir(parents=True, exist_ok=True)
    for length in LENGTHS:
        link = links / f"{_method(job)}-{job.id[:length]}"
        if link.is_symlink() and not link.exists():  # of a merge that was deleted
            link.unlink(missing_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(folder, target_is_directory=True)
        if link.resolve() == folder:
            break
    return link


def _method(job: Job) -> str:
    try:
        return get_method(Recipe.from_yaml(job.recipe or "").merge_method).name.replace("_", "-")
    except MergingError:
        return job.kind
