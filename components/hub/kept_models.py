"""Models of the Hub that a shared server keeps for everybody: when each was read last, and those that make room for others."""

from __future__ import annotations

import time
from pathlib import Path

from components.server.backend import job_store
from components.server.folders import changed, folder_bytes, inside, remove, states
from components.server.settings import Settings
from merging.hub.cache import cache_folder

ACCESS = 86_400
"""Seconds by which a file system may tell too early a time of the last reading (mount option relatime)."""
FRESH = 3600
"""Seconds for which a model that was downloaded or read makes room for no other."""


def read_last(settings: Settings) -> dict[Path, float]:
    """Folder of a model -> when it was read last, as far as its disk tells (see `ACCESS`); nothing where the folder of all is not this server's own."""
    cache = cache_folder()
    if settings.single_owner or cache.resolve() != settings.hub_cache.resolve():
        return {}
    return {folder: _told(folder) for folder in inside(cache)}


def make_room(settings: Settings, nbytes: int) -> int:
    """Remove models, that which was not read for longest first, until so many bytes are free; how many are.

    What a job works with stays, and what was read within the hour.
    """
    store, freed = job_store(settings), 0
    jobs = [job for owner in store.owners() for job in store.list(owner) if job.active]
    named = " ".join(f"{job.title} {job.recipe}" for job in jobs)
    by_age = sorted((read, folder) for folder, read in read_last(settings).items())
    for read, folder in by_age:
        if freed >= nbytes or read > time.time() - FRESH:
            break
        if folder.name.rpartition("--")[2] not in named:
            freed += folder_bytes(folder)
            remove(folder)
    return freed


def _told(folder: Path) -> float:
    return max((max(one.st_atime, one.st_mtime) for one in states(folder)), default=changed(folder))
