"""A merge as it goes home: its folder, and over it the model card and pictures of what is known by now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.downloads import GONE, model_bytes, zip_folder, zip_model
from components.merge.cards import KIND
from components.server.backend import job_store, run_history
from components.server.kept_bytes import require_room
from components.server.settings import ROOT, Settings
from merging import MergingError, Progress
from merging.cards.parcel import packing
from merging.cards.scores import CardScore, card_scores


def merge_folder(settings: Settings, owner: str, id: str) -> Path:
    """The folder of this owner's finished merge; `id` may come from the browser.

    Raises:
        MergingError: this owner has none of that id.
    """
    store = job_store(settings)
    folder, job = store.model(owner, id), store.get(owner, id)
    if folder is None or job is None or job.kind != KIND:
        raise MergingError(GONE)
    return folder


def pack(settings: Settings, owner: str, id: str, name: str = "") -> Iterator[Progress | dict[str, bytes]]:
    """Progress, then what lies over the folder of this owner's merge when it leaves, by name: `org/name` where it goes.

    Raises:
        MergingError: this owner has no such merge.
    """
    folder = merge_folder(settings, owner, id)
    yield from packing(folder, scores=_scores(settings, owner, folder), name=name, beside=ROOT)


def going_home(settings: Settings, owner: str, id: str) -> dict[str, bytes]:
    """What `pack` comes to.

    Raises:
        MergingError: this owner has no such merge.
    """
    *_, files = pack(settings, owner, id)
    return files if isinstance(files, dict) else {}


def zip_merge(settings: Settings, owner: str, id: str) -> Path:
    """The zip of this owner's merge with what goes home over it.

    Raises:
        MergingError: this owner has no such merge, or there is no room for the zip.
    """
    over, store = going_home(settings, owner, id), job_store(settings)
    if not zip_folder(id).is_dir():
        require_room(settings, model_bytes(store, owner, id), "The zip", owner)
    return zip_model(store, owner, id, over)


def _scores(settings: Settings, owner: str, folder: Path) -> list[CardScore]:
    """What is known of it; nothing where the history cannot be read, which is no reason to keep a merge here."""
    try:
        return card_scores(run_history(settings), owner, folder)
    except MergingError:
        return []
