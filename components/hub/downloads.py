"""Downloading what the chosen models still lack, as a job: progress in bytes, cancel, resume, and found again after a reload."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from components.compare.runner import Work
from components.family import Family
from components.models.choice import Choice
from components.models.opening import choose
from components.progress import job_bar, told_in_bytes
from components.server.backend import download_store, hub_desk
from components.server.kept_bytes import require_room
from components.server.settings import Settings
from merging import MergingError, Progress
from merging.executors import unwanted
from merging.hub.client import Hub, Pinned
from merging.job_records import Job

KIND = "download"
NEWS = 600
"""Seconds for which the page tells how a download ended."""
ENDINGS = {
    "cancelled": "Cancelled. What was downloaded is kept; downloading again goes on from there.",
    "interrupted": "Interrupted: Mergescope was stopped while this ran. Download again; it goes on from there.",
}


def wanted(choice: Choice) -> list[Pinned]:
    """The models of the rows that are still to be downloaded, each once."""
    found = {
        looked.pinned.id: looked.pinned
        for one in choice.opened
        for looked in one.looked
        if looked.pinned is not None and looked.missing
    }
    return list(found.values())


def download(hub: Hub, models: Sequence[Pinned], out: Path) -> Iterator[Any]:
    """The work of a job: progress over all models, in the end which they were. The Hub's cache keeps them, not `out`."""
    started = time.perf_counter()
    missing = [hub.missing(pinned) for pinned in models]
    total, before = max(1, sum(missing)), 0
    for number, (pinned, own) in enumerate(zip(models, missing, strict=True)):
        for event in hub.download(pinned, cancelled=unwanted):
            done = before + event.bytes_done
            share, seconds = min(1.0, done / total), time.perf_counter() - started
            yield Progress(pinned.id, number, len(models), done, share, seconds)
        before += own
    yield {"models": [pinned.reference for pinned in models], "bytes": before}


def start(settings: Settings, owner: str, family: Family, *typed: Any) -> str:
    """Queue the download of what the rows still lack.

    Raises:
        MergingError: nothing is missing, a download runs already, or too many wait.
    """
    shown, base, *experts = typed
    models = wanted(choose(settings, base or "", [text or "" for text in experts[:shown]], owner))
    if not models:
        raise MergingError("Nothing is missing: all models are here, or not looked up yet.")
    store = download_store(settings)
    if any(job.active for job in store.list(owner)):
        raise MergingError("A download runs already. Let it end, or cancel it.")
    missing = sum(hub_desk(settings).hub(owner).missing(pinned) for pinned in models)
    require_room(settings, missing, "This download")
    title = ", ".join(pinned.id for pinned in models)
    return store.start(owner, KIND, partial(download, hub_desk(settings).hub(owner), models), title=title)


def progress_html(job: Job | None) -> str:
    """How far a download is, in bytes; empty where none waits or runs."""
    return job_bar(job, "downloading", "starting", told_in_bytes)


def work(settings: Settings, inputs: Sequence[Any], ended: Any) -> Work:
    """What the runner of downloads runs; `ended` is told of every job that came to its end, and the rows are judged again."""

    def show(owner: str, family: Family, job: Job | None) -> list[Any]:
        return [job.id if job is not None and not job.active else ""]

    return Work(
        settings=settings,
        kind=KIND,
        start=partial(start, settings),
        show=show,
        inputs=inputs,
        outputs=[ended],
        ready=_always,
        endings=ENDINGS,
        failure="The download was not started",
        mine=is_news,
        store=download_store,
        progress=progress_html,
    )


def _always(owner: str, family: Family, job: Job | None) -> bool:
    return True


def is_news(job: Job, family: Family) -> bool:
    """Downloads belong to whoever started them: while one runs there may be no family yet. Old ones are no news."""
    return job.active or time.time() - (job.ended or 0) < NEWS
