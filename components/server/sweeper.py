"""What nobody came back for is removed: on a shared server, after the settings' time to live."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from components.downloads import ZIPS, forget_zip, zip_folder
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
from components.server.settings import Settings
from components.shared import LOCAL_OWNER
from components.stages import LINKS
from merging import MergingError
from merging.hub.cache import cache_folder
from merging.jobs import JobStore

IDLE = 1800
"""Seconds after which a model that nobody asked leaves the memory."""
UPLOADS = 3600
"""Seconds after which an upload is removed: it was read when it came."""
ACCESS = 86_400
"""Seconds by which a file system may tell too early a time of the last reading (mount option relatime)."""

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
    gone = [owner for owner in owners(settings) if visits(settings).last(owner) < oldest]
    gone = [owner for owner in gone if forget(settings, owner)]
    _sweep_files(settings, now, oldest)
    _sweep_models(settings, oldest - ACCESS)
    model_cache(settings).forget_idle(IDLE)
    return gone


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
    for link in _inside(settings.runs / LINKS):
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)
    store = job_store(settings)
    jobs = [job for owner in store.owners() for job in store.list(owner)]
    measured = {name for job in jobs for name in ((job.result or {}).get("files") or {}).values()}
    for file in _inside(cache_of(settings)):
        if file.name not in measured and _changed(file) < oldest:
            _remove(file)
    kept = {zip_folder(job.id).name for job in jobs}
    for entry in _inside(zip_folder("").parent):
        ours = entry.name.startswith(ZIPS)
        if entry.name not in kept and _changed(entry) < (oldest if ours else now - UPLOADS):
            _remove(entry)


def _sweep_models(settings: Settings, oldest: float) -> None:
    """Models of the Hub that nobody read, where their folder is this server's own."""
    cache = cache_folder()
    if cache.resolve() != settings.hub_cache.resolve():
        return
    for entry in _inside(cache):
        files = [file for file in entry.rglob("*") if file.is_file() and not file.is_symlink()]
        read = [max(state.st_atime, state.st_mtime) for state in map(_state, files) if state is not None]
        if max(read, default=_changed(entry)) < oldest:
            _remove(entry)


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=False)
    except OSError:
        return None


def _changed(path: Path) -> float:
    state = _state(path)
    return state.st_mtime if state is not None else float("inf")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
