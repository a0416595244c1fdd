"""What nobody came back for is removed: on a shared server, after the settings' time to live."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from components.downloads import ZIPS, forget_zip, zip_folder
from components.hub.kept_models import ACCESS, read_last
from components.importance.job import cache_of
from components.server.backend import (
    download_store,
    hub_desk,
    job_store,
    model_cache,
    push_store,
    run_history,
    visits,
)
from components.server.folders import changed, inside, remove
from components.server.settings import Settings
from components.shared import LOCAL_OWNER
from components.stages import LINKS
from merging import MergingError
from merging.jobs import JobStore

IDLE = 1800
"""Seconds after which a model that nobody asked leaves the memory."""
UPLOADS = 3600
"""Seconds after which an upload is removed: it was read when it came."""

_log = logging.getLogger(__name__)


def start_sweeping(settings: Settings) -> None:
    """Sweep now and then on a thread of its own, while the program runs; not where things are kept for ever."""
    if settings.ttl is not None and not settings.single_owner:
        threading.Thread(target=_sweep_on, args=(settings, settings.ttl), name="sweeper", daemon=True).start()


def _sweep_on(settings: Settings, ttl: int) -> None:
    while True:
        try:
            sweep(settings)
        except Exception:
            _log.exception("sweeping failed; it is tried again")
        time.sleep(min(600.0, max(1.0, ttl / 10)))


def sweep(settings: Settings, now: float | None = None) -> list[str]:
    """Remove what is older than the time to live; who was forgotten.

    Nothing of an owner goes while a job of theirs waits or runs.
    """
    if settings.ttl is None or settings.single_owner:
        return []
    now = time.time() if now is None else now
    oldest = now - settings.ttl
    gone = [owner for owner in owners(settings) if _left(settings, owner, oldest) and forget(settings, owner)]
    _sweep_files(settings, now, oldest)
    for folder, read in read_last(settings).items():
        if read + ACCESS < oldest:
            remove(folder)
    model_cache(settings).forget_idle(IDLE)
    return gone


def _left(settings: Settings, owner: str, oldest: float) -> bool:
    """Whether an owner was here last before that time; who has no folder that would tell, since this start at the latest."""
    last = visits(settings).last(owner)
    if not last:
        visits(settings).note(owner)
    return 0 < last < oldest


def owners(settings: Settings) -> set[str]:
    """Every visitor of whom something is kept; not who used this folder alone, before it was shared."""
    stores = _stores(settings)
    found = {owner for store in stores for owner in store.owners()} | set(hub_desk(settings).owners())
    with suppress(MergingError):  # the history is held by another program: next time
        found |= run_history(settings).owners()
    return found - {LOCAL_OWNER}


def forget(settings: Settings, owner: str) -> bool:
    """Forget all that is kept of an owner: jobs, models, zips, history, token; False while a job of theirs is active."""
    stores = _stores(settings)
    if any(store.busy(owner) for store in stores):
        return False
    zips = [job.id for job in job_store(settings).list(owner)]
    if not all(store.forget(owner) for store in stores):
        return False
    for id in zips:
        forget_zip(id)
    hub_desk(settings).forget(owner)
    with suppress(MergingError):
        run_history(settings).forget(owner)
    return True


def _stores(settings: Settings) -> tuple[JobStore, ...]:
    return job_store(settings), download_store(settings), push_store(settings)


def _sweep_files(settings: Settings, now: float, oldest: float) -> None:
    """Links to merges that are gone, importance that no job has, zips whose job is gone, and old uploads."""
    for link in inside(settings.runs / LINKS):
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)
    store = job_store(settings)
    jobs = [job for owner in store.owners() for job in store.list(owner)]
    measured = {name for job in jobs for name in ((job.result or {}).get("files") or {}).values()}
    if not any(job.active for job in jobs):  # one may be about to use what another has measured
        for file in inside(cache_of(settings)):
            if file.name not in measured and changed(file) < oldest:
                remove(file)
    kept = {zip_folder(job.id).name for job in jobs}
    for entry in inside(zip_folder("").parent):
        ours = entry.name.startswith(ZIPS)
        if entry.name not in kept and changed(entry) < (oldest if ours else now - UPLOADS):
            remove(entry)
